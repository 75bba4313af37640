"""How well a profile predicts: its error on whole models that nothing was fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from autocompress.profiles import Profile
from autocompress.vocabulary.errors import ProfileError
from autocompress.vocabulary.workload import Latency


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares are in [0, 1]. `mape` is the mean of error over measured time, `covered` the share of models whose
    measured time lies in the predicted interval, `spearman` the correlation of ranks (0 below two models).
    """

    models: int
    mape: float
    within_5: float
    within_10: float
    spearman: float
    covered: float


def accuracy_of(profile: Profile) -> Accuracy:
    """On the profile's own held-out models. Raises ProfileError if it has none."""
    rows = profile.held_out()
    if not rows:
        raise ProfileError(f"profile {profile.name!r} has no held-out models to be judged by; measure it again")
    return accuracy([(latency, row.ratio * profile.reference_s) for row, latency in rows])


def accuracy(pairs: Sequence[tuple[Latency, float]]) -> Accuracy:
    """Of (predicted, measured seconds) pairs, at least one."""
    predicted = np.array([latency.seconds for latency, _ in pairs])
    measured = np.array([seconds for _, seconds in pairs])
    error = np.abs(predicted - measured) / measured
    ranked = len(pairs) > 1 and np.ptp(predicted) > 0 and np.ptp(measured) > 0
    inside = [latency.low <= seconds <= latency.high for latency, seconds in pairs]
    return Accuracy(
        len(pairs),
        float(error.mean()),
        float((error <= 0.05).mean()),
        float((error <= 0.10).mean()),
        float(spearmanr(predicted, measured).statistic) if ranked else 0.0,
        float(np.mean(inside)),
    )
