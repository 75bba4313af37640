"""The space of a traced model: names, values, and one plan for every way of saying the same model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, IntDistribution
from torch import nn

from autocompress.compression.methods import methods
from autocompress.compression.methods.lowrank import LowRank
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.methods.student import Student
from autocompress.compression.plan import Plan, Step
from autocompress.graph import trace
from autocompress.search.profiling import sample_plans
from autocompress.search.space import Decision, find_space
from autocompress.vocabulary.formats import FP32, INT8, formats
from autocompress.vocabulary.workload import Capabilities
from tests.search.fake import fake_space
from tests.zoo import make

DEVICE = Capabilities(frozenset({FP32, INT8}), {FP32: 4, INT8: 4})
INT8 = Quantize(INT8)

choices = st.fixed_dictionaries({d.name: st.integers(0, len(d.options) - 1) for d in fake_space().decisions})


@pytest.fixture(scope="module")
def resnet():
    graph = trace(*make("resnet"))
    return graph, find_space(graph, methods(), DEVICE)


def test_every_kind_of_decision_is_found(resnet):
    graph, space = resnet
    assert {decision.method for decision in space.decisions} == {Student, Prune, LowRank, Quantize}
    assert [d.target for d in space.of(Prune)] == [
        g for g in graph.free_groups if len(space.by_name[f"prune:{g}"].options) > 1
    ]
    for decision in space.decisions:
        assert decision.options[0] is None
        assert decision.name == f"{decision.name.split(':')[0]}:{decision.target}"


def test_values_are_the_decisions(resnet):
    _, space = resnet
    for decision in space.of(Prune):
        assert all(o is None or o.keep == v for o, v in zip(decision.options, decision.values, strict=True))
        assert isinstance(decision.distribution, (IntDistribution, CategoricalDistribution))
    assert space.of(Quantize)[0].values == ("fp32", "int8")
    assert all(isinstance(v, str) for v in space.of(LowRank)[0].values)


def test_formats_that_have_no_use_for_a_net_make_its_space_no_larger(resnet):
    """Weight-only formats are for linear layers of many weights."""
    graph, space = resnet
    names = frozenset(row.name for row in formats())
    everything = find_space(graph, methods(), Capabilities(names, dict.fromkeys(names, 4)))
    assert everything.document() == space.document() and list(everything.uniform) == ["int8"]


def test_every_format_that_a_layer_is_offered_is_tried_everywhere():
    """Layers that have no kernels in it stay as they are."""
    model = nn.Sequential(nn.Conv2d(3, 8, 8), nn.Flatten(), nn.Linear(8 * 81, 128))
    graph = trace(model, torch.randn(2, 3, 16, 16))
    names = frozenset(row.name for row in formats())
    space = find_space(graph, methods(), Capabilities(names, {}), decisions=("quantize",))
    steps = {name: space.plan(choice).configs(Quantize) for name, choice in space.uniform.items()}
    assert steps == {
        "int8": {"0": INT8, "2": INT8}, "w8": {"2": Quantize("w8")}, "w4": {"2": Quantize("w4")},
    }  # fmt: skip
    sampled = [plan.configs(Quantize) for plan in sample_plans(space, 8, 0)]
    assert all(found in sampled for found in steps.values())


def test_kinds_may_be_left_out(resnet):
    graph, _ = resnet
    space = find_space(graph, methods(), DEVICE, decisions=("quantize",))
    assert {decision.method for decision in space.decisions} == {Quantize}


def test_factorisations_are_offered_only_where_they_are_faster(resnet):
    graph, everything = resnet
    some = everything.of(LowRank)[0]

    def seconds(plan: Plan) -> list[float]:
        """Only the strongest rank of one layer saves time, and only in int8."""
        ranks = plan.configs(LowRank)
        faster = ranks == {some.target: some.options[-1]} and bool(plan.configs(Quantize))
        return [0.9 if faster else 1.0 + len(ranks)]

    space = find_space(graph, methods(), DEVICE, seconds)
    assert [(d.target, d.options) for d in space.of(LowRank)] == [(some.target, (None, some.options[-1]))]


def test_what_slows_every_device_is_never_offered_and_told(resnet):
    """One layer is slower in int8 everywhere, another on one device only; narrow groups are as slow as wider ones."""
    graph, everything = resnet
    slow, torn = everything.of(Quantize)[:2]
    group = max(everything.of(Prune), key=lambda d: len(d.options))

    def seconds(plan: Plan) -> tuple[float, float]:
        int8, keep = plan.configs(Quantize), plan.configs(Prune)
        base = 10.0 - len(int8) + 1.5 * (slow.target in int8)
        width = keep[group.target].keep if group.target in keep else 1000
        rounded = next(i for i, v in enumerate(group.values) if int(v) <= width) // 2 * -0.1
        others = -0.1 * sum(c.keep for t, c in keep.items() if t != group.target) / 1000
        return base + rounded + others, base + rounded + others + 3.0 * (torn.target in int8)

    space = find_space(graph, methods(), DEVICE, seconds)
    offered = {d.target for d in space.of(Quantize)}
    assert slow.target not in offered and torn.target in offered
    told = {(s.decision, s.value): s.factor for s in space.slowing}
    assert told[slow.name, "int8"] > 1
    assert space.by_name[group.name].values == (group.values[0], *group.values[2::2])
    assert told[group.name, group.values[1]] == pytest.approx(1.0), "no faster than all of its channels"


@given(choices)
def test_plan_to_choice_and_back_is_the_same_plan(choice):
    space = fake_space()
    plan = space.plan(choice)
    assert space.plan(space.choice(plan)) == plan
    assert space.canonical(plan) == plan
    assert space.from_values(space.values(choice)) == choice


@given(choices)
def test_a_canonical_plan_decides_nothing_about_what_is_gone_or_unchanged(choice):
    plan = fake_space().plan(choice)
    dropped = {group for group, config in plan.configs(Prune).items() if config.keep == 0}
    assert not dropped & plan.configs(Quantize).keys()
    if plan.configs(Student):
        assert all(config.keep < 8 for config in plan.configs(Prune).values())


def test_ways_of_saying_the_same_model_give_one_plan():
    space = fake_space()
    first = space.plan({"prune:b0": 4, "quantize:b0": 1})
    assert first == space.plan({"prune:b0": 4}) == space.plan({"prune:b0": 4, "quantize:b1": 0})
    assert space.plan({"student:model": 1, "prune:b1": 2}) == space.plan({"student:model": 1})
    assert space.plan({"student:model": 1, "prune:b1": 3}) != space.plan({"student:model": 1})
    whole = Plan("feed", (Step("b0", Prune(16)), Step("stem", Quantize(FP32))))
    assert space.canonical(whole) == Plan("feed")


def test_a_dropped_branch_takes_its_inner_decisions_with_it(resnet):
    graph, space = resnet
    group = next(g for g in graph.free_groups.values() if g.branch)
    layers = graph.branches[group.branch].layers
    dropping = Step(group.id, Prune(0))
    plan = Plan(graph.fingerprint, (dropping, *(Step(layer, INT8) for layer in layers)))
    assert space.canonical(plan).steps == (dropping,)


def test_options_need_values_of_their_own():
    with pytest.raises(ValueError, match="value of its own"):
        Decision("prune:g", "g", Prune, (None, Prune(4)), (8, 8))
    with pytest.raises(ValueError, match="first option"):
        Decision("prune:g", "g", Prune, (Prune(8), Prune(4)), (8, 4))


def test_sampled_plans_differ_and_repeat_with_the_seed(resnet):
    _, space = resnet
    plans = sample_plans(space, 40, seed=1)
    assert len({plan.key for plan in plans}) == 40
    assert plans == sample_plans(space, 40, seed=1) != sample_plans(space, 40, seed=2)
    assert plans[0].steps == ()
    assert any(config.keep == 0 for plan in plans for config in plan.configs(Prune).values())
    assert any(plan.configs(kind) for plan in plans for kind in (Student, LowRank))
    assert len(sample_plans(fake_space(1), 1000, seed=0)) < 60
