"""Channel groups are right per channel, proven, and frozen with a reason where they are not."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from autocompress.graph import trace
from autocompress.graph.check import check_group
from autocompress.graph.cut import cut
from autocompress.graph.double import in_double
from autocompress.graph.silence import silence
from autocompress.graph.types import Graph
from tests.zoo import MODELS, OptionAResNet, make


@pytest.fixture(scope="module")
def resnet() -> Graph:
    model, inputs = make("resnet")
    return trace(model, inputs)


def positions(graph: Graph, group: str, target: str, axis: int) -> list[int]:
    members = graph.groups[group].members
    found = next(m for m in members if (m.target, m.tensor, m.axis) == (target, "weight", axis))
    return [p for channel in found.index for p in channel]


def test_option_a_shortcut_ties_each_stage_to_the_middle_of_the_next(resnet: Graph) -> None:
    """Stage widths 8, 16, 32: channel c of a stage meets c + C/4 of the next (C channels there)."""
    assert positions(resnet, "conv1", "conv1", 0) == list(range(8))
    assert positions(resnet, "conv1", "layer2.0.conv2", 0) == [c + 4 for c in range(8)]
    assert positions(resnet, "conv1", "layer3.0.conv2", 0) == [c + 12 for c in range(8)]
    assert positions(resnet, "layer2.0.conv2", "layer2.0.conv2", 0) == [0, 1, 2, 3, 12, 13, 14, 15]
    assert positions(resnet, "layer2.0.conv2", "layer3.0.conv2", 0) == [8, 9, 10, 11, 20, 21, 22, 23]
    assert positions(resnet, "layer3.0.conv2", "layer3.0.conv2", 0) == [*range(8), *range(24, 32)]


def test_published_widths_tie_channel_c_to_c_plus_8_of_32() -> None:
    graph = trace(OptionAResNet(n=1, width=16), torch.randn(1, 3, 8, 8))
    assert positions(graph, "conv1", "layer2.0.conv2", 0) == [c + 8 for c in range(16)]
    assert positions(graph, "conv1", "layer3.0.conv2", 0) == [c + 24 for c in range(16)]


def test_inner_groups_of_residual_blocks_may_vanish_and_others_not(resnet: Graph) -> None:
    inner = {name for name, group in resnet.groups.items() if group.branch}
    assert inner == {"layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"}


def test_the_check_rejects_a_mis_wired_group(resnet: Graph) -> None:
    """The wiring that shapes alone allow: stage-1 channel c on channel c of stage 2, not c + 4."""
    group = resnet.groups["conv1"]
    members = tuple(
        replace(m, index=tuple((c,) for c in range(group.channels))) if m.target.startswith("layer2.0.conv2") else m
        for m in group.members
    )
    assert check_group(resnet, group) is None
    reason = check_group(resnet, replace(group, members=members))
    assert reason is not None and "outputs differ" in reason


def test_the_check_rejects_a_group_that_misses_a_reader(resnet: Graph) -> None:
    group = resnet.groups["layer1.0.conv1"]
    members = tuple(m for m in group.members if m.target != "layer1.0.conv2")
    assert "does not run" in str(check_group(resnet, replace(group, members=members)))


@pytest.mark.parametrize("name", MODELS)
def test_every_free_group_is_found_free_for_a_reason_and_the_others_say_why(name: str) -> None:
    model, inputs = make(name)
    graph = trace(model, inputs)
    assert graph.free_groups, "each model of the zoo has something to prune"
    assert all(group.frozen for group in graph.groups.values() if group.id not in graph.free_groups)
    outputs = [group for group in graph.groups.values() if group.frozen == "an output of the model"]
    assert sum(group.channels for group in outputs) == 5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_cutting_dead_channels_of_all_groups_at_once_changes_nothing(name: str, seed: int) -> None:
    model, inputs = make(name, seed)
    graph = trace(model, inputs)
    draw = random.Random(seed)
    keep = {
        group.id: sorted(draw.sample(range(group.channels), draw.randint(1, group.channels)))
        for group in graph.free_groups.values()
    }
    silenced, shorter = in_double(graph.model), in_double(graph.model)
    silence(silenced, graph, keep)
    cut(shorter, graph, keep)
    x = inputs.double() if inputs.is_floating_point() else inputs
    torch.testing.assert_close(shorter(x), silenced(x), rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in shorter.parameters()) <= sum(p.numel() for p in graph.model.parameters())


def test_whole_attention_heads_are_one_channel() -> None:
    model, inputs = make("transformer")
    graph = trace(model, inputs)
    heads = graph.groups["qkv"]
    assert heads.channels == 4 and heads.frozen is None
    assert {len(m.index[0]) for m in heads.members if m.target == "qkv"} == {24}
    assert graph.groups["encoder.self_attn.in_proj"].frozen is None
    assert graph.groups["embedding"].frozen is None, "the trunk: norms over it are taken over what is left"


class WithUnknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.relu(self.b(torch.cumsum(self.a(x), 1))))


def test_an_operator_outside_the_table_freezes_what_reaches_it() -> None:
    graph = trace(WithUnknown().eval(), torch.randn(2, 6))
    assert "cumsum" in str(graph.groups["a"].frozen)
    assert graph.groups["b"].frozen is None


def test_the_tasks_patterns_freeze_layers_and_their_groups() -> None:
    model, inputs = make("resnet")
    graph = trace(model, inputs, frozen=["layer1.*"])
    assert graph.layers["layer1.0.conv1"].frozen and not graph.layers["conv1"].frozen
    assert "left alone by the task" in str(graph.groups["layer1.0.conv1"].frozen)
    assert "left alone by the task" in str(graph.groups["conv1"].frozen)
    assert all("layer1" not in branch.layers[0] for branch in graph.branches.values())


class Shortcut(nn.Module):
    """A residual branch beside what `made` makes of the input."""

    def __init__(self, made: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.made = made
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.first = nn.Parameter(torch.randn(1, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.made(self, x) + self.b(torch.relu(self.a(x)))))


SHORTCUTS: dict[str, tuple[bool, Callable[[nn.Module, torch.Tensor], torch.Tensor]]] = {
    "values": (True, lambda m, x: x.sin()),
    "zeros": (False, lambda m, x: torch.zeros(x.shape[0], 6)),
    "new zeros": (False, lambda m, x: x.new_zeros(x.shape[0], 6)),
    "zeros alike": (False, lambda m, x: torch.zeros_like(x)),
    "a repeated parameter": (False, lambda m, x: m.first.expand(x.shape[0], -1) * x.shape[0]),
}


@pytest.mark.parametrize("kind", SHORTCUTS)
def test_only_a_shortcut_that_carries_values_can_stand_in_for_its_branch(kind: str) -> None:
    """Without the branch nothing of the input would be left, only how many samples there are."""
    droppable, made = SHORTCUTS[kind]
    graph = trace(Shortcut(made).eval(), torch.randn(2, 6))
    assert bool(graph.branches) == droppable
    assert any(group.branch for group in graph.groups.values()) == droppable


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(torch.relu(self.a(x)))))


def test_a_layer_that_is_fed_the_input_and_its_own_output_is_frozen_for_that() -> None:
    graph = trace(Twice().eval(), torch.randn(2, 6))
    assert graph.layers["a"].calls == ("a", "a@2") and graph.layers["a"].shared
    assert graph.groups["a"].frozen == "an input of the model"
