"""Which Optuna sampler proposes plans.

TO BE MEASURED
"""

from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from autocompress.errors import ConfigError, nearest

AUTO = "nsga2"

_POPULATION = 24
"""Smaller than Optuna's 50: a search has a few hundred trials, and warm starts fill the first generation."""


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler of that name; "auto" is the one that measured best. Raises ConfigError for an unknown name."""
    asked = AUTO if name == "auto" else name
    if asked not in _SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}: {nearest(name, ('auto', *_SAMPLERS))}")
    return _SAMPLERS[asked](seed)


_SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=_POPULATION),
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True),
}


def quiet() -> None:
    """Optuna says nothing below a warning: the search has its own progress."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
