"""RUN.toml and command-line values, parsed once into typed settings."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from autocompress.search.objective import Objective
from autocompress.vocabulary import plugins
from autocompress.vocabulary.errors import ConfigError, nearest

SAMPLERS = ("auto", "nsga2", "random", "tpe")

RANGES = ("mse", "percentile", "minmax")
"""How the range of an int8 activation is chosen, see ranges.py."""

DEFAULT_TIME_S = 600.0
"""A search without limits on time or trials takes this long."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def _one_of(*valid: str) -> AfterValidator:
    return AfterValidator(lambda asked: _known(asked, valid))


def _known(asked: str, valid: Sequence[str]) -> str:
    if asked not in valid:
        raise ValueError(f"{asked!r} is not known: {nearest(asked, valid)}")
    return asked


def _method_names() -> tuple[str, ...]:
    return plugins.names(plugins.METHODS)


def _as_tuple(value: Any) -> Any:
    """One name or path may stand by itself."""
    several = [value] if isinstance(value, (str, Path)) else value
    return tuple(str(v) if isinstance(v, Path) else v for v in several) if isinstance(several, (list, tuple)) else value


def _as_objective(value: Any) -> Any:
    if value not in list(Objective):
        raise ValueError(f"{value!r} is not known: {nearest(str(value), map(str, Objective))}")
    return value


MethodName = Annotated[str, AfterValidator(lambda asked: _known(asked, _method_names()))]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shares(_Section):
    """How the time of a search is divided. What one stage leaves over goes to the later ones in proportion."""

    setup: Share = 0.10
    trials: Share = 0.25
    fine_tuning: Share = 0.55
    measuring: Share = 0.10

    @model_validator(mode="after")
    def _whole(self) -> "Shares":
        total = self.setup + self.trials + self.fine_tuning + self.measuring
        if not 0.99 <= total <= 1.01:
            raise ValueError(f"the shares add up to {total:.3g}; they must add up to 1")
        return self


class Samples(_Section):
    """How many samples each kind of look at a model takes.

    `calibration` feeds repair and ranges, `sensitivity` the single-decision probes, `subset` the score of every trial.
    """

    calibration: Count = 256
    sensitivity: Count = 256
    subset: Count = 1000


class WarmStart(_Section):
    """What is tried before the sampler proposes: `latencies` is how many rungs each ladder of plans has, `share` how
    much of the trials' time the single-decision probes may take."""

    enabled: bool = True
    latencies: Count = 8
    share: Share = 0.4


class FineTuning(_Section):
    """Distillation from the original. All of `candidates` get a first tranche, `finalists` of them a long one, and as
    many plans that lie in the gaps between them a last one; fewer where the time would not let each learn for as long
    as building and scoring it takes.

    `first_share` and `gap_share` are the first and the last tranches' share of the time; `time_s` is the whole time
    where the search has no limit. The rest is the recipe (repair/distill.py): a positive `feature_weight` also matches
    features at residual adds.
    """

    enabled: bool = True
    candidates: Count = 6
    finalists: Count = 3
    first_share: Share = 0.3
    gap_share: Share = 0.2
    time_s: Positive = 300.0
    learning_rate: Positive = 0.08
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warm_up: Share = 0.05
    temperature: Positive = 4.0
    final_temperature: Positive = 4.0
    label_weight: Share = 0.0
    feature_weight: Annotated[float, Field(ge=0)] = 0.0
    clip: Positive = 1.0
    precision: Annotated[str, _one_of("bf16", "fp32")] = "bf16"

    @model_validator(mode="after")
    def _room_for_the_long(self) -> "FineTuning":
        if self.first_share + self.gap_share > 1:
            raise ValueError(f"first_share and gap_share add up to {self.first_share + self.gap_share:.3g}; at most 1")
        return self


class Measuring(_Section):
    """`candidates` is how many of the best are timed, exported and verified in the end; `rounds` as in measure()."""

    candidates: Count = 12
    rounds: Count = 60


class Settings(_Section):
    """All that a search resolves. Times in seconds, `budget_ms` in milliseconds as people give it.

    `max_drop` is in the score's own unit: 0.01 is one point of accuracy. `sampler` "auto" is the
    one that measured best, see search/samplers.py. `objective` says what several profiles mean, see objective.py.
    """

    time_s: Positive | None = None
    trials: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Count = 1
    storage: str | None = None
    budget_ms: Positive | None = None
    speedup: Positive | None = None
    max_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_size_bytes: Count | None = None
    device: str = "ort:cpu"
    profile: Names = ()
    objective: Annotated[Objective, BeforeValidator(_as_objective)] = Objective.WORST
    decisions: Annotated[tuple[MethodName, ...], BeforeValidator(_as_tuple)] = Field(default_factory=_method_names)
    sampler: Annotated[str, _one_of(*SAMPLERS)] = "auto"
    importance: str = "reconstruction"
    ranges: Annotated[str, _one_of(*RANGES)] = "mse"
    shares: Shares = Shares()
    samples: Samples = Samples()
    warm_start: WarmStart = WarmStart()
    fine_tuning: FineTuning = FineTuning()
    measuring: Measuring = Measuring()

    @model_validator(mode="after")
    def _one_budget(self) -> "Settings":
        if self.budget_ms is not None and self.speedup is not None:
            raise ValueError("budget_ms and speedup are two ways to say one thing; give one of them")
        return self

    @property
    def latencies(self) -> int:
        """How many latencies are minimised."""
        return max(1, len(self.profile)) if self.objective is Objective.EACH else 1

    @property
    def limit_s(self) -> float | None:
        """Seconds that the search may take; None if only the number of trials ends it."""
        return DEFAULT_TIME_S if self.time_s is None and self.trials is None else self.time_s


def load_settings(path: Path | None = None, **given: Any) -> Settings:
    """Settings from a TOML file, if any, overridden by the given values that are not None.

    Raises ConfigError for a file that is missing or no TOML, and for an unknown key or a value that can't be.
    """
    return _checked({**(_read(path) if path else {}), **_told(given)}, str(path) if path else "settings")


def override(settings: Settings, **given: Any) -> Settings:
    """A copy with the given values that are not None. Raises ConfigError as `load_settings` does."""
    return _checked({**settings.model_dump(exclude_unset=True), **_told(given)}, "settings")


def to_document(settings: Settings) -> dict[str, Any]:
    """Every setting, defaults too, as TOML can hold it: what is None is left out."""
    document: dict[str, Any] = settings.model_dump(mode="json", exclude_none=True)
    return document


def from_document(document: Mapping[str, Any], origin: str) -> Settings:
    """Raises ConfigError, naming `origin`, for what `to_document` would not write."""
    return _checked(document, origin)


def _told(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"can't read the configuration {str(path)!r}: {error.strerror}; give a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _checked(values: Mapping[str, Any], origin: str) -> Settings:
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_mistake(error)}") from error


def _mistake(error: ValidationError) -> str:
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        *sections, key = (str(part) for part in found["loc"])
        return f"unknown key {place!r}: {nearest(key, _keys(sections))}"
    if found["type"] == "value_error":
        return f"{place}: {found['ctx']['error']}" if place else str(found["ctx"]["error"])
    return f"{place} = {found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}"


def _keys(sections: list[str]) -> list[str]:
    model: Any = Settings
    for section in sections:
        model = model.model_fields[section].annotation
    return list(model.model_fields)
