"""Hypotheses about a new device: how its log latency may vary over models, weighed by a few measurements.

Each is a Gaussian process around the known devices' mean or around one of them. Its covariance has a scale of its own,
what the known devices differ by from each other (probabilistic PCA; Tipping & Bishop, JRSS B 1999), and what is new and
follows from the models' features. All are kept and averaged over, each as likely as prior and evidence make it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from autocompress.profiles.features import Floats
from autocompress.profiles.robust import NOISE_VARIANCE, Posteriors, observe
from autocompress.profiles.surfaces import Rows, Similarity

_OFFSET = 4.0
"""Prior standard deviation of a device's mean log latency around that of what was measured: as good as free."""

_AMPLITUDE = 0.3
"""Prior standard deviation of how much more or less than the known devices a new one tells models apart."""

_SPREADS = (0.1, 0.3, 1.0, 2.0)
"""How a new device differs from its centre, in units of how the known devices differ."""

_NOVELTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Standard deviations of log latency that only features explain."""

_NOVELTIES_ALONE = (0.03, 0.1, 0.2, 0.4, 0.8)
"""The same without known devices, when it is all there is."""

_DETAIL = 0.1
"""Where novelty follows the summary, what the other features may add to it, in its units."""

_NOISES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.3)
"""Scales of the noise of a log latency."""

_NEGLIGIBLE = 2e-3
"""Probability of a hypothesis, relative to the likeliest's after measuring, below which it is dropped."""

_ROUNDS = 15

SPREAD, BY_SUMMARY, BY_FEATURES, NOISE = range(4)
"""Columns of a grid of hypotheses."""


@dataclass(frozen=True, slots=True)
class Novelty:
    """Covariance of what no known device explains, by a summary of the features (if there is one) and by all."""

    summary: Similarity | None
    features: Similarity


class Points:
    """Models as the hypotheses see them.

    `places`: where they are for each similarity; `centres` [models, centres]: what a device's log latency may lie
    around, the known devices' mean, then each of them; `deviations` [models, devices]: of the known devices from their
    mean. Latencies are less their averages over `rows`.
    """

    def __init__(
        self, places: tuple[Floats, Floats | None], logs: Floats, rows: Rows, offsets: Floats | None = None
    ) -> None:
        self.places, self.rows = places, rows
        self._logs = logs
        self._offsets: Floats = logs[rows].mean(0) if offsets is None else offsets
        centred = logs - self._offsets
        devices = centred.shape[1]
        mean = centred.mean(1, keepdims=True) if devices else np.zeros((len(logs), 1))
        self.centres = np.hstack([mean, centred]) if devices > 1 else mean
        self.deviations = (centred - mean) / math.sqrt(max(devices - 1, 1))

    def __len__(self) -> int:
        return len(self._logs)

    def at(self, rows: Rows) -> "Points":
        features, summary = self.places
        return self.others((features[rows], None if summary is None else summary[rows]), self._logs[rows])

    def others(self, places: tuple[Floats, Floats | None], logs: Floats) -> "Points":
        """Other models, seen the same way."""
        return Points(places, logs, self.rows, self._offsets)

    def without(self, device: int) -> "Points":
        logs, offsets = np.delete(self._logs, device, axis=1), np.delete(self._offsets, device)
        return Points(self.places, logs, self.rows, offsets)


@dataclass(frozen=True, slots=True)
class Hypotheses:
    """`grid` [hypotheses, 4] of standard deviations; `prior` [centres, hypotheses]: probabilities that sum to 1."""

    grid: Floats
    prior: Floats

    @staticmethod
    def uniform(devices: int, summarised: bool) -> "Hypotheses":
        grid = _grid(devices, summarised)
        return Hypotheses(grid, np.ones((2, len(grid))) / (2 * len(grid))).of(devices)

    def of(self, devices: int) -> "Hypotheses":
        """The same for another number of known devices: what all single ones have together is shared out anew."""
        mean, single = self.prior[0], self.prior[1:].sum(0)
        if len(self.prior) == 1:
            mean, single = mean / 2, mean / 2
        if devices < 2:
            return Hypotheses(self.grid, (mean + single)[None])
        return Hypotheses(self.grid, np.vstack([mean, np.repeat(single[None] / devices, devices, axis=0)]))

    def learnt(self, evidence: Floats) -> "Hypotheses":
        """Probabilities under which what was seen on known devices, log evidence [devices, draws, 2, grid] (see
        `Posterior.evidence_by_kind`), is likeliest.

        Expectation maximisation for mixing proportions, with one more device that finds all equally likely.
        """
        devices, draws = evidence.shape[:2]
        logs = evidence.reshape(devices * draws, -1)
        prior = np.full(logs.shape[1], 1 / logs.shape[1])
        for _ in range(_ROUNDS):
            weights = _softmax(logs + np.log(prior))
            prior = (weights.sum(0) / draws + 1 / logs.shape[1]) / (devices + 1)
        return Hypotheses(self.grid, prior.reshape(2, -1)).of(devices)

    def pruned(self) -> "Hypotheses":
        """Without those negligible around all centres together: enough for devices like the known ones."""
        keep = self.prior.sum(0) >= _NEGLIGIBLE
        kept = self.prior[:, keep]
        return Hypotheses(self.grid[keep], kept / kept.sum())

    def moments(self, here: Points, novelty: Novelty) -> tuple[Floats, float]:
        """(covariance [models, models], variance of the noise) before anything is measured, over all hypotheses."""
        squares = self.prior.sum(0) @ self.grid**2
        weights = self.prior.sum(1)
        centred = here.centres - (here.centres @ weights)[:, None]
        covariance = _Parts(here, here, novelty).mixed(np.sqrt(squares)) + (centred * weights) @ centred.T
        return covariance, float(squares[NOISE] * NOISE_VARIANCE)


class Posterior:
    """All hypotheses about a device of which models `rows` were measured."""

    def __init__(self, points: Points, novelty: Novelty, hypotheses: Hypotheses, rows: Rows, logs: Floats) -> None:
        self._here, self._novelty, self._grid = points.at(rows), novelty, hypotheses.grid
        self._offset = float(np.median(logs))
        parts = _Parts(self._here, self._here, novelty)
        covariances = np.stack([parts.mixed(hypothesis) for hypothesis in self._grid])
        target = logs - self._offset
        self._found: list[Posteriors] = [
            observe(covariances, self._grid[:, NOISE], target - centre) for centre in self._here.centres.T
        ]
        self._evidence = np.stack([found.evidence for found in self._found])
        weights = _softmax((self._evidence + np.log(hypotheses.prior)).ravel())
        weights[weights < _NEGLIGIBLE * weights.max()] = 0.0
        self._weights = (weights / weights.sum()).reshape(self._evidence.shape)

    def evidence_by_kind(self) -> Floats:
        """[2, grid]: log evidence of the mean as centre, and of one of the others."""
        single = self._evidence[1:] if len(self._evidence) > 1 else self._evidence
        return np.stack([self._evidence[0], np.logaddexp.reduce(single) - math.log(len(single))])

    def left_out(self) -> Floats:
        """Standard deviations that each measurement lies off what the others predict."""
        off, variance = self._averaged([found.left_out() for found in self._found])
        scores: Floats = np.abs(off) / np.sqrt(variance)
        return scores

    def predict(self, there: Points) -> tuple[Floats, Floats]:
        """(mean, standard deviation) of log latencies that are to be measured."""
        parts = _Parts(there, self._here, self._novelty)
        mean, second = np.zeros(len(there)), np.zeros(len(there))
        for g in np.flatnonzero(self._weights.sum(0)):
            covariance, own = parts.mixed(self._grid[g]), _variance(there, self._novelty, self._grid[g])
            noise = NOISE_VARIANCE * self._grid[g, NOISE] ** 2
            for c in np.flatnonzero(self._weights[:, g]):
                found, weight = self._found[c], self._weights[c, g]
                here = there.centres[:, c] + covariance @ found.weights[g]
                known = ((covariance @ found.inverse[g]) * covariance).sum(1)
                mean += weight * here
                second += weight * (np.maximum(own - known, 0.0) + noise + here**2)
        return self._offset + mean, np.sqrt(np.maximum(second - mean**2, 1e-12))

    def _averaged(self, moments: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
        """Mean and variance, over hypotheses, of (means, variances) [hypotheses, n] per centre."""
        means, variances = np.stack([m for m, _ in moments]), np.stack([v for _, v in moments])
        mean = np.einsum("cg,cgn->n", self._weights, means)
        second = np.einsum("cg,cgn->n", self._weights, variances + means**2)
        return mean, second - mean**2


class _Parts:
    """What covariances [len(a), len(b)] are made of, whatever the hypothesis."""

    def __init__(self, a: Points, b: Points, novelty: Novelty) -> None:
        self._fixed: Floats = _OFFSET**2 + _AMPLITUDE**2 * np.outer(a.centres[:, 0], b.centres[:, 0])
        self._devices: Floats = a.deviations @ b.deviations.T
        self._features = novelty.features.between(a.places[0], b.places[0])
        self._summary: Floats | float = 0.0
        if novelty.summary is not None and a.places[1] is not None and b.places[1] is not None:
            self._summary = novelty.summary.between(a.places[1], b.places[1])

    def mixed(self, hypothesis: Floats) -> Floats:
        spread, summary, features, _ = hypothesis**2
        mixed: Floats = self._fixed + spread * self._devices + features * self._features + summary * self._summary
        return mixed


def _variance(a: Points, novelty: Novelty, hypothesis: Floats) -> Floats:
    """[len(a)]: the diagonal of `_Parts(a, a, novelty).mixed(hypothesis)`."""
    spread, summary, features, _ = hypothesis**2
    variance: Floats = _OFFSET**2 + (_AMPLITUDE * a.centres[:, 0]) ** 2 + spread * (a.deviations**2).sum(1)
    variance += features * novelty.features.variance(a.places[0])
    if novelty.summary is not None and a.places[1] is not None:
        variance += summary * novelty.summary.variance(a.places[1])
    return variance


def _grid(devices: int, summarised: bool) -> Floats:
    """Devices differ from each other only if there are two."""
    spreads = _SPREADS if devices > 1 else (1.0,)
    sizes = _NOVELTIES if devices else _NOVELTIES_ALONE
    novelties = [(0.0, size) for size in sizes]
    if summarised:
        novelties += [(size, _DETAIL * size) for size in sizes]
    return np.array([(spread, *novelty, noise) for spread, novelty, noise in product(spreads, novelties, _NOISES)])


def _softmax(logs: Floats) -> Floats:
    """Along the last axis."""
    shifted = np.exp(logs - logs.max(axis=-1, keepdims=True))
    weights: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return weights
