"""Distances between outputs: zero for equals, their closed forms otherwise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.compression.repair.matching import matching_for, similarity, soft_targets, squared_error


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
