"""Transfer: a new device is learnt from a few measurements, given how the same models ran on other devices.

What a new device may be like (see `hypotheses`) is first learnt on the known devices, each in turn taken as new with
the others known (empirical Bayes), then weighed by the evidence of the new device's own measurements. Noise is
Student-t, so that a bad measurement does not decide. The interval's width is calibrated by the same rehearsals and by
how far the new device's own measurements lie off what the others predict.

Without other devices the features alone speak; with one, the new device is that one, scaled, and what is new.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from autocompress.profiles.features import Floats
from autocompress.profiles.hypotheses import Hypotheses, Novelty, Points, Posterior
from autocompress.profiles.surfaces import Rows, Similarity, Surfaces, smooth
from autocompress.vocabulary.errors import ProfileError

COVERAGE = 0.9
MIN_MEASUREMENTS = 2

_REHEARSALS = 6
"""Draws of measurements per known device taken as new."""

_LEARNT_FROM = 10
"""Measurements in the rehearsals that the prior is learnt from."""

_CALIBRATED_WITH = 20
"""Measurements at most in those that calibrate: with more, the scores hardly change."""

_REHEARSAL_MODELS = 200
"""Other models that a rehearsal is judged on."""

_DEVICE_WEIGHT = 5.0
_CLAIM_WEIGHT = 10.0
"""Weights in calibrating an interval: of all rehearsals on one known device, and of what the posterior itself claims; a
measurement of the new device counts 1."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predicted latencies [models], in the unit of the measurements, with intervals of the asked coverage.

    `deviation` is the predicted standard deviation of the log latency that is to be measured.
    """

    latency: Floats
    low: Floats
    high: Floats
    deviation: Floats


class Transfer:
    """What known devices say about a new one.

    `features` [models, d] describe models (which operator is where, or whatever varies between them) and `summary`
    [models, s], if given, the few of them that say most (counts of operators, multiplications): few measurements learn
    from these first. `latencies` [models, devices] hold what known devices took, NaN where not measured, each in any
    unit; zero columns are allowed. `known` [models, devices] may give better-founded latencies of all models (profiles'
    predictions): without it, the measured ones are smoothed over the features. Raises ProfileError.
    """

    def __init__(
        self,
        features: Floats,
        latencies: Floats,
        *,
        summary: Floats | None = None,
        known: Floats | None = None,
        coverage: float = COVERAGE,
        seed: int = 0,
    ) -> None:
        self._features, self._latencies = _checked_table(features, latencies)
        self._summary = None if summary is None else _checked_table(summary, latencies)[0]
        if not 0 < coverage < 1:
            raise ProfileError(
                f"the interval's coverage is {coverage}: it must lie between 0 and 1, such as {COVERAGE}"
            )
        self.coverage = coverage
        self._seed = seed
        self._surfaces = self._given(known)
        self._novelty = Novelty(
            None if self._summary is None else Similarity.over(self._summary), self._surfaces.similarity
        )
        self._points = Points(self._places(self._features, self._summary), self._surfaces.logs, self._rows())
        self._scores: dict[int, Floats] = {}

    @property
    def devices(self) -> int:
        """How many are known."""
        return int(self._latencies.shape[1])

    def known(self) -> Floats:
        """[models, devices]: the known devices' latencies at all models, noise taken out."""
        return np.exp(self._surfaces.logs)

    def choose(self, count: int, candidates: Sequence[int] | None = None) -> list[int]:
        """The models to measure on a new device: greedily those that leave the least variance over all candidates.

        Bayesian A-optimal design (Chaloner & Verdinelli, Statistical Science 1995, section 2.2) under what was learnt
        on the known devices. Without candidates, of the models that any known device ran. Raises ProfileError when
        there are fewer than asked for.
        """
        rows = self._points.rows if candidates is None else np.asarray(candidates, dtype=np.intp)
        if not 0 < count <= len(rows):
            raise ProfileError(f"asked to choose {count} of {len(rows)} models: 1 to {len(rows)} can be chosen")
        covariance, noise = self._hypotheses.moments(self._points.at(rows), self._novelty)
        chosen: list[int] = []
        for _ in range(count):
            variance = np.diag(covariance)
            gain = (covariance**2).sum(0) / (variance + noise)
            gain[chosen] = -np.inf
            best = int(np.argmax(gain))
            chosen.append(best)
            covariance = covariance - np.outer(covariance[best], covariance[best]) / (variance[best] + noise)
        return [int(rows[i]) for i in chosen]

    def onboard(self, measured: Sequence[tuple[int, float]]) -> "NewDevice":
        """The device on which these (model, latency) were measured; of a model measured repeatedly, the median counts.

        Raises ProfileError for latencies that are not positive, models that are not in the table, or fewer than 2.
        """
        rows, logs = _checked_measurements(measured, len(self._features))
        posterior = self._posterior(self._points, self._hypotheses, rows, logs)
        scores = [_Scores(posterior.left_out(), 1.0), _Scores(_CLAIMED, _CLAIM_WEIGHT / len(_CLAIMED))]
        rehearsed = self._rehearsed(len(rows))
        if len(rehearsed):
            scores.append(_Scores(rehearsed, _DEVICE_WEIGHT * self.devices / len(rehearsed)))
        return NewDevice(self, posterior, _quantile(scores, self.coverage))

    def points(self, features: Floats | None, known: Floats | None, summary: Floats | None) -> Points:
        """The table's models, or others, as a posterior takes them. Raises ProfileError."""
        if features is None:
            return self._points
        latencies = np.ones((len(features), 0)) if known is None else np.asarray(known, dtype=np.float64)
        features, latencies = _checked_table(features, latencies)
        summarised = None if summary is None else _checked_table(summary, latencies)[0]
        found = latencies.shape[1], features.shape[1], None if summarised is None else summarised.shape[1]
        wanted = self.devices, self._features.shape[1], None if self._summary is None else self._summary.shape[1]
        if found != wanted or np.isnan(latencies).any():
            raise ProfileError(
                f"models to predict come with (known devices, features, summary) {found}: expected is {wanted}, no NaN"
            )
        return self._points.others(self._places(features, summarised), np.log(latencies))

    def _given(self, known: Floats | None) -> Surfaces:
        if known is None:
            return smooth(self._features, self._latencies)
        if known.shape != self._latencies.shape or not (np.isfinite(known).all() and (known > 0).all()):
            raise ProfileError(
                f"known latencies are {known.shape}: they must be positive and {self._latencies.shape}, as measured"
            )
        return Surfaces(np.log(known), Similarity.over(self._features))

    def _places(self, features: Floats, summary: Floats | None) -> tuple[Floats, Floats | None]:
        novelty = self._novelty
        placed = None if novelty.summary is None or summary is None else novelty.summary.places(summary)
        return novelty.features.places(features), placed

    def _rows(self) -> Rows:
        """Models that say how devices differ: those that any of them ran."""
        measured = np.flatnonzero(np.isfinite(self._latencies).any(1))
        return measured if len(measured) else np.arange(len(self._features))

    def _posterior(self, points: Points, hypotheses: Hypotheses, rows: Rows, logs: Floats) -> Posterior:
        return Posterior(points, self._novelty, hypotheses, rows, logs)

    @cached_property
    def _hypotheses(self) -> Hypotheses:
        """With a prior learnt on the known devices; all alike where there are too few for that. None is dropped: a new
        device may be like none of the known ones."""
        uniform = Hypotheses.uniform(self.devices, self._summary is not None)
        if self.devices < 2:
            return uniform
        return uniform.learnt(np.stack([self._evidence(uniform, device) for device in range(self.devices)]))

    def _evidence(self, uniform: Hypotheses, device: int) -> Floats:
        """[draws, 2, grid]: of a known device, taken as new."""
        others, hypotheses = self._points.without(device), uniform.of(self.devices - 1)
        logs = np.log(self._latencies[:, device])
        found = [
            self._posterior(others, hypotheses, rows, logs[rows]).evidence_by_kind()
            for rows, _ in self._draws(device, _LEARNT_FROM)
        ]
        return np.stack(found)

    def _rehearsed(self, count: int) -> Floats:
        """How many predicted standard deviations other models lay off, on known devices taken as new."""
        count = min(count, _CALIBRATED_WITH)
        if count not in self._scores:
            devices = range(self.devices) if self.devices >= 2 else ()
            found = [scores for device in devices for scores in self._rehearse(device, count)]
            self._scores[count] = np.concatenate(found) if found else np.zeros(0)
        return self._scores[count]

    def _rehearse(self, device: int, count: int) -> list[Floats]:
        others, hypotheses = self._points.without(device), self._hypotheses.pruned().of(self.devices - 1)
        logs = np.log(self._latencies[:, device])
        found = []
        for rows, rest in self._draws(device, count):
            mean, deviation = self._posterior(others, hypotheses, rows, logs[rows]).predict(others.at(rest))
            found.append(np.abs(logs[rest] - mean) / deviation)
        return found

    def _draws(self, device: int, count: int) -> list[tuple[Rows, Rows]]:
        """(models measured, others to judge by), a few times over."""
        generator = np.random.default_rng([self._seed, device, count])
        rows = np.flatnonzero(np.isfinite(self._latencies[:, device]))
        count = min(count, len(rows) - 1)
        orders = [generator.permutation(rows) for _ in range(_REHEARSALS)]
        return [(order[:count], order[count : count + _REHEARSAL_MODELS]) for order in orders]


class NewDevice:
    """A device known by a few measurements; made by `Transfer.onboard`.

    `factor`: predicted standard deviations on either side that make the interval.
    """

    def __init__(self, transfer: Transfer, posterior: Posterior, factor: float) -> None:
        self._transfer = transfer
        self._posterior = posterior
        self.factor = factor

    def predict(
        self, features: Floats | None = None, known: Floats | None = None, summary: Floats | None = None
    ) -> Forecast:
        """Of the table's models, or of others with these features [models, d], latencies on the known devices [models,
        devices], in the table's units, and summary [models, s]. Raises ProfileError."""
        mean, deviation = self._posterior.predict(self._transfer.points(features, known, summary))
        half = self.factor * deviation
        return Forecast(np.exp(mean), np.exp(mean - half), np.exp(mean + half), deviation)


class _Scores(NamedTuple):
    """Standard deviations off, each of the same weight."""

    values: Floats
    weight: float


def _quantile(scores: Sequence[_Scores], level: float) -> float:
    """The smallest value such that `level` of the total weight is not above it."""
    values = np.concatenate([found.values for found in scores])
    weights = np.concatenate([np.full(len(found.values), found.weight) for found in scores])
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(int(np.searchsorted(reached, level)), len(values) - 1)])


def _half_normal(count: int) -> Floats:
    from scipy.special import erfinv

    scores: Floats = math.sqrt(2) * erfinv((np.arange(count) + 0.5) / count)
    return scores


_CLAIMED = _half_normal(200)
"""Scores as they would be if every prediction were Gaussian and right."""


def _checked_table(features: Floats, latencies: Floats) -> tuple[Floats, Floats]:
    features, latencies = np.asarray(features, dtype=np.float64), np.asarray(latencies, dtype=np.float64)
    if features.ndim != 2 or latencies.ndim != 2 or len(features) != len(latencies) or not len(features):
        raise ProfileError(
            f"features are {features.shape} and latencies {latencies.shape}: they must be models by features, and the "
            "same models by devices"
        )
    if not np.isfinite(features).all():
        raise ProfileError(f"{int((~np.isfinite(features)).sum())} features are NaN or infinite: all must be numbers")
    wrong = np.isinf(latencies) | (latencies <= 0)
    if wrong.any():
        model, device = np.argwhere(wrong)[0]
        raise ProfileError(
            f"known device {device} takes {latencies[model, device]} for model {model}: a latency must be positive, or "
            "NaN if it was not measured"
        )
    return features, latencies


def _checked_measurements(measured: Sequence[tuple[int, float]], models: int) -> tuple[Rows, Floats]:
    """(models, log latencies), each model once."""
    found: dict[int, list[float]] = {}
    for model, latency in measured:
        if not 0 <= model < models:
            raise ProfileError(f"model {model} was measured, but the table has models 0 to {models - 1}")
        if not (math.isfinite(latency) and latency > 0):
            raise ProfileError(f"model {model} was measured at {latency}: a latency must be positive, measure it again")
        found.setdefault(int(model), []).append(float(latency))
    if len(found) < MIN_MEASUREMENTS:
        raise ProfileError(
            f"models measured on the new device: {len(found)}, but it takes at least {MIN_MEASUREMENTS}, better 10"
        )
    medians = [float(np.median(times)) for times in found.values()]
    return np.array(list(found), dtype=np.intp), np.log(medians)
