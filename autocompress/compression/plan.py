"""A plan: every decision about one model, with a content hash and JSON both ways."""

import json
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from typing import Any

from autocompress.compression.methods.configs import Config, LowRank, Prune, Quantize, Student
from autocompress.vocabulary.errors import ConfigError, nearest
from autocompress.vocabulary.workload import DType

WHOLE_MODEL = "model"
"""The target of a step that concerns the model as a whole."""

_TYPES: dict[str, type[Config]] = {
    "student": Student,
    "prune": Prune,
    "low_rank": LowRank,
    "quantize": Quantize,
}
_ORDER = {config_type: rank for rank, config_type in enumerate(_TYPES.values())}
_NAMES = {config_type: name for name, config_type in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class Step:
    """One decision: `target` is a group's id, a layer's name or WHOLE_MODEL."""

    target: str
    config: Config


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps for the model with this fingerprint, in the order of stages; equal decisions give equal plans."""

    fingerprint: str
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        ordered = sorted(self.steps, key=lambda step: (_ORDER[type(step.config)], step.target))
        object.__setattr__(self, "steps", tuple(ordered))
        places = [(type(step.config), step.target) for step in ordered]
        if len(places) != len(set(places)):
            raise ValueError("a plan holds two decisions of one method about one target")

    @property
    def key(self) -> str:
        """First 12 hex digits of the SHA-256 of the plan's JSON."""
        return sha256(self.to_json().encode()).hexdigest()[:12]

    def configs(self, config_type: type[Config]) -> dict[str, Any]:
        """Target → config, of one method."""
        return {step.target: step.config for step in self.steps if type(step.config) is config_type}

    def to_json(self) -> str:
        steps = [{"target": s.target, "method": _NAMES[type(s.config)], **asdict(s.config)} for s in self.steps]
        return json.dumps({"fingerprint": self.fingerprint, "steps": steps}, indent=1)

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Raises ConfigError, naming the nearest valid word, for anything that is not a plan."""
        try:
            document = json.loads(text)
            return Plan(document["fingerprint"], tuple(_decode(step) for step in document["steps"]))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a plan: {error}; plans are the files in RUN/plans") from error


def _decode(step: dict[str, Any]) -> Step:
    values = dict(step)
    target, method = values.pop("target"), values.pop("method")
    if method not in _TYPES:
        raise ConfigError(f"unknown method {method!r} in a plan: {nearest(method, _TYPES)}")
    config_type = _TYPES[method]
    valid = {field.name for field in fields(config_type)}
    for name in values.keys() - valid:
        raise ConfigError(f"unknown key {name!r} of method {method!r}: {nearest(name, valid)}")
    if "dtype" in values:
        values["dtype"] = DType(values["dtype"])
    return Step(target, config_type(**values))
