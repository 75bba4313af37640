"""A plan: every decision about one model, with a content hash and JSON both ways."""

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from autocompress.compression.methods import method_named, method_of
from autocompress.compression.methods.method import Config, Method
from autocompress.vocabulary.errors import ConfigError

WHOLE_MODEL = "model"
"""The target of a step that concerns the model as a whole."""


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
        ordered = sorted(self.steps, key=_place)
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

    def by_method(self) -> list[tuple[Method, dict[str, Any]]]:
        """What each method decides, target → config, in the order of stages."""
        types = dict.fromkeys(type(step.config) for step in self.steps)
        return [(method_of(config_type), self.configs(config_type)) for config_type in types]

    def to_json(self) -> str:
        steps = [_encode(step) for step in self.steps]
        return json.dumps({"fingerprint": self.fingerprint, "steps": steps}, indent=1)

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Raises ConfigError, naming the nearest valid word, for anything that is not a plan."""
        try:
            document = json.loads(text)
            return Plan(document["fingerprint"], tuple(_decode(step) for step in document["steps"]))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a plan: {error}; plans are the files in RUN/plans") from error


def _place(step: Step) -> tuple[int, str, str]:
    method = method_of(type(step.config))
    return method.stage, method.name, step.target


def _encode(step: Step) -> dict[str, Any]:
    method = method_of(type(step.config))
    return {"target": step.target, "method": method.name, **method.encode(step.config)}


def _decode(step: dict[str, Any]) -> Step:
    values = dict(step)
    target, method = values.pop("target"), values.pop("method")
    return Step(target, method_named(method).decode(values))
