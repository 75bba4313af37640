"""Which Optuna sampler proposes plans.

Measured by benchmarks/samplers.py (synthetic nets with 10 and 20 blocks, 100 and 120 trials): after the same warm
start, multivariate TPE ends at 0.999 of the best hypervolume known, NSGA-II and random search stay at the warm start's
0.993 to 0.997. Without a warm start they reach 0.45, 0.34 and 0.39 at 22 parameters, and nothing that counts at 42:
what is tried first matters far more than who proposes next. A sampler of neighbours of the front came between (0.996)
and was left out.
"""

from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from autocompress.vocabulary.errors import ConfigError, nearest

AUTO = "tpe"

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
