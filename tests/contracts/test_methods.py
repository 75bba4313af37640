"""What every method promises: run over all that are registered, on nets of every kind that they find targets in."""

import copy
import dataclasses
import json

import pytest
import torch

from autocompress.compression.build import build, plan_kernels, restructure
from autocompress.compression.methods import method_of, methods
from autocompress.compression.methods.method import Approach, Method, Scope
from autocompress.compression.plan import WHOLE_MODEL, Plan, Step
from autocompress.graph import trace
from autocompress.graph.kernels import kernels_of
from autocompress.graph.types import Graph
from autocompress.search.space import find_space
from autocompress.vocabulary import plugins
from autocompress.vocabulary.errors import ConfigError
from autocompress.vocabulary.formats import FP32, INT8, formats
from autocompress.vocabulary.precision import is_fixed
from autocompress.vocabulary.workload import Capabilities, Kernel
from tests.zoo import make

NETS = ("resnet", "mobilenet")
NAMES = frozenset(row.name for row in formats())
ANY = Capabilities(NAMES, dict.fromkeys(NAMES, 1))


@pytest.fixture(scope="module", params=NETS)
def graph(request: pytest.FixtureRequest) -> Graph:
    return trace(*make(request.param))


@pytest.fixture(params=plugins.names(plugins.METHODS))
def method(request: pytest.FixtureRequest) -> Method:
    return next(method for method in methods() if method.name == request.param)


def options(method: Method, graph: Graph) -> list[Step]:
    """The options of the first and the last target, and of one between."""
    targets = method.targets(graph)
    some = list(dict.fromkeys((*targets[:1], *targets[len(targets) // 2 :][:1], *targets[-1:])))
    return [Step(t, o) for t in some for o in method.options(t, graph, ANY) if o is not None]


def shapes(kernels: dict[str, Kernel]) -> dict[str, Kernel]:
    return {name: kernel.with_workload(dtype=FP32) for name, kernel in kernels.items()}


def cost(kernels: dict[str, Kernel]) -> float:
    """Bits that arithmetic touches: what formats save, and what shapes do."""
    return sum(k.workload.macs * (8 if k.workload.dtype == INT8 else 32) for k in kernels.values())


def test_those_of_the_core_are_there_in_the_order_of_their_stages() -> None:
    ours = [method.name for method in methods() if type(method).__module__.startswith("autocompress.")]
    assert ours == ["student", "prune", "low_rank", "quantize"]
    assert [method.stage for method in methods()] == sorted(method.stage for method in methods())


def test_some_net_has_targets_for_it(method: Method) -> None:
    assert any(options(method, trace(*make(net))) for net in NETS)


def test_targets_are_what_its_scope_says(method: Method, graph: Graph) -> None:
    known = {Scope.MODEL: {WHOLE_MODEL}, Scope.GROUP: set(graph.free_groups), Scope.LAYER: set(graph.layers)}
    assert set(method.targets(graph)) <= known[method.scope]


def test_the_first_option_leaves_the_target_alone_and_the_others_get_stronger(method: Method, graph: Graph) -> None:
    whole = cost(dict(graph.kernels))
    for target in method.targets(graph):
        first, *others = method.options(target, graph, ANY)
        assert first is None
        costs = [whole, *(cost(plan_kernels(Plan(graph.fingerprint, (Step(target, o),)), graph)) for o in others)]
        assert costs == sorted(costs, reverse=True) and (not others or costs[-1] < whole)


def test_decisions_are_frozen_and_can_be_told_apart(method: Method, graph: Graph) -> None:
    assert dataclasses.is_dataclass(method.config) and method_of(method.config) is not None
    for step in options(method, graph):
        assert type(step.config) is method.config
        assert hash(step.config) == hash(copy.copy(step.config))
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(step.config, dataclasses.fields(step.config)[0].name, None)


def test_a_plan_survives_json(method: Method, graph: Graph) -> None:
    for step in options(method, graph):
        plan = Plan(graph.fingerprint, (step,))
        assert Plan.from_json(plan.to_json()) == plan
        assert json.loads(plan.to_json())["steps"][0]["method"] == method.name


def test_an_unknown_key_of_a_plan_names_the_nearest(method: Method) -> None:
    known = dataclasses.fields(method.config)[0].name
    step = {"target": "x", "method": method.name, f"{known}x": 1}
    with pytest.raises(ConfigError, match=f"unknown key '{known}x' of method '{method.name}': did you mean '{known}'"):
        Plan.from_json(json.dumps({"fingerprint": "f", "steps": [step]}))


def test_values_are_what_optuna_stores(method: Method, graph: Graph) -> None:
    space = find_space(graph, [method], ANY)
    for decision in space.decisions:
        for index, value in enumerate(decision.values):
            stored = decision.distribution.to_external_repr(decision.distribution.to_internal_repr(value))
            assert decision.position(stored) == index
            assert space.from_values(space.values({decision.name: index}))[decision.name] == index
            plan = space.plan({decision.name: index})
            assert space.choice(plan)[decision.name] == index and space.canonical(plan) == plan


def test_what_was_priced_is_what_is_built(method: Method, graph: Graph) -> None:
    for step in options(method, graph)[::3]:
        plan = Plan(graph.fingerprint, (step,))
        built, priced = build(plan, graph), plan_kernels(plan, graph)
        assert shapes(kernels_of(built, graph.example_inputs)) == shapes(priced)
        alone = dict(graph.kernels)
        method.rewrite(alone, step.target, step.config, graph)
        assert alone == priced


def test_the_parameters_that_were_priced_are_those_of_the_model(method: Method, graph: Graph) -> None:
    for step in options(method, graph)[::3]:
        plan = Plan(graph.fingerprint, (step,))
        model = restructure(plan, graph, None)
        weights = [p.numel() for name, p in model.named_parameters() if name.endswith("weight") and p.dim() > 1]
        priced = [k.workload.weights for k in plan_kernels(plan, graph).values() if not is_fixed(k)]
        assert sum(weights) == sum(priced)


def test_building_leaves_the_original_alone(method: Method, graph: Graph) -> None:
    before = copy.deepcopy(graph.model.state_dict())
    for step in options(method, graph)[:1]:
        build(Plan(graph.fingerprint, (step,)), graph)
    assert all(torch.equal(before[name], tensor) for name, tensor in graph.model.state_dict().items())


def test_a_report_can_name_every_decision(method: Method, graph: Graph) -> None:
    for step in options(method, graph):
        label = method.label(step.config)
        assert label.words and len(label.words) <= 24 and "\n" not in label.words
        assert len(label.colour) == 7 and int(label.colour[1:], 16) >= 0
        assert bool(label.kind) is not method.is_idle(step.config)


def test_what_it_makes_void_exists_and_is_not_itself(method: Method, graph: Graph) -> None:
    for step in options(method, graph):
        void = method.void(step.target, step.config, graph)
        assert void.layers <= graph.layers.keys() and void.groups <= graph.groups.keys() - {step.target}
        assert set(method.widths(step.target, step.config, graph)) <= graph.groups.keys()


def test_hardware_with_every_format_forces_nothing(method: Method, graph: Graph) -> None:
    assert all(method.forced(target, graph, ANY) is None for target in method.targets(graph))
    assert isinstance(method.approach, Approach)
