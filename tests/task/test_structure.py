"""Any nesting of containers is flattened to its tensors and built anew, of the same types and in one order."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from autocompress.task.structure import Mismatch, Structure, parts, returned, taken, tensors_of

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Record:
    image: Any
    weight: Any = None


@dataclass(frozen=True)
class Frozen:
    a: Any
    b: Any


@dataclass
class Output(OrderedDict[str, Any]):
    """As transformers' ModelOutput: a dataclass whose fields that are not None are items too."""

    logits: Any = None
    hidden_states: Any = None
    past_key_values: Any = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, max_size=3)
    return st.one_of(
        some,
        some.map(tuple),
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3).map(OrderedDict),
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3).map(UserDict),
        st.tuples(inner, inner).map(lambda two: Pair(*two)),
        st.tuples(inner, inner).map(lambda two: Record(*two)),
        st.tuples(inner, inner).map(lambda two: Frozen(*two)),
        st.tuples(inner, inner).map(lambda two: Output(*two)),
    )


leaves = st.one_of(
    st.builds(lambda n: torch.full((n,), float(n)), st.integers(0, 4)),
    st.sampled_from([None, True, 3, "text", 0.5, torch.float32]),
)
values = st.recursive(leaves, containers, max_leaves=8)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a is b
    below = parts(a)
    if below is None:
        return type(a) is type(b) and bool(a == b)
    found = parts(b)
    return type(a) is type(b) and found is not None and list(below) == list(found) and all(
        same(below[key], found[key]) for key in below
    )  # fmt: skip


def shuffled(value: Any) -> Any:
    """The same value with every dict's keys in the opposite order."""
    if type(value) in (dict, OrderedDict, UserDict):
        return type(value)({key: shuffled(inner) for key, inner in reversed(list(value.items()))})
    if type(value) in (list, tuple):
        return type(value)(map(shuffled, value))
    return value


@given(values)
def test_any_value_is_built_anew_as_it_was(value: Any) -> None:
    structure = taken(value)
    tensors = structure.flat(value)
    assert same(structure.restored(iter(tensors)), value)
    assert len(structure.paths("x")) == len(tensors)
    out = returned(value)
    assert len(tensors_of(out, value)) == len(out.paths())


@given(values)
def test_the_order_of_keys_means_nothing(value: Any) -> None:
    structure = taken(value)
    there, back = structure.flat(value), structure.flat(shuffled(value))
    assert len(there) == len(back) and all(a is b for a, b in zip(there, back, strict=True))


@given(values, values)
def test_another_structure_is_refused_or_has_as_many_tensors(value: Any, other: Any) -> None:
    """Whatever passes gives as many tensors as the structure has: none is lost, none is made up."""
    structure = taken(value)
    try:
        assert len(structure.flat(other)) == len(structure.paths())
    except Mismatch as error:
        assert str(error)


x = torch.zeros(2)


@pytest.mark.parametrize(
    ("value", "other", "line"),
    [
        ({"a": x, "b": x}, {"a": x}, r"lacks 'b'; expected 'a', 'b'"),
        ({"a": x}, {"a": x, "c": x}, r"has 'c' too many; expected 'a'"),
        ({"a": {"b": x}}, {"a": {"c": x}}, r"a lacks 'b' and has 'c' too many"),
        ({"a": x}, x, r"it is a tensor of shape \(2,\) instead of a dict"),
        ({"a": x}, {"a": [x]}, "a is a list instead of a tensor"),
        ((x, True), (x, 1), "1 is 1, in example_inputs it is True"),
        ((x, None), (x, x), r"1 is a tensor of shape \(2,\), in example_inputs it is None"),
        ([x, x], [x], "lacks 1"),
        (Record(x), Record(x, 3), "weight is 3"),
    ],
)
def test_what_is_otherwise_is_named(value: Any, other: Any, line: str) -> None:
    with pytest.raises(Mismatch, match=line):
        taken(value).flat(other)


def test_what_is_none_may_be_missing() -> None:
    structure = taken({"a": x, "mask": None})
    assert structure.flat({"a": x}) == structure.flat({"mask": None, "a": x, "other": None}) == [x]


@pytest.mark.parametrize("value", [{"a": {1, 2}}, object(), [object]])
def test_what_can_not_be_built_anew_is_no_input(value: Any) -> None:
    with pytest.raises(Mismatch, match="a model's inputs are tensors"):
        taken(value)


def test_a_sparse_input_is_refused() -> None:
    with pytest.raises(Mismatch, match=r"\.to_dense"):
        taken({"adjacency": torch.eye(2).to_sparse()})


def test_caches_and_strange_objects_are_left_out_of_outputs() -> None:
    output = Output(x, (x, 2 * x), past_key_values=((x, x),))
    structure = returned((output, object()))
    tensors = tensors_of(structure, (output, object()))
    assert structure.paths() == ["0_logits", "0_hidden_states_0", "0_hidden_states_1"]
    restored, strange = structure.restored(iter(tensors))
    assert type(restored) is Output and list(restored) == ["logits", "hidden_states"]
    assert restored.logits is x and restored["hidden_states"] == (x, tensors[2])
    assert restored.past_key_values is None and strange is None


def test_outputs_of_another_structure_are_refused() -> None:
    with pytest.raises(Mismatch, match="None where it returned a tensor"):
        tensors_of(returned({"a": x}), {"b": x})
    assert tensors_of(Structure(None, constant=3), 4) == [], "a constant may differ"
