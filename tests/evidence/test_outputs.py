"""Every output of a model is on its card and has to agree, each on its own scale."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.evidence.outputs import MOST_VALUES, Rows, rows
from autocompress.evidence.verify import parity, worst_parity

draw = np.random.default_rng(0)
NO_EFFECT = (0.0, 0.0, 0.0)


@given(st.integers(1, 5), st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=4))
def test_rows_hold_every_sample_s_values_of_every_output(samples: int, shapes: list[list[int]]) -> None:
    outputs = [draw.normal(size=(samples, *shape)).astype(np.float32) for shape in shapes]
    found = rows(outputs, samples)
    assert found.values.shape == (samples, sum(found.widths))
    for output, part in zip(outputs, found.parts(), strict=True):
        assert np.array_equal(part, output.reshape(samples, -1).astype(np.float64))
    assert Rows(np.array(found.as_lists()), found.widths).widths == found.widths


def test_what_has_no_samples_stands_in_each_row_and_windows_go_to_their_sample() -> None:
    scalar, shared, windows = np.float32(3), np.ones((1, 2), np.float32), np.arange(8, dtype=np.float32)[:, None]
    found = rows([np.asarray(scalar), shared, windows], 4)
    assert found.widths == (1, 2, 2)
    assert found.values[2].tolist() == [3, 1, 1, 4, 5]


def test_integers_stand_back_behind_floats() -> None:
    floats, integers = np.ones((2, 3), np.float32), np.arange(2)
    assert rows([integers, floats], 2).widths == (3,)
    assert rows([integers], 2).values.tolist() == [[0], [1]]


def test_of_many_values_an_even_part_is_kept() -> None:
    found = rows([np.arange(3 * MOST_VALUES, dtype=np.float32)[None]], 1)
    assert found.widths[0] <= MOST_VALUES and found.values[0, -1] > 2.9 * MOST_VALUES


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_each_output_has_to_agree_on_its_own_scale(wrong: int) -> None:
    """Mutation: a relative error that is nothing beside the largest output is seen in the one that it is in."""
    outputs = [scale * draw.normal(size=(4, 5)).astype(np.float32) for scale in (1e-4, 1.0, 1e4)]
    changed = [array * (1.01 if i == wrong else 1) for i, array in enumerate(outputs)]
    expected, found = rows(outputs, 4), rows(changed, 4)
    assert worst_parity(expected, expected, NO_EFFECT, 5).agrees
    assert not worst_parity(expected, found, NO_EFFECT, 5).agrees
    if wrong == 0:
        assert parity(expected.values, found.values, 0.0, 5).agrees, "taken together, it would be lost"


def test_another_number_of_values_never_agrees() -> None:
    expected = rows([np.ones((2, 2), np.float32), np.ones((2, 1), np.float32)], 2)
    for outputs in ([np.ones((2, 1), np.float32), np.ones((2, 2), np.float32)], [np.ones((2, 3), np.float32)]):
        found = worst_parity(expected, rows(outputs, 2), NO_EFFECT, 1)
        assert not found.agrees and found.rms_difference == math.inf
