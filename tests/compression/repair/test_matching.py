"""Distances between outputs: zero for equals, their closed forms otherwise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.compression.repair.matching import matching_for, mismatch, similarity, soft_targets, squared_error
from autocompress.vocabulary.errors import TaskError


@given(st.integers(0, 10**6), st.floats(0.5, 8))
def test_soft_targets_are_hintons(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 4, generator=generator)
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    assert soft_targets(student, teacher, temperature).item() == pytest.approx(expected.item(), abs=1e-5, rel=1e-4)
    assert soft_targets(teacher + 3, teacher, temperature).item() == pytest.approx(0, abs=1e-5)


def test_positions_are_distributions_of_their_own() -> None:
    student, teacher = torch.randn(2, 2, 3, 4).unbind(0)
    flat = [x.transpose(1, 2).reshape(8, 3) for x in (student, teacher)]
    assert soft_targets(student, teacher).item() == pytest.approx(soft_targets(*flat).item(), rel=1e-5)


def test_squared_error_is_relative_to_the_variance() -> None:
    wanted = torch.tensor([[0.0], [2.0]])
    assert squared_error(wanted + 1, wanted).item() == pytest.approx(1)
    assert squared_error(10 * wanted + 10, 10 * wanted).item() == pytest.approx(1)


def test_what_is_matched_follows_the_targets() -> None:
    assert matching_for(None) is soft_targets
    assert matching_for(torch.tensor([1])) is soft_targets
    assert matching_for(torch.tensor([1.0])) is squared_error


def test_similarity_compares_models_of_any_width() -> None:
    torch.manual_seed(0)
    features = torch.randn(6, 4, 3, 3)
    rotation = torch.linalg.qr(torch.randn(36, 36)).Q
    assert similarity(2 * features.flatten(1) @ rotation, features).item() == pytest.approx(0, abs=1e-9)
    assert similarity(torch.randn(6, 10), features).item() > 0.1


def test_of_several_outputs_all_floating_ones_count_alike() -> None:
    """Labelled ones as distributions, the others by their relative squared error, whatever their scale and width."""
    torch.manual_seed(0)
    labels = torch.zeros(8, dtype=torch.long)
    wanted = (torch.randn(8, 5), torch.ones(8, dtype=torch.long), 1000 * torch.randn(8, 300))
    assert mismatch(wanted, wanted, labels).item() == pytest.approx(0, abs=1e-6)
    first = (wanted[0] + 1e-1 * torch.randn(8, 5), wanted[1] + 1, wanted[2])
    last = (wanted[0], wanted[1], wanted[2] * 1.1)
    distributions, values = soft_targets(first[0], wanted[0]).item(), squared_error(first[0], wanted[0]).item()
    assert mismatch(first, wanted, labels).item() == pytest.approx(distributions / 2, rel=1e-4)
    assert mismatch(first, wanted, None).item() == pytest.approx(values / 2, rel=1e-4)
    assert mismatch(last, wanted, labels).item() == pytest.approx(0.01 * 8 / 7 / 2, rel=0.05)


def test_the_only_floating_output_is_matched_as_if_it_came_by_itself() -> None:
    a, b, ids = torch.randn(8, 5), torch.randn(8, 5), torch.arange(8)
    for targets in (None, torch.zeros(8, dtype=torch.long), torch.zeros(8, 5)):
        assert torch.equal(mismatch((ids, a), (ids, b), targets), mismatch(a, b, targets))


def test_integers_alone_teach_nothing() -> None:
    with pytest.raises(TaskError, match="no floating tensor"):
        mismatch((torch.arange(3),), (torch.arange(3),), None)
