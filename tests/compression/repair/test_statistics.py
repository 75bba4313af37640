"""Gram matrices against the explicit product of what the layers see."""

import pytest
import torch
from torch import nn

from autocompress.compression.matrices import input_patches, output_rows
from autocompress.compression.repair.statistics import collect
from autocompress.vocabulary.errors import TaskError
from tests.compression.repair.nets import chain, images, known, traced, zoo


def explicit(module: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    rows = nn.functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
    rows = rows.transpose(1, 2).flatten(0, 1).double()
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    return rows.T @ rows / len(rows)


def test_a_gram_matrix_is_the_mean_outer_product_of_the_patches() -> None:
    statistics = known(chain(), samples=8)
    model = statistics.graph.model
    x = torch.cat([inputs[0] for inputs, _ in statistics.batches])
    first, second = model.get_submodule("first"), model.get_submodule("second")
    torch.testing.assert_close(statistics.gram("first"), explicit(first, x), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        inner = torch.relu(model.get_submodule("norm")(first(x)))
    torch.testing.assert_close(statistics.gram("second"), explicit(second, inner), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"dilation": 2}, {"stride": 3}, {"padding": "same"}, {"padding": (2, 0)}])
def test_every_kind_of_window_is_followed(options: dict[str, object]) -> None:
    """The rows times the weight, plus the bias, are the layer's outputs."""
    torch.manual_seed(0)
    module, x = nn.Conv2d(2, 3, (3, 5), **options), torch.randn(2, 2, 11, 13)  # type: ignore[arg-type]
    for chosen in (None, torch.tensor([0, 5, 2])):
        rows = input_patches(module, x, chosen)
        found = rows @ module.weight.flatten(1).T + module.bias
        torch.testing.assert_close(found, output_rows(module, module(x), chosen))


def test_sampled_positions_estimate_the_same_matrix() -> None:
    """With plenty of samples only some positions of each are taken, drawn anew for every batch."""
    graph = traced(chain())
    many = [batch for seed in range(4) for batch in images(128, seed)]
    sampled = collect(graph, many).gram("first")
    exact = explicit(graph.model.get_submodule("first"), torch.cat([x for x, _ in many]))  # type: ignore[arg-type]
    assert sampled is not None
    assert (sampled - exact).abs().max() < 0.25
    assert not torch.allclose(sampled, exact)


def test_the_zoo_has_matrices_where_one_weight_meets_every_patch() -> None:
    mobilenet, dense, transformer = zoo("mobilenet"), zoo("dense"), zoo("transformer")
    assert mobilenet.gram("depthwise") is None
    assert mobilenet.gram("project").shape == (49, 49)  # type: ignore[union-attr]
    assert dense.gram("up") is None
    assert transformer.gram("down").shape == (65, 65)  # type: ignore[union-attr]


def test_too_wide_layers_and_unknown_names_have_none() -> None:
    graph = traced(chain())
    statistics = collect(graph, images(8), max_dim=27)
    assert set(statistics.grams) == {"first", "last"}
    assert statistics.gram("nowhere") is None


def test_only_so_many_samples_are_kept() -> None:
    statistics = collect(traced(chain()), images(20), samples=13)
    assert sum(len(targets) for _, targets in statistics) == 13


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(TaskError, match="empty"):
        collect(traced(chain()), [])


def test_importances_are_computed_once() -> None:
    statistics = known(chain())
    assert statistics.importance("first", "taylor") is statistics.importance("first", "taylor")
    assert statistics.gate_gradients() is statistics.gate_gradients()
    assert statistics.targets(8) is statistics.targets(8)
