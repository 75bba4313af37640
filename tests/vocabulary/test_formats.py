"""The table of number formats is whole, ordered, and what other parts ask."""

from itertools import combinations, pairwise

import pytest

from autocompress.vocabulary.formats import FORMATS, formats_of
from autocompress.vocabulary.workload import DType


def test_every_number_format_is_a_row_of_its_own_name() -> None:
    assert FORMATS.keys() == set(DType)
    assert all(row.dtype is dtype for dtype, row in FORMATS.items())


def test_rows_go_from_mildest_to_strongest() -> None:
    first, *_ = FORMATS.values()
    assert first.is_float and first.dtype is DType.FP32
    for milder, stronger in pairwise(FORMATS.values()):
        assert (milder.weight_bits, milder.activation_bits) >= (stronger.weight_bits, stronger.activation_bits)


@pytest.mark.parametrize("count", range(len(DType) + 1))
def test_what_is_available_keeps_the_order(count: int) -> None:
    for some in combinations(DType, count):
        found = [row.dtype for row in formats_of(frozenset(some))]
        assert set(found) == set(some) and found == [dtype for dtype in FORMATS if dtype in some]


def test_stored_bytes_by_hand() -> None:
    """A 3 x 3 convolution of 16 to 32 channels: weights, then bias; in int8 a float scale and a zero point each too."""
    assert FORMATS[DType.FP32].stored_bytes(16 * 32 * 9, 32) == 4 * 4608 + 4 * 32
    assert FORMATS[DType.INT8].stored_bytes(16 * 32 * 9, 32) == 4608 + (4 + 4 + 1) * 32
