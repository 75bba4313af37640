"""Finding devices: one file (or package) a runtime, imported when one of its devices is asked for.

A device file has two functions: `available() -> list[Availability]`, which says what is usable here without importing
anything heavy, and `open_device(variant) -> Device`, which gets what follows the colon in `family:variant`. Files that
begin with an underscore are shared by several runtimes.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from autocompress.devices.base import Availability, Device, DeviceWarning, NodeTime, Session
from autocompress.vocabulary.errors import DeviceError, nearest

__all__ = [
    "DEFAULT_DEVICE",
    "Availability",
    "Device",
    "DeviceWarning",
    "NodeTime",
    "Session",
    "list_devices",
    "open_device",
]

DEFAULT_DEVICE = "ort:cpu"
_SHARED = frozenset({"base", "measure", "roofline"})


def families() -> list[str]:
    """Names of the runtimes, one per file or package; what begins with an underscore is shared by several."""
    found = (module.name for module in iter_modules(__path__))
    return sorted(name for name in found if name not in _SHARED and not name.startswith("_"))


def list_devices() -> list[Availability]:
    """Every device of every runtime: usable, or why not and what to install."""
    return [row for family in families() for row in _family(family).available()]


def open_device(name: str) -> Device:
    """The device of that name, such as "ort:cpu". Raises DeviceError, naming the nearest, when there is none."""
    family, _, variant = name.partition(":")
    if family not in families():
        known = [row.name for row in list_devices()]
        raise DeviceError(f"unknown device {name!r}: {nearest(name, known)} (see `autocompress devices`)")
    device: Device = _family(family).open_device(variant)
    return device


def _family(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")
