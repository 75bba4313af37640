"""A device reached by TVM's RPC, by its address or through a tracker: one connection for all models on it."""

import gc
import json
import os
import socket
import stat
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from autocompress.devices.tvm.address import Address
from autocompress.devices.tvm.library import OBJECTS, Library, library, package
from autocompress.devices.tvm.loaded import Loaded
from autocompress.devices.tvm.model import Model, Shapes
from autocompress.devices.tvm.package import first_line, require_tvm
from autocompress.vocabulary.errors import DeviceError, DeviceLostError, nearest

_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
"""A board without power or network is noticed after 25 seconds (the last is in milliseconds)."""

_OPEN_FILES = Path("/dev/fd")

_connections: "weakref.WeakValueDictionary[Address, Connection]" = weakref.WeakValueDictionary()
_connecting = threading.Lock()


def connect(address: Address) -> "Connection":
    """The connection to a device, shared while anything uses it: a server has one client at a time.

    Raises DeviceLostError if the device can't be reached or is busy for longer than the address lets it be.
    """
    with _connecting:
        known = _connections.get(address)
        if known is None or known.lost:
            known = _connections[address] = Connection(address)
        return known


class Connection:
    """One session on a device. A model is loaded and run through it; once lost it stays lost."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.lost = False
        self._session, self._wire = _session(address)
        self._files = count()
        weakref.finalize(self, _close, self._wire)

    @property
    def provider(self) -> str:
        return f"tvm rpc {self.address.key or f'{self.address.host}:{self.address.port}'}"

    @cached_property
    def target(self) -> str:
        """What to compile for, as TVM's JSON: as the address says, otherwise as the device's own LLVM does."""
        machine = {"kind": "llvm", "mtriple": self.address.target, "mcpu": self.address.mcpu}
        if not self.address.target:
            machine["mtriple"] = self._told("target.llvm_get_system_triple")
            machine["mcpu"] = self.address.mcpu or self._told("target.llvm_get_system_cpu")
        features = {"mattr": self.address.mattr.split(",")} if self.address.mattr else {}
        return json.dumps({name: value for name, value in machine.items() if value} | features)

    @property
    def processor(self) -> str:
        machine = json.loads(self.target)
        return f"{machine.get('mcpu', 'generic')} ({machine['mtriple']})"

    def build(self, model: Model, shapes: Shapes) -> Library:
        return library(model, shapes, self.target)

    def load(self, file: Library) -> Loaded:
        from tvm import relax

        name = f"{next(self._files)}{file.suffix}"
        self._session.upload(bytearray(file.content), name)
        if file.suffix == OBJECTS:
            name = self._link(name)
        module = self._session.load_module(name)
        self._session.remove(name)
        device = self._session.cpu(0)
        return Loaded(relax.VirtualMachine(module, device), device)

    @contextmanager
    def working(self, task: str) -> Iterator[None]:
        """Turns what TVM raises meanwhile into DeviceLostError if the device has gone, else into DeviceError."""
        with _limited(self.address.limit_s, lambda: _cut(self._wire)) as late:
            try:
                yield
            except DeviceError:
                raise
            except Exception as error:  # TVM has no tree of its own, and the far side's come as RuntimeError
                self.lost = late.is_set() or not self._alive()
                raise self._failure(task, error, late.is_set()) from error

    def _failure(self, task: str, error: Exception, late: bool) -> DeviceError:
        name, said = self.address.name, first_line(error)
        if not self.lost:
            return DeviceError(f"{name} can't {task}: {said}")
        said = f"no answer for {self.address.limit_s:g} s" if late else said
        return DeviceLostError(f"{name} was lost when asked to {task}: {said}; {_advice(self.address)}")

    def _alive(self) -> bool:
        try:
            self._session.get_function("tvm.rpc.server.remove")
        except Exception:  # whatever it says, it did not answer
            return False
        return True

    def _told(self, function: str) -> str:
        with self.working("tell its processor"):
            try:
                told = self._session.get_function(function)()
            except AttributeError as error:
                raise DeviceError(
                    f"{self.address.name} has a TVM without compiler, which can't tell its processor: "
                    f"name it, as in {self.address.name}?target=aarch64-linux-gnu&mcpu=cortex-a72"
                ) from error
        return str(told)

    def _link(self, name: str) -> str:
        """Has the device link uploaded objects, in place; the call that does so also sends the result, unused."""
        try:
            self._session.download_linked_module(name)
        except Exception as error:
            if not self._alive():
                raise
            triple = json.loads(self.target)["mtriple"]
            raise DeviceError(
                f"no linker for {triple} here and none on {self.address.name} ({first_line(error)}); "
                f"install one here (`apt install {package(triple)}`) or `apt install g++` there"
            ) from error
        self._session.remove(name)
        return f"{name}.so"


def _session(address: Address) -> tuple[Any, socket.socket | None]:
    """An open session and its socket (None where open files can't be listed: nothing cuts a call short there)."""
    require_tvm()
    from tvm import rpc

    gc.collect()  # what TVM left in cycles may still hold the device from an earlier session of ours
    host, port, key = _from_tracker(address) if address.key else (address.host, address.port, "")
    before = set(_sockets(port))
    with _limited(address.wait_s, lambda: _cut_and_close(_new(before, port))) as late:
        try:
            session = rpc.connect(host, port, key)
        except Exception as error:
            if late.is_set():
                raise _busy(address) from error
            raise DeviceLostError(f"no device at {address.name}: {first_line(error)}; {_advice(address)}") from error
    return session, _kept_alive(_new(before, port))


def _from_tracker(address: Address) -> tuple[str, int, str]:
    """Host, port and password of a free device of this key, once there is one."""
    from tvm.rpc import base

    try:
        with socket.create_connection((address.host, address.port), timeout=address.wait_s) as tracker:
            tracker.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            if struct.unpack("<i", base.recvall(tracker, 4))[0] != base.RPC_TRACKER_MAGIC:
                raise DeviceLostError(f"{address.host}:{address.port} is no TVM tracker; {_advice(address)}")
            _require_known(address, _asked(tracker, [base.TrackerCode.SUMMARY]))
            try:
                host, port, password = _asked(tracker, [base.TrackerCode.REQUEST, address.key, "", 1])
            except TimeoutError as error:
                raise _busy(address) from error
    except OSError as error:
        raise DeviceLostError(f"no tracker at {address.host}:{address.port}: {error}; {_advice(address)}") from error
    return host, port, password


def _asked(tracker: socket.socket, question: list[Any]) -> Any:
    from tvm.rpc import base

    base.sendjson(tracker, question)
    return base.recvjson(tracker)[1]


def _require_known(address: Address, summary: dict[str, Any]) -> None:
    keys = {server["key"].partition(":")[2] for server in summary["server_info"]}
    if address.key not in keys:
        there = f"{address.host}:{address.port}"
        found = f"no device {address.key!r} is registered with the tracker at {there}: {nearest(address.key, keys)}"
        raise DeviceLostError(f"{found}; {_advice(address)}")


def _busy(address: Address) -> DeviceLostError:
    return DeviceLostError(
        f"{address.name} is busy: it was not free within {address.wait_s:g} s; wait for whoever uses it, "
        "add ?wait_s=SECONDS, or restart its server if nobody does"
    )


def _advice(address: Address) -> str:
    registered = f" --tracker {address.host}:{address.port} --key {address.key}" if address.key else ""
    return f"check that it is on and runs `python -m tvm.exec.rpc_server{registered}`, then try again"


@contextmanager
def _limited(seconds: float, cut: Callable[[], None]) -> Iterator[threading.Event]:
    """Calls `cut` if the block takes longer; the event says whether it did. TVM's own calls have no time limit."""
    late = threading.Event()

    def fire() -> None:
        late.set()
        cut()

    timer = threading.Timer(seconds, fire)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _sockets(port: int) -> Iterator[int]:
    """Files of this process that are TCP connections to a port, established or not yet."""
    for file in map(int, os.listdir(_OPEN_FILES)) if _OPEN_FILES.is_dir() else ():
        with suppress(OSError):  # the listing's own file is closed by now
            if stat.S_ISSOCK(os.fstat(file).st_mode) and _leads_to(file, port):
                yield file


def _leads_to(file: int, port: int) -> bool:
    with socket.socket(fileno=os.dup(file)) as connection:
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.type != socket.SOCK_STREAM:
            return False
        try:
            return bool(connection.getpeername()[1] == port)
        except OSError:
            return not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


def _new(before: set[int], port: int) -> socket.socket | None:
    """A handle on the connection that TVM opened, which it does not hand out."""
    made = [file for file in _sockets(port) if file not in before]
    return socket.socket(fileno=os.dup(made[-1])) if made else None


def _kept_alive(wire: socket.socket | None) -> socket.socket | None:
    if wire is not None:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE.items():
            if hasattr(socket, option):
                wire.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return wire


def _cut(wire: socket.socket | None) -> None:
    """Ends a connection for both sides: a call that waits for an answer fails."""
    if wire is not None:
        with suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)


def _cut_and_close(wire: socket.socket | None) -> None:
    _cut(wire)
    _close(wire)


def _close(wire: socket.socket | None) -> None:
    if wire is not None:
        wire.close()
