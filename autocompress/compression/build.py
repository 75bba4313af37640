"""From a plan to a model: the shapes alone (to price it), the float model (to train it), the final one (to ship it)."""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule

from autocompress.compression.methods.configs import LowRank, Prune, Quantize, Student
from autocompress.compression.methods.lowrank import LowRankMethod
from autocompress.compression.methods.prune import narrow_kernels
from autocompress.compression.methods.quantize import insert_fake_quant
from autocompress.compression.methods.student import student_keep
from autocompress.compression.plan import WHOLE_MODEL, Plan
from autocompress.compression.repair.bias_correction import correct_biases
from autocompress.compression.repair.least_squares import repair
from autocompress.compression.repair.sequential import refit
from autocompress.graph.cut import cut, drop_branch
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.types import Graph
from autocompress.task.batches import subset
from autocompress.vocabulary.errors import BuildError
from autocompress.vocabulary.workload import DType, Kernel

if TYPE_CHECKING:
    from autocompress.compression.repair.statistics import Statistics

CORRECTION_SAMPLES = 64
"""Calibration samples that biases are corrected on: means need few."""


@dataclass(slots=True)
class Workspace:
    """A model under construction; methods edit it in stage order.

    `statistics` may be None: then channels are kept by position and nothing is repaired, which is enough to time it.
    `repaired` is False where other weights will be loaded anyway: the same channels are kept, as they are.
    """

    model: GraphModule
    graph: Graph
    statistics: "Statistics | None"
    repaired: bool = True
    widths: dict[str, int] = field(default_factory=dict)
    importances: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)

    def narrow(self, group: str, keep: int, importance: str = "reconstruction") -> None:
        """The group shall keep at most this many channels; several calls keep the least."""
        self.widths[group] = min(keep, self.widths.get(group, keep))
        self.importances[group] = importance

    def settle(self) -> None:
        """Cuts once for all narrowings, then repairs what reads the cut channels."""
        for group, width in self.widths.items():
            branch = self.graph.groups[group].branch
            if width == 0 and branch is None:
                raise BuildError(f"group {group} can't go to zero: no residual branch vanishes with it")
            if width == 0 and branch is not None:
                drop_branch(self.model, self.graph.branches[branch])
        narrowed = {g: w for g, w in self.widths.items() if 0 < w < self.graph.groups[g].channels}
        self.kept = {group: self._most_important(group, width) for group, width in narrowed.items()}
        cut(self.model, self.graph, self.kept)
        if self.statistics is not None and self.kept and self.repaired:
            repair(self.model, self.graph, self.kept, self.statistics)

    def _most_important(self, group: str, width: int) -> list[int]:
        if self.statistics is None:
            return list(range(width))
        scores = self.statistics.importance(group, self.importances[group])
        return sorted(torch.topk(scores, width).indices.tolist())


def standing(plan: Plan, graph: Graph) -> tuple[Plan, Graph]:
    """The plan and the graph it is about: where the task's own student stands in, that student's, with the number
    formats of the layers it has; everything else was decided about the original and is void."""
    student = plan.configs(Student).get(WHOLE_MODEL)
    if student is None or student.width not in graph.students:
        return plan, graph
    own = graph.students[student.width]
    steps = tuple(s for s in plan.steps if isinstance(s.config, Quantize) and s.target in own.layers)
    return Plan(own.fingerprint, steps), own


def widths(plan: Plan, graph: Graph) -> dict[str, int]:
    """Channels that each narrowed group keeps; a student and a pruning of one group combine by the smaller number."""
    result: dict[str, int] = {}
    student = plan.configs(Student).get(WHOLE_MODEL)
    if student is not None:
        result.update(student_keep(graph, student.width))
    for group, prune in plan.configs(Prune).items():
        result[group] = min(prune.keep, result.get(group, prune.keep))
    return result


def plan_kernels(plan: Plan, graph: Graph) -> dict[str, Kernel]:
    """The kernels a plan leads to, from shapes alone: no weights are touched. Decisions about what is gone are void."""
    plan, graph = standing(plan, graph)
    kernels = dict(graph.kernels)
    narrow_kernels(kernels, graph, widths(plan, graph))
    low_rank = LowRankMethod()
    for layer, config in plan.configs(LowRank).items():
        if layer in kernels:
            low_rank.rewrite(kernels, layer, config, graph)
    decided = plan.configs(Quantize)
    if decided:
        for name, kernel in kernels.items():
            config = decided.get(kernel.layer)
            if config is not None and kernel.workload.dtype is not config.dtype:
                kernels[name] = kernel.with_workload(dtype=config.dtype)
    return kernels


def restructure(plan: Plan, graph: Graph, statistics: "Statistics | None", repaired: bool = True) -> GraphModule:
    """The float model of a plan, repaired (unless told not to) but not trained: normalisation kept, all trainable."""
    plan, graph = standing(plan, graph)
    work = Workspace(copy.deepcopy(graph.model), graph, statistics, repaired)
    importances: dict[str, Any] = {group: prune.importance for group, prune in plan.configs(Prune).items()}
    for group, width in widths(plan, graph).items():
        work.narrow(group, width, importances.get(group, "reconstruction"))
    work.settle()
    low_rank = LowRankMethod()
    present = {name for name, _ in work.model.named_modules()}
    for layer, config in plan.configs(LowRank).items():
        if layer in present:
            low_rank.apply(work, layer, config)
    if statistics is not None and repaired and (work.widths or plan.configs(LowRank)):
        refit(work.model, graph, work.kept, statistics.targets())
    return work.model


def finalize(
    model: GraphModule, plan: Plan, graph: Graph, statistics: "Statistics | None", ranges: str = "mse"
) -> GraphModule:
    """A copy of a restructured (and perhaps trained) model, exactly rewritten and quantised as the plan says.

    `ranges` is how the ranges of int8 activations are chosen (see ranges.choose). Given statistics, the biases of int8
    layers then take back what rounding shifted on average.
    """
    plan, graph = standing(plan, graph)
    final = copy.deepcopy(model).eval()
    apply_exact(final, graph.example_inputs)
    int8 = {layer for layer, config in plan.configs(Quantize).items() if config.dtype is DType.INT8}
    if not int8:
        return final
    unrounded = copy.deepcopy(final)
    batches = [inputs for inputs, _ in statistics.batches] if statistics else [graph.example_inputs]
    insert_fake_quant(final, int8, batches, graph.example_inputs, ranges)
    if statistics is not None:
        correct_biases(final, unrounded, subset(statistics.batches, CORRECTION_SAMPLES), int8)
    return final


def build(plan: Plan, graph: Graph, statistics: "Statistics | None" = None) -> GraphModule:
    """The plan's model, ready for export. The empty plan gives the original's outputs."""
    if plan.fingerprint != graph.fingerprint:
        raise BuildError(f"the plan is for model {plan.fingerprint}, this is {graph.fingerprint}: trace that model")
    return finalize(restructure(plan, graph, statistics), plan, graph, statistics)
