"""What a remote device's name says: where it is, for what to compile, and how long to wait for it."""

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from autocompress.vocabulary.errors import DeviceError, nearest

SCHEME = "rpc"
FORM = f"tvm:{SCHEME}://HOST:PORT/KEY"

KEYS = ("target", "mcpu", "mattr", "wait_s", "limit_s")
"""What may follow the `?`: LLVM's target triple, processor and features (commas between), and two times in seconds."""

WAIT_S = 30.0
"""So long a connection, or a device that others use, is waited for."""

LIMIT_S = 600.0
"""A device that has not answered a call after this time is taken for lost."""


@dataclass(frozen=True, slots=True)
class Address:
    """With a key, host and port are a tracker's that is asked for a device; without, the device's own server's."""

    host: str
    port: int
    key: str = ""
    target: str = ""
    mcpu: str = ""
    mattr: str = ""
    wait_s: float = WAIT_S
    limit_s: float = LIMIT_S

    @property
    def name(self) -> str:
        """The device's name without its options, for messages."""
        return f"tvm:{SCHEME}://{self.host}:{self.port}" + (f"/{self.key}" if self.key else "")


def parse(variant: str) -> Address:
    """The address in `rpc://HOST:PORT/KEY?option=value&...`; raises DeviceError saying what is wrong with it."""
    asked = f"tvm:{variant}"
    try:
        parts = urlsplit(variant)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise DeviceError(f"can't read {asked!r}: {error}; write {FORM}") from error
    if parts.scheme != SCHEME or not host or not port:
        raise DeviceError(f"can't read {asked!r}: write {FORM} (a tracker's) or tvm:{SCHEME}://HOST:PORT (a server's)")
    features = parts.query.replace("+", "%2B")  # a query's plus would mean a space, a feature's means that it is there
    options = dict(parse_qsl(features, keep_blank_values=True))
    for option in options.keys() - set(KEYS):
        raise DeviceError(f"unknown option {option!r} in {asked!r}: {nearest(option, KEYS)}")
    wait_s, limit_s = (_seconds(asked, option, options.get(option)) for option in ("wait_s", "limit_s"))
    target, mcpu, mattr = (options.get(option, "") for option in ("target", "mcpu", "mattr"))
    return Address(host, port, parts.path.strip("/"), target, mcpu, mattr, wait_s or WAIT_S, limit_s or LIMIT_S)


def _seconds(asked: str, option: str, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise DeviceError(f"{option} in {asked!r} is {value!r}: give a number of seconds above zero")
    return seconds
