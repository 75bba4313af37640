"""Arm Ethos-U accelerators, without the hardware: times are what the vendor's compiler, Vela, estimates."""

from autocompress.devices.base import Availability, Device
from autocompress.devices.vela.compiler import INSTALL, PACKAGE, REQUIRED, problem
from autocompress.devices.vela.platforms import PLATFORMS, Platform
from autocompress.vocabulary.errors import DeviceError, nearest


def available() -> list[Availability]:
    """Every accelerator that Vela knows, if Vela is here in the version that is known to work."""
    found = problem()
    install = INSTALL if found else ""
    return [
        Availability(f"vela:{platform.accelerator}", not found, found or _description(platform), install)
        for platform in PLATFORMS.values()
    ]


def open_device(variant: str) -> Device:
    """`vela:ethos-u55-128` and so on; raises DeviceError for an unknown accelerator or where Vela is missing."""
    from autocompress.devices.vela.device import VelaDevice

    asked = f"vela:{variant}"
    if variant not in PLATFORMS:
        raise DeviceError(f"unknown device {asked!r}: {nearest(asked, (f'vela:{known}' for known in PLATFORMS))}")
    if found := problem():
        raise DeviceError(f"can't open {asked}: {found}; {INSTALL}")
    return VelaDevice(PLATFORMS[variant])


def _description(platform: Platform) -> str:
    return (
        f"{PACKAGE} {REQUIRED}, {platform.clock_hz / 1e6:g} MHz, {platform.system_config}, {platform.memory_mode}: "
        "an estimate by the vendor's compiler"
    )
