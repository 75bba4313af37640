"""What a compression method is: all that plans, the search and the report ask of one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, Protocol, Self

from torch.fx import GraphModule

from autocompress.compression.narrowing import narrow_kernels
from autocompress.compression.repair.statistics import Statistics
from autocompress.compression.workspace import Workspace
from autocompress.graph.types import Graph
from autocompress.vocabulary.errors import ConfigError, nearest
from autocompress.vocabulary.workload import Capabilities, Kernel

Value = int | float | str
"""What a parameter is in Optuna's storage: channels kept, a width, a number format, a factorisation."""


class Config(Protocol):
    """A decision: a small frozen dataclass whose fields JSON can hold."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class Scope(StrEnum):
    """What a method's targets are."""

    MODEL = "model"
    GROUP = "group"
    LAYER = "layer"


class Approach(StrEnum):
    """How the search goes about a method's decisions before any sampler proposes.

    MODEL: another model instead; tried as it is, never probed. AMOUNT: how much of a target stays; probed at its end
    and its middle, solved for with all others. REPLACEMENT: a target becomes something else; probed at both ends,
    solved for too, rare among sampled plans. FORMAT: what a layer computes in; tried everywhere at once, everything
    else is decided on top of it, and it holds for the layers of a model that stands in, too.
    """

    MODEL = "model"
    AMOUNT = "amount"
    REPLACEMENT = "replacement"
    FORMAT = "format"


class Kind(StrEnum):
    """What a method's parameter is to a sampler; one that is not evenly spaced is categorical all the same."""

    INTEGER = "integer"
    FLOAT = "float"
    CATEGORICAL = "categorical"


@dataclass(frozen=True, slots=True)
class Void:
    """What a decision takes with it: nothing about these layers and groups is decided any more."""

    layers: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Label:
    """How a report names a decision: in words, and as a kind with a colour ("" for what changes nothing).

    Kinds of several decisions about one target are joined, unless one stands `alone`.
    """

    words: str
    kind: str
    colour: str = "#ced4da"
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Finishing:
    """What a model is finished with: `ranges` is how ranges of activations are chosen (see ranges.choose)."""

    graph: Graph
    statistics: Statistics | None
    ranges: str


class Method(ABC):
    """A kind of decision. `name` is that in files, on the command line and of the entry point; methods are applied in
    the order of `stage`: 0 what model, 100 how wide, 200 what layers are made of, 300 what they compute in."""

    name: ClassVar[str]
    config: ClassVar[type[Config]]
    stage: ClassVar[int]
    scope: ClassVar[Scope]
    approach: ClassVar[Approach]
    kind: ClassVar[Kind] = Kind.CATEGORICAL

    @abstractmethod
    def targets(self, graph: Graph) -> tuple[str, ...]:
        """Groups, layers or WHOLE_MODEL that the method can decide about."""

    @abstractmethod
    def options(self, target: str, graph: Graph, capabilities: Capabilities) -> Sequence[Any]:
        """Decisions from mildest to strongest; None, always first, leaves the target alone."""

    @abstractmethod
    def value(self, target: str, config: Any, graph: Graph) -> Value:
        """The parameter that stands for an option, None among them; no two of a target's are equal."""

    @abstractmethod
    def label(self, config: Any) -> Label: ...

    def widths(self, target: str, config: Any, graph: Graph) -> Mapping[str, int]:
        """Group → the most channels that it keeps; a decision that says so is applied by cutting, together with all
        others that do. 0 drops the residual branch that the group feeds."""
        return {}

    def rewrite(self, kernels: dict[str, Kernel], target: str, config: Any, graph: Graph) -> None:
        """Edits the kernels' shapes in place, as if the decision were applied: no weights, microseconds."""
        narrow_kernels(kernels, graph, self.widths(target, config, graph))

    def rewrite_all(self, kernels: dict[str, Kernel], configs: Mapping[str, Any], graph: Graph) -> None:
        """`rewrite` for all targets, those that are gone already among them."""
        for target, config in configs.items():
            self.rewrite(kernels, target, config, graph)

    def apply(self, work: Workspace, target: str, config: Any) -> None:
        """Edits the workspace's model in place, while it is float and may still be trained."""
        for group, keep in self.widths(target, config, work.graph).items():
            work.narrow(group, keep)

    def finish(self, model: GraphModule, configs: Mapping[str, Any], finishing: Finishing) -> None:
        """Edits a model in place that is exactly rewritten and not trained any more, for all targets together."""
        return

    def void(self, target: str, config: Any, graph: Graph) -> Void:
        """What the decision makes void, itself left out."""
        return Void()

    def is_idle(self, config: Any) -> bool:
        """Whether the decision leaves everything as it is, though it is one."""
        return False

    def forced(self, target: str, graph: Graph, capabilities: Capabilities) -> Any:
        """The decision that hardware leaves no choice about, None where there is a choice."""
        return None

    def stand_in(self, config: Any, graph: Graph) -> Graph | None:
        """The model that is built instead of the original, if the decision is about that."""
        return None

    def using(self, importance: str) -> Self:
        """The method, ranking channels by this importance if it ranks any."""
        return self

    def encode(self, config: Any) -> dict[str, Any]:
        """The decision as JSON holds it."""
        return asdict(config)

    def decode(self, values: Mapping[str, Any]) -> Config:
        """Raises ConfigError for an unknown key, ValueError or TypeError for a value that can't be."""
        valid = {field.name for field in fields(self.config)}
        for name in values.keys() - valid:
            raise ConfigError(f"unknown key {name!r} of method {self.name!r}: {nearest(name, valid)}")
        return self.config(**values)
