"""Nested values as flat lists of tensors and back: the shape of what a model takes or returns, without its tensors."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

CACHES = frozenset({"past_key_values", "cache_params"})
"""Where models return what they would read again when called for the next token: no output of a single call."""

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, Enum, torch.dtype, torch.device, torch.layout)


class Mismatch(Exception):
    """A value that has not the expected structure; the message says where, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Structure:
    """A tree whose leaves are tensors and constants.

    `kind` is the container's type (Tensor for a tensor, None for a constant). `keys` name the parts: positions, names
    of fields, keys of a mapping. Tensors are flattened in the order of the keys here, whatever that of another value.
    """

    kind: type | None
    keys: tuple[Any, ...] = ()
    parts: tuple["Structure", ...] = ()
    constant: Any = None

    def flat(self, value: Any, path: str = "") -> list[Tensor]:
        """The tensors of a value of this structure. Raises Mismatch.

        Tuples and lists stand for one another, and so do mappings; a key that holds None may as well be missing.
        """
        if self.kind is Tensor:
            if not isinstance(value, Tensor):
                raise Mismatch(f"{_place(path)} is {_shown(value)} instead of a tensor")
            return [value]
        if self.kind is None:
            self._require_constant(value, path)
            return []
        found = parts(value)
        if found is None:
            raise Mismatch(f"{_place(path)} is {_shown(value)} instead of a {self.kind.__name__}")
        self._require_keys(found, path)
        return [t for key, part in self.named_parts() for t in part.flat(found.get(key), _below(path, key))]

    def restored(self, tensors: Iterator[Tensor]) -> Any:
        """A value of this structure with the next of these tensors."""
        if self.kind is Tensor:
            return next(tensors)
        if self.kind is None:
            return self.constant
        return _built(self.kind, {k: p.restored(tensors) for k, p in self.named_parts()})

    def paths(self, path: str = "") -> list[str]:
        """Where each tensor stands, as a name: keys joined by "_"."""
        if self.kind is Tensor:
            return [path]
        below = (part.paths(f"{path}_{key}" if path else str(key)) for key, part in self.named_parts())
        return [found for paths in below for found in paths]

    def named_parts(self) -> Iterator[tuple[Any, "Structure"]]:
        return zip(self.keys, self.parts, strict=True)

    def _require_constant(self, value: Any, path: str) -> None:
        if type(value) is not type(self.constant) or value != self.constant:
            raise Mismatch(f"{_place(path)} is {_shown(value)}, in example_inputs it is {_shown(self.constant)}")

    def _require_keys(self, found: Mapping[Any, Any], path: str) -> None:
        own = dict(self.named_parts())
        missing = [key for key, part in own.items() if key not in found and not part._is_none]
        extra = [key for key, value in found.items() if key not in own and value is not None]
        if missing or extra:
            what = [f"lacks {_listed(missing)}"] if missing else []
            what += [f"has {_listed(extra)} too many"] if extra else []
            raise Mismatch(f"{_place(path)} {' and '.join(what)}; expected {_listed(self.keys)}")

    @property
    def _is_none(self) -> bool:
        return self.kind is None and self.constant is None


def taken(value: Any, path: str = "") -> Structure:
    """The structure of a model's input. Raises Mismatch for what is neither a tensor, a constant nor made of them."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise Mismatch(f"{_place(path)} is a tensor of layout {value.layout}; give it dense, with .to_dense()")
        return Structure(Tensor)
    if isinstance(value, _CONSTANTS):
        return Structure(None, constant=value)
    found = parts(value)
    if found is None:
        raise Mismatch(
            f"{_place(path)} is {_shown(value)}; a model's inputs are tensors, None, numbers, text, and tuples, lists, "
            "dicts and dataclasses of them"
        )
    return Structure(type(value), tuple(found), tuple(taken(v, _below(path, k)) for k, v in found.items()))


def returned(value: Any) -> Structure:
    """The structure of a model's output; caches, and objects that hold no tensors we could see, become None."""
    if isinstance(value, Tensor):
        return Structure(Tensor)
    found = None if isinstance(value, _CONSTANTS) else parts(value)
    if found is None:
        return Structure(None, constant=value if isinstance(value, _CONSTANTS) else None)
    below = (Structure(None) if k in CACHES else returned(v) for k, v in found.items())
    return Structure(type(value), tuple(found), tuple(below))


def tensors_of(structure: Structure, value: Any) -> list[Tensor]:
    """The tensors of a model's output. Raises Mismatch; constants, which may differ from call to call, have no say."""
    if structure.kind is Tensor:
        if not isinstance(value, Tensor):
            raise Mismatch(f"the model returns {_shown(value)} where it returned a tensor for example_inputs")
        return [value]
    found = (parts(value) or {}) if structure.kind else {}
    return [t for key, part in structure.named_parts() for t in tensors_of(part, found.get(key))]


def parts(value: Any) -> dict[Any, Any] | None:
    """The parts of a container by key; None if it is none that can be built anew."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (tuple, list)):
        return dict(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    return None


def _built(kind: type, found: dict[Any, Any]) -> Any:
    build: Any = kind
    if is_dataclass(kind):
        given = {field.name for field in fields(kind) if field.init}
        made = build(**{name: value for name, value in found.items() if name in given})
        for name in found.keys() - given:
            object.__setattr__(made, name, found[name])
        return made
    if hasattr(kind, "_fields"):
        return build(*found.values())
    if issubclass(kind, (tuple, list)):
        return build(found.values())
    return defaultdict(None, found) if issubclass(kind, defaultdict) else build(found)


def _place(path: str) -> str:
    return path or "it"


def _below(path: str, key: Any) -> str:
    return f"{path}[{key!r}]" if path else str(key)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return repr(value)[:60] if isinstance(value, _CONSTANTS) else f"a {type(value).__name__}"


def _listed(keys: Any) -> str:
    return ", ".join(map(repr, keys)) or "nothing"
