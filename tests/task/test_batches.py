"""Batches keep inputs and targets together, whatever form the user's loader gives them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.task.batches import as_one, batches, chunks, endless, size, subset
from autocompress.vocabulary.errors import TaskError


def split(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of these sizes; sample i holds i as input and as target."""
    samples = torch.arange(sum(sizes))
    return list(zip(samples.float().split(list(sizes)), samples.split(list(sizes)), strict=True))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 30))
def test_a_subset_is_the_first_samples(sizes: list[int], count: int) -> None:
    taken = subset(split(*sizes), count)
    expected = torch.arange(min(count, sum(sizes)))
    assert torch.equal(torch.cat([targets for _, targets in taken]), expected)
    assert torch.equal(as_one(taken)[0], expected.float())


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(1, 4))
def test_chunks_hold_the_same_samples_in_order(sizes: list[int], most: int) -> None:
    pieces = list(chunks(split(*sizes), most))
    assert max(map(size, pieces)) <= most
    assert torch.equal(torch.cat([targets for _, targets in pieces]), torch.arange(sum(sizes)))


def test_several_inputs_stay_aligned() -> None:
    x = torch.arange(4)
    (inputs, targets), *rest = subset([((x, 10 * x), x)], 3)
    assert not rest
    assert torch.equal(inputs[1], 10 * inputs[0]) and torch.equal(inputs[0], targets)


def test_missing_targets_pass_through() -> None:
    assert subset([(torch.zeros(3, 2), None)], 2)[0][1] is None


def test_endless_begins_again() -> None:
    stream = endless(split(2, 1))
    assert [int(next(stream)[1][0]) for _ in range(5)] == [0, 2, 0, 2, 0]


@pytest.mark.parametrize("loader", [[], iter(())])
def test_an_empty_split_is_refused(loader: object) -> None:
    with pytest.raises(TaskError, match="empty"):
        list(batches(loader))  # type: ignore[arg-type]


def test_a_loader_that_ends_for_good_is_refused() -> None:
    stream = endless(iter(split(1)))
    next(stream)
    with pytest.raises(TaskError, match="only once"):
        next(stream)


def test_batches_without_labels_are_refused() -> None:
    with pytest.raises(TaskError, match="pairs"):
        list(batches([torch.zeros(2, 3)]))  # type: ignore[list-item]
