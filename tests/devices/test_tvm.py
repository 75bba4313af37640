"""TVM: what it computes is what ONNX Runtime computes, here and over a loopback server, and lost boards are told."""

import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tvm")

from autocompress.compression.build import build
from autocompress.compression.plan import Plan
from autocompress.devices import list_devices, open_device
from autocompress.devices.tvm import BOARDS, TvmSession, library, package, program
from autocompress.devices.tvm.address import Address, parse
from autocompress.devices.tvm.fixed import fixed
from autocompress.devices.tvm.loaded import Loaded
from autocompress.devices.tvm.model import read
from autocompress.devices.tvm.program import compiled
from autocompress.export.onnx import plain_onnx, to_onnx
from autocompress.graph import trace
from autocompress.vocabulary.errors import DeviceError, DeviceLostError
from tests.onnx_files import CHANNELS, write_net
from tests.zoo import make

SAMPLE = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
KEY = "loopback"
STARTED_S = 60.0

ROUNDING = 1e-5
"""A few units in the last place of fp32: each runtime sums in its own order."""

STEP, POSITIONS = 0.05, 64
"""Of the int8 net's activations, which are averaged over the positions: where two sums round to neighbouring steps, a
mean moves by STEP / POSITIONS, so one flip a channel moves a result by that times the sum of its weights (about 17)."""

Restart = Callable[[], None]


class Servers:
    """TVM's own tracker and server as child processes, each with all of its own children in a session."""

    def __init__(self, folder: Path) -> None:
        self._log = (folder / "servers.log").open("a")
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, module: str, port: int, *options: str) -> None:
        command = [sys.executable, "-m", f"tvm.exec.{module}", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--port-end", str(port + 1), *options]
        self.processes[port] = subprocess.Popen(command, stdout=self._log, stderr=self._log, start_new_session=True)

    def signal(self, port: int, number: int) -> None:
        os.killpg(self.processes[port].pid, number)

    def kill(self, port: int) -> None:
        self.signal(port, signal.SIGKILL)
        self.processes.pop(port).wait()
        while listening(port):  # a child of the server's holds the port a moment longer
            time.sleep(0.05)

    def close(self) -> None:
        for port in list(self.processes):
            self.kill(port)
        self._log.close()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with closing(Servers(tmp_path_factory.mktemp("tvm"))) as started:
        yield started


@pytest.fixture(scope="module")
def ports(servers: Servers) -> tuple[int, int]:
    """Of a tracker that knows one device, and of a server without a tracker; all are ready."""
    tracker, tracked, server = free_port(), free_port(), free_port()
    servers.start("rpc_tracker", tracker)
    servers.start("rpc_server", server)
    wait_for(tracker)
    servers.start("rpc_server", tracked, "--tracker", f"127.0.0.1:{tracker}", "--key", KEY)
    wait_for(server)
    wait_for_device(tracker)
    return tracker, server


@pytest.fixture
def tracked(ports: tuple[int, int]) -> str:
    return f"tvm:rpc://127.0.0.1:{ports[0]}/{KEY}"


@pytest.fixture
def direct(ports: tuple[int, int]) -> str:
    return f"tvm:rpc://127.0.0.1:{ports[1]}"


@pytest.fixture
def restart(servers: Servers, ports: tuple[int, int]) -> Restart:
    def start_again() -> None:
        servers.start("rpc_server", ports[1])
        wait_for(ports[1])

    return start_again


@pytest.fixture(params=[False, True], ids=["fp32", "int8"])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_net(tmp_path / "net.onnx", int8=request.param)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Until somebody listens there."""
    end = time.monotonic() + STARTED_S
    while not listening(port):
        assert time.monotonic() < end, f"nothing listens at port {port}"
        time.sleep(0.1)


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for_device(tracker: int) -> None:
    """Until the tracker can hand one out."""
    from tvm import rpc

    with closing(rpc.connect_tracker("127.0.0.1", tracker)) as session:
        end = time.monotonic() + STARTED_S
        while session.summary()["queue_info"].get(KEY, {"free": 0})["free"] == 0:
            assert time.monotonic() < end, "the server did not register"
            time.sleep(0.1)


def parity(found: Any, path: Path) -> None:
    """What was found for SAMPLE against ONNX Runtime."""
    expected = open_device("ort:cpu").open(path).run(SAMPLE)
    graph = onnx.load(str(path)).graph
    weights = next(onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == "linear.weight")
    quantised = any(node.op_type == "QuantizeLinear" for node in graph.node)
    flips = STEP / POSITIONS * float(np.abs(weights).sum(axis=1).max()) if quantised else 0.0
    np.testing.assert_allclose(found, expected, rtol=ROUNDING, atol=ROUNDING * np.abs(expected).max() + flips)


def test_computes_what_onnx_runtime_computes(net: Path) -> None:
    parity(open_device("tvm:llvm").open(net).run(SAMPLE), net)


@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_each_weighted_node_is_some_kernels(name: str, tmp_path: Path) -> None:
    """Whole models, as exported by this package: groups with a residual, tuples, constants in front."""
    model, inputs = make(name)
    graph = trace(model, inputs)
    path = tmp_path / "model.onnx"
    to_onnx(build(Plan(graph.fingerprint, ()), graph, None), path, "original")
    sample = inputs[:1].numpy()
    device = open_device("tvm:llvm")
    found, expected = device.open(path).run(sample), open_device("ort:cpu").open(path).run(sample)
    np.testing.assert_allclose(found, expected, rtol=ROUNDING, atol=ROUNDING * np.abs(expected).max())
    sources = [node.source for node in device.profile(path, [sample], 1)]
    weighted = [n.name for n in onnx.load(str(path)).graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    assert sorted(source for source in sources if source in weighted) == sorted(weighted)
    assert "" not in sources


@pytest.mark.parametrize("channels", [1, 7, 24, 59])
def test_blocked_loops_compute_the_same_to_the_bit(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Widths without divisors included: no sum changes its order, or the kernels' times would be of another program."""
    draw, make_node = np.random.default_rng(0), onnx.helper.make_node
    info, constant = onnx.helper.make_tensor_value_info, onnx.numpy_helper.from_array
    weights = [draw.normal(size=shape).astype(np.float32) for shape in ((channels, 3, 3, 3), (channels, 1, 3, 3))]
    nodes = [
        make_node("Conv", ["x", "w"], ["a"], name="full", kernel_shape=[3, 3], strides=[2, 1]),
        make_node("Conv", ["a", "d"], ["b"], name="depthwise", kernel_shape=[3, 3], group=channels, pads=[1, 1, 1, 1]),
        make_node("Softmax", ["b"], ["y"], name="softmax", axis=1),
    ]
    constants = [constant(value, name) for value, name in zip(weights, "wd", strict=True)]
    graph = onnx.helper.make_graph(
        nodes, "net", [info("x", 1, [1, 3, 8, 8])], [info("y", 1, [1, channels, 3, 6])], constants
    )
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
    blocked = open_device("tvm:llvm").open(path).run(SAMPLE)
    monkeypatch.setattr(program, "scheduled", lambda module: module)
    compiled.cache_clear()
    plain = open_device("tvm:llvm").open(path).run(SAMPLE)
    compiled.cache_clear()
    np.testing.assert_array_equal(blocked, plain)
    np.testing.assert_allclose(blocked, open_device("ort:cpu").open(path).run(SAMPLE), rtol=ROUNDING, atol=ROUNDING)


def test_what_is_computed_of_constants_alone_is_folded(tmp_path: Path) -> None:
    """The plain export of a ResNet computes its paddings: the importer refuses them, and they never depend on data."""
    model, inputs = make("resnet")
    path = tmp_path / "plain.onnx"
    plain_onnx(model, (inputs,), path)
    folded = fixed(onnx.load(str(path)), [tuple(inputs.shape)])
    made = {tensor for node in folded.graph.node for tensor in node.output} | {v.name for v in folded.graph.input}
    assert all(made & set(node.input) for node in folded.graph.node)
    assert len(folded.graph.node) < len(onnx.load(str(path)).graph.node)
    onnx.save(folded, str(tmp_path / "folded.onnx"))
    ort = open_device("ort:cpu")
    before, after = (ort.open(tmp_path / f"{name}.onnx").run(inputs.numpy()) for name in ("plain", "folded"))
    np.testing.assert_allclose(before, after, rtol=ROUNDING, atol=ROUNDING * np.abs(before).max())


def test_equal_programs_are_compiled_once(tmp_path: Path) -> None:
    one, two = write_net(tmp_path / "one.onnx"), write_net(tmp_path / "two.onnx")
    before = compiled.cache_info().misses
    for path in (one, two):
        open_device("tvm:llvm").open(path).run(np.repeat(SAMPLE, 5, axis=0))
    assert compiled.cache_info().misses == before + 1


def test_runs_on_a_tracked_board(tracked: str, net: Path) -> None:
    device = open_device(tracked)
    session = device.open(net)
    parity(session.run(SAMPLE), net)
    samples = session.time([SAMPLE], 5)
    assert len(samples) == 5 and all(0 < seconds < 1 for seconds in samples)
    nodes = device.profile(net, [SAMPLE], 3)
    assert {node.name: node.provider for node in nodes} == session.providers()
    assert {f"tvm rpc {KEY}"} == set(session.providers().values())
    assert {"conv", "pool", "linear"} <= {node.source for node in nodes}
    assert device.environment()["processor"] != ""


def test_a_board_may_link_what_it_gets(direct: str, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("the far side has no linker")
    monkeypatch.setattr(library, "linker", lambda triple: None)
    library.library.cache_clear()
    parity(open_device(direct).open(net).run(SAMPLE), net)
    library.library.cache_clear()


def test_a_board_that_cant_link_says_what_to_install(
    direct: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library.shutil, "which", lambda command: None)
    session = open_device(f"{direct}?target=aarch64-linux-gnu&mcpu=cortex-a72").open(write_net(tmp_path / "net.onnx"))
    with pytest.raises(DeviceError, match=r"no linker for aarch64-linux-gnu here.*gcc-aarch64-linux-gnu") as caught:
        session.run(SAMPLE)
    assert not isinstance(caught.value, DeviceLostError), "trying again would not help"


@pytest.mark.parametrize("where", ["tracked", "direct"])
def test_a_busy_device_is_waited_for_and_then_told(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    name, path = request.getfixturevalue(where), write_net(tmp_path / "net.onnx")
    holder = open_device(name).open(path)
    before = time.monotonic()
    with pytest.raises(DeviceLostError, match=r"is busy: it was not free within 0\.5 s") as caught:
        open_device(f"{name}?wait_s=0.5").open(path)
    assert 0.5 <= time.monotonic() - before < 10
    assert "\n" not in str(caught.value)
    parity(holder.run(SAMPLE), path)
    del holder
    parity(open_device(f"{name}?wait_s=20").open(path).run(SAMPLE), path)


def test_a_board_lost_between_calls_and_in_a_measurement(
    direct: str, servers: Servers, ports: tuple[int, int], restart: Restart, tmp_path: Path
) -> None:
    path = write_net(tmp_path / "net.onnx")
    session = open_device(direct).open(path)
    parity(session.run(SAMPLE), path)
    killer = threading.Timer(0.5, servers.kill, [ports[1]])
    killer.start()
    with pytest.raises(
        DeviceLostError, match=r"was lost when asked to time .*python -m tvm\.exec\.rpc_server"
    ) as caught:
        for _ in range(1000):
            session.time([SAMPLE], 10_000)
    killer.join()
    assert "\n" not in str(caught.value)
    with pytest.raises(DeviceLostError, match=f"no device at {direct}"):
        session.run(SAMPLE)
    with pytest.raises(DeviceLostError, match=f"no device at {direct}"):
        open_device(direct).open(path)
    restart()
    parity(session.run(SAMPLE), path)


def test_a_silent_board_is_given_up(
    direct: str, servers: Servers, ports: tuple[int, int], restart: Restart, tmp_path: Path
) -> None:
    session = open_device(f"{direct}?limit_s=1").open(write_net(tmp_path / "net.onnx"))
    session.run(SAMPLE)
    servers.signal(ports[1], signal.SIGSTOP)
    with pytest.raises(DeviceLostError, match="no answer for 1 s"):
        session.run(SAMPLE)
    servers.kill(ports[1])
    restart()
    session.run(SAMPLE)


def test_no_tracker_no_device_no_such_key(ports: tuple[int, int], tmp_path: Path) -> None:
    path, nobody = write_net(tmp_path / "net.onnx"), free_port()
    with pytest.raises(DeviceLostError, match=r"no device 'loopbak' is registered.*did you mean 'loopback'\?"):
        open_device(f"tvm:rpc://127.0.0.1:{ports[0]}/loopbak").open(path)
    with pytest.raises(DeviceLostError, match=f"no tracker at 127.0.0.1:{nobody}.*refused"):
        open_device(f"tvm:rpc://127.0.0.1:{nobody}/board").open(path)
    with pytest.raises(DeviceLostError, match=f"no device at tvm:rpc://127.0.0.1:{ports[0]}"):
        open_device(f"tvm:rpc://127.0.0.1:{ports[0]}").open(path)


def test_boards_named_in_the_environment_are_listed(direct: str, tracked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = f"rpc://127.0.0.1:{free_port()}"
    monkeypatch.setenv(BOARDS, f"{tracked.removeprefix('tvm:')} {gone} rpc:nonsense")
    rows = {row.name: row for row in list_devices()}
    assert rows[tracked].usable
    assert not rows[f"tvm:{gone}"].usable and "refused" in rows[f"tvm:{gone}"].detail
    assert not rows["tvm:rpc:nonsense"].usable and "can't read" in rows["tvm:rpc:nonsense"].detail


def test_compiles_for_another_architecture(tmp_path: Path) -> None:
    model = read(write_net(tmp_path / "net.onnx"))
    target = json.dumps({"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"})
    made = library.export(compiled(model, model.shapes_of_one(), target), link=None)
    with tarfile.open(fileobj=io.BytesIO(made.content)) as archive:
        objects = [archive.extractfile(member).read() for member in archive if member.name.endswith(".o")]  # type: ignore[union-attr]
    assert objects
    for content in objects:
        assert content[:4] == b"\x7fELF"
        assert struct.unpack_from("<H", content, 18) == (183,), "EM_AARCH64, ELF for the Arm 64-bit architecture, 2024"


def test_the_linker_of_a_target_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert library.linker("aarch64-unknown-linux-gnu") is None
    for name in ("gcc", "aarch64-linux-gnu-gcc"):
        (tmp_path / name).touch(mode=0o755)
    assert library.linker("aarch64-unknown-linux-gnu") == "aarch64-linux-gnu-gcc"
    assert library.linker("riscv64-linux-gnu") is None
    assert library.package("aarch64-unknown-linux-gnu") == "gcc-aarch64-linux-gnu"


def test_a_name_says_what_to_compile_for_and_how_long_to_wait() -> None:
    found = parse("rpc://board:9190/rpi4?target=aarch64-linux-gnu&mcpu=cortex-a72&mattr=+fp16,+dotprod&wait_s=5")
    wanted = Address("board", 9190, "rpi4", "aarch64-linux-gnu", "cortex-a72", "+fp16,+dotprod", wait_s=5)
    assert found == wanted


@pytest.mark.parametrize(
    ("asked", "clue"),
    [
        ("tvm:llvmm", r"tvm:llvm"),
        ("tvm:rpc://board/key", r"write tvm:rpc://HOST:PORT/KEY"),
        ("tvm:rpc:board:9090", r"write tvm:rpc://HOST:PORT/KEY"),
        ("tvm:rpc://board:port/key", r"write tvm:rpc://HOST:PORT/KEY"),
        ("tvm:rpc://board:9090?targt=x", r"unknown option 'targt'.*did you mean 'target'"),
        ("tvm:rpc://board:9090?wait_s=soon", r"wait_s .* is 'soon': give a number of seconds above zero"),
        ("tvm:rpc://board:9090?limit_s=0", r"limit_s .* is '0'"),
    ],
)
def test_a_wrong_name_is_told(asked: str, clue: str) -> None:
    with pytest.raises(DeviceError, match=clue):
        open_device(asked)


def test_an_operator_that_tvm_lacks_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Det", ["x"], ["y"])], "net",
        [info("x", 1, [1, 3, 3])], [info("y", 1, [1])],
    )  # fmt: skip
    path = tmp_path / "det.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))
    with pytest.raises(DeviceError, match=r"tvm:llvm can't load .*det\.onnx.*Det"):
        open_device("tvm:llvm").open(path)
    assert capfd.readouterr() == ("", ""), "the importer's own words are not for the terminal"


def test_other_words_on_stderr_come_through(capfd: pytest.CaptureFixture[str]) -> None:
    with package.quiet():
        os.write(2, b"[11:48:35] /src/executable.cc:276: Warning: Scope Saving:\nlinker: not found\n")
    assert capfd.readouterr().err == "linker: not found\n"


@pytest.mark.parametrize("seconds", [0.0, float("nan")])
def test_a_time_that_is_none_is_refused(seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loaded, "time", lambda *_: [seconds])
    session = open_device("tvm:llvm").open(write_net(tmp_path / "net.onnx"))
    assert isinstance(session, TvmSession)
    with pytest.raises(DeviceError, match=f"timed a run of .*net.onnx at {seconds} s: check its clock"):
        session.time([SAMPLE], 1)


def _absent(name: str) -> str:
    raise PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("part", "stub", "reason"),
    [
        ("find_spec", lambda name: None, "apache-tvm is not installed"),
        ("version", _absent, "not apache-tvm, but another project's"),
        ("version", lambda name: "0.18.0", r"apache-tvm 0\.18\.0 is too old, 0\.27 or newer is needed"),
    ],
)
def test_without_the_right_package_it_says_what_to_install(
    part: str, stub: Callable[[str], Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, part, stub)
    rows = [row for row in list_devices() if row.name.startswith("tvm")]
    assert rows and all((row.usable, row.install) == (False, 'pip install "autocompress[tvm]"') for row in rows)
    for name in ("tvm:llvm", "tvm:rpc://127.0.0.1:1"):
        with pytest.raises(DeviceError, match=reason + r'.*pip install "autocompress\[tvm\]"'):
            open_device(name).open(Path("net.onnx"))


def test_the_nets_own_size_is_what_the_tolerance_assumes() -> None:
    assert CHANNELS == 20 and SAMPLE.shape[2] * SAMPLE.shape[3] == POSITIONS
