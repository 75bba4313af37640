"""A profile's error in closed form."""

from types import SimpleNamespace
from typing import Any

import pytest

from autocompress.profiles.accuracy import accuracy, accuracy_of
from autocompress.vocabulary.errors import ProfileError
from autocompress.vocabulary.workload import Latency


def pair(predicted: float, measured: float) -> tuple[Latency, float]:
    return Latency(predicted, 0.92 * predicted, 1.08 * predicted, 1.0), measured


def test_exact_predictions_have_no_error() -> None:
    found = accuracy([pair(1.0, 1.0), pair(2.0, 2.0)])
    assert (found.models, found.mape, found.within_5, found.covered) == (2, 0.0, 1.0, 1.0)
    assert found.spearman == pytest.approx(1.0)


def test_shares_count_models() -> None:
    found = accuracy([pair(1.0, 1.0), pair(1.04, 1.0), pair(1.09, 1.0), pair(1.5, 1.0)])
    assert found.mape == pytest.approx((0.04 + 0.09 + 0.5) / 4)
    assert (found.within_5, found.within_10, found.covered) == (0.5, 0.75, 0.5)


def test_reversed_predictions_correlate_at_minus_one() -> None:
    assert accuracy([pair(1.0, 2.0), pair(2.0, 1.0)]).spearman == pytest.approx(-1.0)


def test_one_model_has_no_rank() -> None:
    assert accuracy([pair(1.0, 2.0)]).spearman == 0.0


def test_a_profile_without_held_out_models_can_not_be_judged() -> None:
    profile: Any = SimpleNamespace(name="p", held_out=list)
    with pytest.raises(ProfileError, match="no held-out models"):
        accuracy_of(profile)
