"""Student widths: uniform, snapped, and combined with pruning by the smaller width."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.build import plan_kernels, restructure, widths
from autocompress.export.rewrites import apply_exact
from autocompress.graph.kernels import kernels_of
from autocompress.methods.configs import Prune, Student
from autocompress.methods.student import CHANNEL_STEP, WIDTHS, StudentMethod, student_keep
from autocompress.plan import WHOLE_MODEL, Plan, Step
from autocompress.workload import Capabilities, DType
from tests.repair.nets import zoo

METHOD = StudentMethod()
ANY = Capabilities(frozenset(DType), {DType.FP32: 1})
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
