"""The card of an exported model: what is promised of it, and by what evidence; a JSON file next to the model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autocompress.compression.plan import Plan
from autocompress.task.task import Score
from autocompress.vocabulary.errors import RunError
from autocompress.vocabulary.workload import Artifact, Latency

SUFFIX = ".card.json"


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a file's outputs are from the torch model's on the same real inputs.

    Differences are absolute, in the unit of the outputs; `rms_difference` is held against `tolerance` (see verify.py).
    """

    samples: int
    max_difference: float
    rms_difference: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """False also where an output is not a number."""
        return self.rms_difference <= self.tolerance and self.max_difference < float("inf")


@dataclass(frozen=True, slots=True)
class Card:
    """`predicted` is the price before building, `measured` the time beside the original, which took `baseline`.

    `outputs` are the torch model's for the first samples of the validation split, so that the file can be checked later
    and elsewhere without that model: a row for each sample, of which the first `widths[0]` values are the first
    output's, and so on; `rounding` is the effect of the 8-bit tensors' rounding on each output (see sensitivity.py).
    `providers` counts the executed nodes of each backend.
    """

    id: str
    plan: Plan
    artifact: Artifact
    validation: Score
    test: Score | None
    predicted: Latency
    measured: Latency | None
    baseline: Latency | None
    parity: Parity
    outputs: tuple[tuple[float, ...], ...]
    providers: Mapping[str, int]
    environment: Mapping[str, str]
    widths: tuple[int, ...]
    rounding: tuple[float, ...]

    @property
    def speedup(self) -> float | None:
        """Measured time of the original as plainly exported over the model's own, from the same process."""
        return self.baseline.seconds / self.measured.seconds if self.baseline and self.measured else None

    def to_json(self) -> str:
        document = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        return json.dumps({**document, "speedup": self.speedup}, indent=1)

    @staticmethod
    def from_json(text: str, folder: Path) -> "Card":
        """`folder` is where the card's file lies; the artifact is looked for beside it. Raises RunError if damaged."""
        try:
            values = json.loads(text)
            values.pop("speedup", None)
            return Card(**{name: _typed(name, value, folder) for name, value in values.items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"not a model's card in {folder}: {error}; export the model again") from error


def card_path(artifact: Path) -> Path:
    """`model.onnx` → `model.card.json`."""
    return artifact.with_suffix(SUFFIX)


def write_card(card: Card) -> Path:
    path = card_path(card.artifact.path)
    path.write_text(card.to_json())
    return path


def read_card(artifact: Path) -> Card:
    """The card beside an artifact. Raises RunError if there is none."""
    path = card_path(artifact)
    if not path.is_file():
        raise RunError(f"{artifact} has no card {path.name!r} beside it; export with `autocompress export` to get both")
    return Card.from_json(path.read_text(), path.parent)


def _plain(value: Any) -> Any:
    if isinstance(value, Plan):
        return json.loads(value.to_json())
    if isinstance(value, Artifact):
        return {**asdict(value), "path": value.path.name}
    if isinstance(value, (Score, Latency, Parity)):
        return asdict(value)
    return dict(value) if isinstance(value, Mapping) else value


def _typed(name: str, value: Any, folder: Path) -> Any:
    if value is None:
        return None
    if name == "plan":
        return Plan.from_json(json.dumps(value))
    if name == "artifact":
        return Artifact(**{**value, "path": folder / Path(value["path"]).name})
    if name == "outputs":
        return tuple(tuple(row) for row in value)
    if name in ("widths", "rounding"):
        return tuple(value)
    kind = {"validation": Score, "test": Score, "predicted": Latency, "measured": Latency, "baseline": Latency}.get(
        name
    )
    kind = Parity if name == "parity" else kind
    return kind(**value) if kind else value
