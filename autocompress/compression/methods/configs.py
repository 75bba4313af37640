"""The decisions a plan is made of: one small frozen dataclass per method."""

from dataclasses import dataclass

from autocompress.vocabulary.workload import DType


@dataclass(frozen=True, slots=True, order=True)
class Student:
    """A narrower copy of the whole model: every free group keeps `width` (0 < width < 1) of its channels."""

    width: float

    def __post_init__(self) -> None:
        if not 0 < self.width < 1:
            raise ValueError(f"student width {self.width} is outside (0, 1)")


@dataclass(frozen=True, slots=True, order=True)
class Prune:
    """A group keeps its `keep` most important channels; 0 drops the residual branch that the group feeds."""

    keep: int
    importance: str = "reconstruction"

    def __post_init__(self) -> None:
        if self.keep < 0:
            raise ValueError(f"a group can't keep {self.keep} channels")


@dataclass(frozen=True, slots=True, order=True)
class LowRank:
    """A layer becomes two (svd, spatial) or three (tucker2) thinner ones of the given rank."""

    kind: str
    rank: int

    def __post_init__(self) -> None:
        if self.kind not in ("svd", "spatial", "tucker2"):
            raise ValueError(f"low-rank kind {self.kind!r} is not one of svd, spatial, tucker2")
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} is below 1")


@dataclass(frozen=True, slots=True, order=True)
class Quantize:
    """A layer computes in `dtype`: INT8 is static QDQ, uint8 activations and int8 per-channel weights."""

    dtype: DType


Config = Student | Prune | LowRank | Quantize
