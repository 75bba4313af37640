"""Student widths: uniform, snapped, and combined with pruning by the smaller width."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autocompress.compression.build import plan_kernels, restructure, widths
from autocompress.compression.methods import methods
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.methods.student import (
    CHANNEL_STEP,
    WIDTHS,
    Student,
    StudentMethod,
    student_keep,
    with_students,
)
from autocompress.compression.plan import WHOLE_MODEL, Plan, Step
from autocompress.graph.kernels import kernels_of
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.types import Graph
from autocompress.search.space import find_space
from autocompress.vocabulary.errors import TaskError
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.workload import Capabilities
from tests.compression.repair.nets import zoo
from tests.zoo import OptionAResNet

METHOD = StudentMethod()
ANY = Capabilities(frozenset({FP32, INT8}), {FP32: 1})
ZOO = ["resnet", "mobilenet", "shufflenet", "dense", "transformer"]


@pytest.mark.parametrize("name", ZOO)
@given(width=st.floats(0.01, 0.99))
def test_kept_channels_are_snapped_and_fewer_than_before(name: str, width: float) -> None:
    graph = zoo(name).graph
    for group, keep in student_keep(graph, width).items():
        channels, positions = graph.groups[group].channels, len(graph.groups[group].members[0].index[0])
        assert 1 <= keep < channels
        assert abs(keep - width * channels) <= max(CHANNEL_STEP, 1)
        if positions == 1 and channels >= 2 * CHANNEL_STEP:
            assert keep % CHANNEL_STEP == 0


@pytest.mark.parametrize("name", ZOO)
def test_options_fall_and_differ(name: str) -> None:
    graph = zoo(name).graph
    first, *options = METHOD.options(WHOLE_MODEL, graph, ANY)
    assert METHOD.targets(graph) == (WHOLE_MODEL,) and first is None
    found = [option.width for option in options if isinstance(option, Student)]
    assert found == sorted(set(found), reverse=True) and set(found) <= set(WIDTHS)
    kept = [student_keep(graph, width) for width in found]
    assert all(a != b for a, b in pairwise(kept)) and all(kept)


@pytest.mark.parametrize("name", ZOO)
def test_predicted_kernels_are_the_built_models_kernels(name: str) -> None:
    graph = zoo(name).graph
    plan = Plan(graph.fingerprint, (Step(WHOLE_MODEL, Student(0.5)),))
    model = restructure(plan, graph, None)
    apply_exact(model, graph.example_inputs)
    built, predicted = kernels_of(model, graph.example_inputs), plan_kernels(plan, graph)
    rewritten = dict(graph.kernels)
    METHOD.rewrite(rewritten, WHOLE_MODEL, Student(0.5), graph)
    assert rewritten == predicted
    assert {k: v.workload for k, v in built.items()} == {k: v.workload for k, v in predicted.items()}


def test_student_and_pruning_combine_by_the_smaller_width() -> None:
    graph = zoo("resnet").graph
    student = student_keep(graph, 0.75)
    a, b = list(student)[:2]
    steps = (Step(WHOLE_MODEL, Student(0.75)), Step(a, Prune(2)), Step(b, Prune(graph.groups[b].channels - 1)))
    assert widths(Plan(graph.fingerprint, steps), graph) == {**student, a: 2}


def test_a_student_inherits_the_important_channels() -> None:
    statistics = zoo("resnet")
    graph = statistics.graph
    plan = Plan(graph.fingerprint, (Step(WHOLE_MODEL, Student(0.5)),))
    narrow = restructure(plan, graph, statistics)
    kept = statistics.importance("conv1", "reconstruction").topk(4).indices.sort().values
    stem = graph.model.get_submodule("conv1").weight  # type: ignore[union-attr]
    torch.testing.assert_close(narrow.get_submodule("conv1").weight, stem[kept])  # type: ignore[index, arg-type]


def own_students() -> Graph:
    return with_students(zoo("resnet").graph, lambda width: OptionAResNet(width=2 * round(4 * width)))


def test_the_tasks_own_students_are_offered_once_each_and_stand_in_whole() -> None:
    graph = own_students()
    assert METHOD.options(WHOLE_MODEL, graph, ANY) == (None, Student(0.75), Student(0.625))
    step, cut = Step(WHOLE_MODEL, Student(0.625)), Step(next(iter(graph.free_groups)), Prune(1))
    plan = Plan(graph.fingerprint, (step, Step("conv1", Quantize(INT8)), cut))
    assert plan_kernels(Plan(graph.fingerprint, (step,)), graph) == graph.students[0.625].kernels
    model = restructure(plan, graph, zoo("resnet"))
    apply_exact(model, graph.example_inputs)
    built, predicted = kernels_of(model, graph.example_inputs), plan_kernels(plan, graph)
    shapes = {name: kernel.with_workload(dtype=FP32).workload for name, kernel in predicted.items()}
    assert {name: kernel.workload for name, kernel in built.items()} == shapes
    assert [k for k, v in predicted.items() if v.workload.dtype == INT8] == ["conv1"]


def test_the_tasks_own_students_come_out_the_same_every_time() -> None:
    a, b = own_students(), own_students()
    assert [s.fingerprint for s in a.students.values()] == [s.fingerprint for s in b.students.values()]


def test_everything_but_the_formats_of_its_layers_is_void_in_a_student_of_the_tasks_own() -> None:
    graph = own_students()
    space = find_space(graph, methods(), ANY)
    strongest = space.plan({d.name: len(d.options) - 1 for d in space.decisions})
    layers = graph.students[0.625].layers
    assert {type(s.config) for s in strongest.steps} == {Student, Quantize}
    assert {s.target for s in strongest.steps} == {WHOLE_MODEL, *layers}
    shorter = with_students(zoo("resnet").graph, lambda width: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)))
    apart = find_space(shorter, methods(), ANY)
    assert apart.elsewhere == {"1"} and apart.plan({"quantize:1": 1}).steps == ()
    assert {s.target for s in apart.plan({"student:model": 1, "quantize:1": 1, "quantize:conv1": 1}).steps} == {
        WHOLE_MODEL, "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        (lambda width: 1 / 0, r"Task.student\(0.875\) fails: ZeroDivisionError"),
        (lambda width: "narrow", "returns a str"),
        (lambda width: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)), r"answers with shape \(2, 4\)"),
        (lambda width: nn.Sequential(nn.Flatten(), nn.Linear(7, 5)), "can't stand in for the model"),
        (lambda width: OptionAResNet(width=16), "more multiplications than the model itself"),
        (lambda width: OptionAResNet(), "whatever the width"),
    ],
)
def test_a_student_that_cannot_stand_in_is_told(factory: Callable[[float], nn.Module], told: str) -> None:
    with pytest.raises(TaskError, match=told):
        with_students(zoo("resnet").graph, factory)
