"""The space that is searched: decisions that are predicted to make a model faster on at least one of the devices."""

from collections.abc import Sequence
from functools import cache

from autocompress.compression.build import plan_kernels
from autocompress.compression.methods.method import Method
from autocompress.compression.plan import Plan
from autocompress.graph.types import Graph
from autocompress.profiles import Profile
from autocompress.search.space import Space, find_space, single_plans
from autocompress.vocabulary.workload import Capabilities


def paying_space(
    graph: Graph,
    methods: Sequence[Method],
    capabilities: Capabilities,
    profiles: Sequence[Profile],
    decisions: Sequence[str] | None = None,
) -> Space:
    """What the methods offer, without what slows every device; `slowing` says what that is.

    Kernels of all single decisions are priced at once first, each plan once: one by one takes a predictor far longer.
    """
    everything = find_space(graph, methods, capabilities, decisions=decisions)
    kernels = {plan: plan_kernels(plan, graph) for plan in set(single_plans(everything))}
    for profile in profiles:
        profile.warm(kernels.values())

    @cache
    def seconds(plan: Plan) -> list[float]:
        found = kernels.get(plan) or plan_kernels(plan, graph)
        return [profile.predict(found).seconds for profile in profiles]

    return find_space(graph, methods, capabilities, seconds, decisions)
