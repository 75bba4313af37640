"""The space that is searched: decisions that are predicted to make a model faster on at least one of the devices."""

from collections.abc import Sequence

from autocompress.compression.build import plan_kernels
from autocompress.compression.methods.method import Method
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

    All single decisions are priced at once, each plan once: one by one takes a predictor far longer.
    """
    plans = list(dict.fromkeys(single_plans(find_space(graph, methods, capabilities, decisions=decisions))))
    kernels = [plan_kernels(plan, graph) for plan in plans]
    latencies = zip(*(profile.predict_all(kernels) for profile in profiles), strict=True)
    seconds = {plan: [latency.seconds for latency in each] for plan, each in zip(plans, latencies, strict=True)}
    return find_space(graph, methods, capabilities, seconds.__getitem__, decisions)
