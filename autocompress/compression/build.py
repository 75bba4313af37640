"""From a plan to a model: the shapes alone (to price it), the float model (to train it), the final one (to ship it)."""

import copy

from torch.fx import GraphModule

from autocompress.compression.methods import method_of
from autocompress.compression.methods.method import Approach, Finishing, Scope
from autocompress.compression.narrowing import narrow_kernels
from autocompress.compression.plan import Plan, Step
from autocompress.compression.repair.sequential import refit
from autocompress.compression.repair.statistics import Statistics
from autocompress.compression.workspace import Workspace
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.types import Graph
from autocompress.vocabulary.errors import BuildError
from autocompress.vocabulary.workload import Kernel


def standing(plan: Plan, graph: Graph) -> tuple[Plan, Graph]:
    """The plan and the graph it is about: where another model stands in, that model's, with the number formats of the
    layers it has; everything else was decided about the original and is void."""
    found = (method_of(type(step.config)).stand_in(step.config, graph) for step in plan.steps)
    own = next((other for other in found if other is not None), None)
    if own is None:
        return plan, graph
    steps = tuple(
        step
        for step in plan.steps
        if method_of(type(step.config)).approach is Approach.FORMAT and step.target in own.layers
    )
    return Plan(own.fingerprint, steps), own


def widths(plan: Plan, graph: Graph) -> dict[str, int]:
    """Channels that each narrowed group keeps; decisions about one group combine by the smallest number."""
    return _divided(plan, graph)[0]


def _divided(plan: Plan, graph: Graph) -> tuple[dict[str, int], list[Step], list[Step]]:
    """The widths that all narrowing steps come to, these steps, and the other ones."""
    kept: dict[str, int] = {}
    narrowing: list[Step] = []
    others: list[Step] = []
    for step in plan.steps:
        found = method_of(type(step.config)).widths(step.target, step.config, graph)
        for group, keep in found.items():
            kept[group] = min(keep, kept.get(group, keep))
        (narrowing if found else others).append(step)
    return kept, narrowing, others


def plan_kernels(plan: Plan, graph: Graph) -> dict[str, Kernel]:
    """The kernels a plan leads to, from shapes alone: no weights are touched. Decisions about what is gone are void."""
    plan, graph = standing(plan, graph)
    kernels = dict(graph.kernels)
    kept, _, others = _divided(plan, graph)
    narrow_kernels(kernels, graph, kept)
    for method, configs in Plan(plan.fingerprint, tuple(others)).by_method():
        method.rewrite_all(kernels, configs, graph)
    return kernels


def restructure(plan: Plan, graph: Graph, statistics: Statistics | None, repaired: bool = True) -> GraphModule:
    """The float model of a plan, repaired (unless told not to) but not trained: normalisation kept, all trainable."""
    plan, graph = standing(plan, graph)
    work = Workspace(copy.deepcopy(graph.model), graph, statistics, repaired)
    _, narrowing, others = _divided(plan, graph)
    for step in narrowing:
        method_of(type(step.config)).apply(work, step.target, step.config)
    work.settle()
    present = {name for name, _ in work.model.named_modules()}
    for step in others:
        method = method_of(type(step.config))
        if method.scope is not Scope.LAYER or step.target in present:
            method.apply(work, step.target, step.config)
    if statistics is not None and repaired and work.changed:
        refit(work.model, graph, work.kept, statistics.targets())
    return work.model


def finalize(
    model: GraphModule, plan: Plan, graph: Graph, statistics: Statistics | None, ranges: str = "mse"
) -> GraphModule:
    """A copy of a restructured (and perhaps trained) model, exactly rewritten and quantised as the plan says.

    `ranges` is how the ranges of int8 activations are chosen (see ranges.choose).
    """
    plan, graph = standing(plan, graph)
    final = copy.deepcopy(model).eval()
    apply_exact(final, graph.example_inputs)
    for method, configs in plan.by_method():
        method.finish(final, configs, Finishing(graph, statistics, ranges))
    return final


def build(plan: Plan, graph: Graph, statistics: Statistics | None = None) -> GraphModule:
    """The plan's model, ready for export. The empty plan gives the original's outputs."""
    if plan.fingerprint != graph.fingerprint:
        raise BuildError(f"the plan is for model {plan.fingerprint}, this is {graph.fingerprint}: trace that model")
    return finalize(restructure(plan, graph, statistics), plan, graph, statistics)
