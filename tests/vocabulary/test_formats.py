"""The table of number formats is whole, ordered, and what other parts ask; a package adds rows to it."""

from itertools import combinations, pairwise

import pytest

from autocompress.vocabulary.formats import FP32, INT8, TRAINED_IN, format_of, formats, formats_of, mildest

NAMES = [row.name for row in formats()]


def test_every_number_format_has_a_name_of_its_own() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(format_of(row.name) is row for row in formats())


def test_rows_go_from_mildest_to_strongest() -> None:
    first, *_ = formats()
    assert first.is_float and first.name == TRAINED_IN == FP32
    for milder, stronger in pairwise(formats()):
        assert (milder.weight_bits, milder.activation_bits) >= (stronger.weight_bits, stronger.activation_bits)


@pytest.mark.parametrize("count", range(len(NAMES) + 1))
def test_what_is_available_keeps_the_order(count: int) -> None:
    for some in combinations(NAMES, count):
        assert [row.name for row in formats_of(frozenset(some))] == list(some)


def test_the_mildest_format_is_one_that_has_kernels_for_the_layer() -> None:
    everything = frozenset(NAMES)
    for kind in ("conv", "conv_transpose", "linear"):
        assert mildest(everything, kind) is format_of(FP32)
    found = mildest(frozenset({INT8}), "conv")
    assert found is format_of(INT8)
    assert mildest(frozenset({INT8}), "conv_transpose") is None


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown number format 'imt8': did you mean 'int8'"):
        format_of("imt8")


def test_stored_bytes_by_hand() -> None:
    """A 3 x 3 convolution of 16 to 32 channels: weights, then bias; in int8 a float scale and a zero point each too."""
    assert format_of(FP32).stored_bytes(16 * 32 * 9, 32) == 4 * 4608 + 4 * 32
    assert format_of(INT8).stored_bytes(16 * 32 * 9, 32) == 4608 + (4 + 4 + 1) * 32
