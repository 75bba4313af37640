"""What Vela's cycles are turned into seconds by: accelerators, their clock and memory, and the CPU beside them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HostCpu:
    """The CPU that runs what the NPU can't, by its peak rates per cycle.

    `macs` are multiply-accumulates per cycle by number format, `bytes` are moved per cycle, `function_cycles` is the
    time of one exponential, root or division of one element, `launch_cycles` that of calling an operator. The clock is
    the system's: the NPU's.
    """

    name: str
    fp32_macs: float
    int8_macs: float
    bytes: float
    function_cycles: float
    launch_cycles: float


_LAUNCH_CYCLES = 2000.0
"""Assumed: an interpreter's dispatch of one operator and the hand-over between CPU and NPU; no vendor states it."""

_FUNCTION_CYCLES = 20.0
"""Assumed: a polynomial approximation of exp, tanh, a root or a division; no vendor states it."""

CORTEX_M55 = HostCpu("Cortex-M55", 2.0, 8.0, 8.0, _FUNCTION_CYCLES, _LAUNCH_CYCLES)
"""Helium does two of its four 32-bit beats a cycle on this core: 2 fp32 or 8 int8 multiply-accumulates, 8 bytes (Marsh,
Arm Helium Technology, 2020). No interpreter reaches these peaks: fallback is priced too low rather than too high."""

CORTEX_M85 = HostCpu("Cortex-M85", 2.0, 8.0, 8.0, _FUNCTION_CYCLES, _LAUNCH_CYCLES)
"""Assumed: as wide as the Cortex-M55."""

CORTEX_A55 = HostCpu("Cortex-A55", 4.0, 16.0, 16.0, _FUNCTION_CYCLES, _LAUNCH_CYCLES)
"""A 128-bit FMLA (4 fp32) or SDOT (16 int8) takes both of its pipes for one cycle (LLVM, AArch64SchedA55.td); 16 bytes
a cycle are assumed, from the same width. It is the core beside the Ethos-U65 of NXP's i.MX 93."""


@dataclass(frozen=True, slots=True)
class Platform:
    """An accelerator in a system. `system_config` and `memory_mode` are sections of `Arm/vela.ini`, which Vela ships:
    they fix the clock, the bandwidths and latencies of SRAM, flash and DRAM, and what lies where."""

    accelerator: str
    system_config: str
    memory_mode: str
    clock_hz: float
    channel_multiple: int
    host: HostCpu

    @property
    def family(self) -> str:
        """As Vela's compiler core names it: "EthosU55"."""
        return "".join(word.capitalize() for word in self.accelerator.split("-")[:-1])


def _platforms(family: str, macs: tuple[int, ...], config: tuple[str, str, float], step: int, host: HostCpu) -> None:
    for count in macs:
        name = f"{family}-{count}"
        PLATFORMS[name] = Platform(name, *config, step, host)


PLATFORMS: dict[str, Platform] = {}
"""By accelerator: every one of Vela 5.2.0, in the system and memory that Vela takes by default (its
ArchitectureFeatures._set_default_sys_config and _set_default_mem_mode); the clock is core_clock in vela.ini.

Widths step by 16: feature maps are stored in bricks of 16 channels (Vela's format NHCWB16). Half steps of 8 show in
some layers of the U55, and the U65 is not even monotonic; a search that wants those asks Vela, not this number."""

_platforms(
    "ethos-u55", (32, 64, 128, 256), ("Ethos_U55_High_End_Embedded", "Shared_Sram", 500e6), 16, CORTEX_M55
)  # fmt: skip
_platforms(
    "ethos-u65", (256, 512), ("Ethos_U65_Client_Server", "Dedicated_Sram_384KB", 1e9), 16, CORTEX_A55
)  # fmt: skip
_platforms(
    "ethos-u85", (128, 256, 512, 1024, 2048), ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB", 1e9), 16, CORTEX_M85
)  # fmt: skip
