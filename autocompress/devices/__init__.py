"""Finding devices: one module (or package) a runtime, declared as an entry point, imported when it is asked for.

A runtime's module has two functions: `available() -> list[Availability]`, which says what is usable here without
importing anything heavy, and `open_device(variant) -> Device`, which gets what follows the colon in `family:variant`.
Files that begin with an underscore are shared by several runtimes.
"""

from typing import Protocol

from autocompress.devices.base import Availability, Device, DeviceWarning, NodeTime, Session
from autocompress.vocabulary import plugins
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


class Family(Protocol):
    """What the module of a runtime offers."""

    def available(self) -> list[Availability]: ...

    def open_device(self, variant: str) -> Device: ...


def list_devices() -> list[Availability]:
    """Every device of every runtime: usable, or why not and what to install."""
    return [row for family in plugins.names(plugins.DEVICES) for row in _family(family).available()]


def open_device(name: str) -> Device:
    """The device of that name, such as "ort:cpu". Raises DeviceError, naming the nearest, when there is none."""
    family, _, variant = name.partition(":")
    if family not in plugins.names(plugins.DEVICES):
        known = [row.name for row in list_devices()]
        raise DeviceError(f"unknown device {name!r}: {nearest(name, known)} (see `autocompress devices`)")
    return _family(family).open_device(variant)


def _family(name: str) -> Family:
    family: Family = plugins.load(plugins.DEVICES, name)
    return family
