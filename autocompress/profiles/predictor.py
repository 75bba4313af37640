"""The predictor: what each kernel takes, corrected on whole models, with an interval that held-out models calibrate.

Three layers, each of which prices a kernel, so that a plan's price is a sum of cached numbers:

1. `SiteTimes`: what the runtime's own profiler says of each kernel, or of kernels like it; a datasheet's roofline where
   nothing was profiled.
2. `ClassCorrection`: per operation and format a factor and a constant per kernel, by non-negative ridge regression on
   whole models; the constant is what launching a kernel costs and no profiler shows. With it, by how much kernels
   slow each other down (see interplay.py).
3. `SmoothCorrection`: a relative correction that varies smoothly over sites, learnt from what whole models still miss:
   Bayesian linear regression on Nyström features of a Gaussian kernel (Williams & Seeger, NIPS 2000; Bishop, PRML 2006,
   section 3.3). Its variance says how far a plan is from what was measured.

All times in here are ratios to the reference model's.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autocompress.profiles.features import Coordinates, Floats, squared_distances
from autocompress.profiles.interplay import lowers_clock, suffers, time_lowered
from autocompress.profiles.kernel_times import SiteTimes, kernel_class
from autocompress.profiles.sites import Site

NOMINAL_COVERAGE = 0.90
"""What an interval promises; 9 scores of held-out models are the fewest that can calibrate it."""

MIN_MODELS = 8
"""Below this many whole models nothing is corrected."""

RIDGE = 1e-3
INDUCING_SITES = 128
LENGTH_SCALE = 4.0
AMPLITUDE = 0.2
"""Prior standard deviation of the smooth relative correction of one kernel."""

GUESS = 1.0
"""Relative standard deviation of kernels whose operation was never measured: bytes and multiplications alone tell
little. Those of one model are taken to be off alike."""

NOISE = 0.01
"""Standard deviation of a measured ratio (repetitions differ by 0.6 % in the median, 1.4 % at the 90th percentile)."""

_FALLBACK_SCORE = 3.0
_FIRST_ROWS = 1024

_LOWERING, _SUFFERING, _GUESSED, _FACTS = 2, 3, 4, 5
"""Of a site are kept: its price, its price if measured, whether it lowers the clock, its time if it suffers from that,
its price if guessed, and features."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A whole model: its kernels' sites (as often as they occur) and its measured ratio to the reference."""

    sites: tuple[Site, ...]
    ratio: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """A ratio with its standard deviation; `measured_fraction` of it stands on kernels measured one to one."""

    ratio: float
    deviation: float
    measured_fraction: float


class ClassCorrection:
    """ratio ≈ (sum over classes of factor * time + constant * count, one constant, slowdown * share of the run with the
    clock lowered * time of what suffers from that) * (kernels / usual)^growth.

    None of these is negative; on a Xeon the growth is 0.03 to 0.05 and the slowdown up to 0.25. Ridge towards factor 1
    and the others 0, on relative errors, with the power linearised; solved by non-negative least squares (Lawson &
    Hanson, 1974) on the augmented system.
    """

    def __init__(self, kernel_times: SiteTimes, models: Sequence[Observation]) -> None:
        classes = sorted({kernel_class(site) for model in models for site in model.sites})
        self._index = {name: i for i, name in enumerate(classes)}
        self._unit = float(np.mean([model.ratio / len(model.sites) for model in models])) / 10 if models else 0.0
        count = len(classes)
        self._usual = float(np.mean([math.log(len(model.sites)) for model in models])) if models else 0.0
        self._factors, self._constants = np.ones(count), np.zeros(count)
        self.intercept, self._slowdown, self._growth = 0.0, 0.0, 0.0
        if len(models) >= MIN_MODELS:
            weights = self._solve(kernel_times, models)
            self._factors, self._constants = weights[:count], weights[count : 2 * count] * self._unit
            intercept, self._slowdown, self._growth = map(float, weights[2 * count :])
            self.intercept = intercept * self._unit

    def prices(self, wanted: Sequence[Site], times: Floats) -> Floats:
        """Corrected times; a class that no model had is taken as its time."""
        which = np.array([self._index.get(kernel_class(site), -1) for site in wanted], dtype=np.intp)
        factors, constants = np.append(self._factors, 1.0), np.append(self._constants, 0.0)
        priced: Floats = factors[which] * times + constants[which]
        return priced

    def knows(self, site: Site) -> bool:
        """Whether a model had such kernels."""
        return kernel_class(site) in self._index

    def slowdown(self, lowering: float) -> float:
        """What kernels that suffer from a lower clock take more, as a share, given how many kernels lower it."""
        return self._slowdown * time_lowered(lowering)

    def crowding(self, kernels: int) -> float:
        """What a model of so many kernels takes, relative to the sum of what they take in one of the usual number."""
        return math.exp(self._growth * (math.log(max(kernels, 1)) - self._usual))

    def _solve(self, kernel_times: SiteTimes, models: Sequence[Observation]) -> Floats:
        from scipy.optimize import nnls

        ratios = np.array([model.ratio for model in models])
        rows = np.array([self._row(kernel_times, model) for model in models]) / ratios[:, None]
        rows = np.column_stack([rows, [math.log(len(model.sites)) - self._usual for model in models]])
        prior = np.zeros(rows.shape[1])
        prior[: len(self._index)] = 1.0
        pull = math.sqrt(RIDGE) * np.eye(rows.shape[1])
        weights: Floats = nnls(np.vstack([rows, pull]), np.concatenate([np.ones(len(models)), pull @ prior]))[0]
        return weights

    def _row(self, kernel_times: SiteTimes, model: Observation) -> Floats:
        which = [self._index[kernel_class(site)] for site in model.sites]
        count = len(self._index)
        seconds = kernel_times.times(model.sites)
        lowering, suffering = _interplay(model.sites, seconds)
        return np.concatenate([
            np.bincount(which, seconds, count), np.bincount(which, minlength=count) * self._unit,
            [self._unit, time_lowered(lowering.sum()) * suffering.sum()],
        ])  # fmt: skip


class SmoothCorrection:
    """A kernel's relative correction, and a model's variance, from what corrected models still miss."""

    def __init__(self, coordinates: Coordinates, models: Sequence[Observation], price: "_Prices") -> None:
        self._coordinates = coordinates
        seen = sorted({site for model in models for site in model.sites}, key=repr)
        chosen = np.linspace(0, len(seen) - 1, min(INDUCING_SITES, len(seen))).astype(int)
        self._inducing = coordinates([seen[int(i)] for i in chosen])
        gram = _gaussian(self._inducing, self._inducing) + 1e-6 * np.eye(len(self._inducing))
        self._whiten = np.linalg.inv(np.linalg.cholesky(gram)).T
        self._fit(models, price)

    def features(self, wanted: Sequence[Site]) -> Floats:
        """[sites, inducing]: features whose inner products are the prior covariance of relative corrections."""
        if not len(self._inducing):
            return np.zeros((len(wanted), 0))
        return AMPLITUDE * _gaussian(self._coordinates(wanted), self._inducing) @ self._whiten

    def _fit(self, models: Sequence[Observation], price: "_Prices") -> None:
        size = len(self._inducing)
        self.weights, self.covariance = np.zeros(size), np.eye(size)
        if len(models) < MIN_MODELS:
            return
        ratios = np.array([model.ratio for model in models])
        base = np.array([price.total(model.sites) for model in models])
        rows = np.array([price.in_model(model.sites) @ self.features(model.sites) for model in models])
        rows /= ratios[:, None]
        self.covariance = np.linalg.inv(np.eye(size) + rows.T @ rows / NOISE**2)
        self.weights = self.covariance @ (rows.T @ ((ratios - base) / ratios)) / NOISE**2


class _Prices:
    """The first two layers together."""

    def __init__(self, kernel_times: SiteTimes, classes: ClassCorrection) -> None:
        self._times = kernel_times
        self._classes = classes

    def of(self, wanted: Sequence[Site]) -> Floats:
        return self._classes.prices(wanted, self._times.times(wanted))

    def in_model(self, whole: Sequence[Site]) -> Floats:
        """Of each kernel of a model."""
        prices: Floats = self.of(whole) * self._classes.crowding(len(whole))
        return prices

    def total(self, whole: Sequence[Site]) -> float:
        lowering, suffering = _interplay(whole, self._times.times(whole))
        slowed = self._classes.slowdown(lowering.sum()) * suffering.sum()
        alone = self.of(whole).sum() + self._classes.intercept
        return float(alone + slowed) * self._classes.crowding(len(whole))


class Predictor:
    """Prices sites; each is computed once and kept, so that a plan of known sites is a sum.

    `scores` are calibration scores (see `score`) of models that were unknown to the predictor that gave them.
    """

    def __init__(
        self,
        times: SiteTimes,
        models: Sequence[Observation],
        scores: Sequence[float] = (),
    ) -> None:
        self.times = times
        self._classes = ClassCorrection(times, models)
        self._smooth = SmoothCorrection(times.coordinates, models, _Prices(times, self._classes))
        self._row: dict[Site, int] = {}
        self._table = np.zeros((_FIRST_ROWS, _FACTS + len(self._smooth.weights)))
        self.factor = _conformal_factor(scores)

    def predict(self, wanted: Sequence[Site]) -> Prediction:
        """The ratio of a model with these kernels (a site counts as often as it occurs)."""
        rows = self._rows(wanted)
        sums = self._table[rows].sum(axis=0)
        sums[0] += self._classes.intercept + self._classes.slowdown(sums[_LOWERING]) * sums[_SUFFERING]
        sums *= self._classes.crowding(len(rows))
        ratio, measured, spread = sums[0], sums[1], sums[_FACTS:]
        variance = float(spread @ self._smooth.covariance @ spread) + (NOISE * ratio) ** 2
        variance += (GUESS * float(sums[_GUESSED])) ** 2
        return Prediction(float(ratio), math.sqrt(variance), float(measured / ratio) if ratio > 0 else 0.0)

    def prices(self, whole: Sequence[Site]) -> Floats:
        """The share of each kernel of a model in its ratio."""
        facts = self._table[self._rows(whole), :_FACTS]
        slowed = self._classes.slowdown(facts[:, _LOWERING].sum()) * facts[:, _SUFFERING]
        prices: Floats = self._classes.crowding(len(whole)) * (facts[:, 0] + slowed)
        return prices

    def score(self, model: Observation) -> float:
        """How many predicted standard deviations a model's measured ratio lies off."""
        prediction = self.predict(model.sites)
        return abs(prediction.ratio - model.ratio) / prediction.deviation

    def guessed(self, site: Site) -> bool:
        """Whether nothing is known of such kernels, neither by themselves nor in whole models."""
        return self.times.guessed(site) and not self._classes.knows(site)

    def warm(self, wanted: Iterable[Site]) -> None:
        """Price sites ahead, all at once."""
        new = [site for site in dict.fromkeys(wanted) if site not in self._row]
        if not new:
            return
        times = self.times.times(new)
        base = self._classes.prices(new, times)
        features = self._smooth.features(new)
        prices = np.maximum(base * (1 + features @ self._smooth.weights), 0.0)
        known = np.array([site in self.times.measured for site in new])
        facts = [prices, prices * known, *_interplay(new, times), prices * [self.guessed(site) for site in new]]
        self._append(new, np.column_stack([*facts, features * base[:, None]]))

    def _append(self, new: Sequence[Site], rows: Floats) -> None:
        """Room for rows doubles when it runs out."""
        first = len(self._row)
        while len(self._table) < first + len(new):
            self._table = np.vstack([self._table, np.zeros_like(self._table)])
        self._table[first : first + len(new)] = rows
        self._row.update((site, first + i) for i, site in enumerate(new))

    def _rows(self, wanted: Sequence[Site]) -> list[int]:
        row = self._row
        try:
            return [row[site] for site in wanted]
        except KeyError:
            self.warm(wanted)
            return [row[site] for site in wanted]


def _interplay(wanted: Sequence[Site], times: Floats) -> tuple[Floats, Floats]:
    """Of each site whether it lowers the clock, and its time if it suffers from that."""
    return np.array([lowers_clock(site) for site in wanted], float), times * [suffers(site) for site in wanted]


def _conformal_factor(scores: Sequence[float]) -> float:
    """The multiple of a predicted standard deviation that covers a new model with probability NOMINAL_COVERAGE.

    Split conformal prediction with normalised scores (Lei et al., JASA 2018, section 5.2): the ceil((n+1)(1-a))-th
    smallest score. With too few scores for that level: the largest, and at least 3 standard deviations.
    """
    ordered = sorted(scores)
    rank = math.ceil((len(ordered) + 1) * NOMINAL_COVERAGE)
    if rank <= len(ordered):
        return ordered[rank - 1]
    return max([*ordered, _FALLBACK_SCORE])


def _gaussian(a: Floats, b: Floats) -> Floats:
    similarity: Floats = np.exp(-squared_distances(a, b) / (2 * LENGTH_SCALE**2))
    return similarity
