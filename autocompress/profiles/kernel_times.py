"""Times of single kernels: measured ones, made steady by their neighbours, and estimates for those never measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from autocompress.devices.roofline import Rates, roofline
from autocompress.profiles.features import PHYSICAL, Coordinates, Floats, squared_distances, terms
from autocompress.profiles.sites import Site

LENGTH_SCALE = 10.0
AMPLITUDE = 0.5
"""Prior standard deviation of a kernel's log time around the sum of its terms."""

NOISE = 0.07
"""Relative standard deviation of one profiled time of a kernel."""

FLOOR = 0.1
"""Share of the median kernel's time added before logarithms are taken: below it, relative errors do not matter."""

MAX_SITES = 2500
"""A fit takes the cube of this; beyond it, the sites measured most often are used."""

_RIDGE = 1e-2


class SiteTimes(Protocol):
    """What single kernels take; `measured` are the sites whose time was seen, `coordinates` tell how alike any are."""

    measured: frozenset[Site]
    coordinates: Coordinates

    def times(self, wanted: Sequence[Site]) -> Floats: ...

    def guessed(self, site: Site) -> bool:
        """Whether no kernel of its operation and format was measured: only bytes and multiplications price it."""
        ...


class RooflineTimes:
    """Times of sites by a datasheet's peak rates, in seconds; none of them was measured."""

    def __init__(self, rates: Rates, seen: Iterable[Site]) -> None:
        self._rates = rates
        self.measured = frozenset[Site]()
        self.coordinates = Coordinates.of(seen)

    def times(self, wanted: Sequence[Site]) -> Floats:
        return np.array([roofline(site.workload, self._rates) for site in wanted], dtype=np.float64)

    def guessed(self, site: Site) -> bool:
        return False


class KernelTimes:
    """Times of sites: Gaussian process regression on the logarithm of the ratio of time to a sum of physical terms.

    Exponential covariance over Coordinates (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006,
    sections 2.2 and 4.2), around a non-negative combination of terms per operation and format. A measured site gets the
    posterior mean too: a kernel profiled once is known to 7 % by itself and better with its neighbours. On kernels of
    unseen ResNets this is 8 % off where gradient-boosted trees are 11 %, and half of it is noise. An operation that was
    never measured takes what its launch, multiplications and bytes take in the others.

    `measured` holds (time, samples) of each profiled site; times may be in any unit.
    """

    def __init__(self, measured: Mapping[Site, tuple[float, int]]) -> None:
        known = sorted(measured, key=lambda site: -measured[site][1])[:MAX_SITES]
        self.measured = frozenset(measured)
        self._classes = {kernel_class(site) for site in measured}
        self.coordinates = Coordinates.of(known)
        self._estimated: dict[Site, float] = {}
        if not known:
            return
        times, samples = np.array([measured[site] for site in known], dtype=np.float64).T
        self._floor = FLOOR * float(np.median(times))
        self._terms = _TermsByClass(known, times + self._floor)
        self._terms_of_any = _TermsOfAny(known, times + self._floor, self._floor)
        self._places = self.coordinates(known)
        noise = (NOISE**2 + (FLOOR * self._floor / (times + self._floor)) ** 2) / samples
        covariance = self._covariance(self._places) + np.diag(noise)
        self._weights: Floats = np.linalg.solve(covariance, np.log(times + self._floor) - self._prior(known))

    def times(self, wanted: Sequence[Site]) -> Floats:
        """Estimating takes milliseconds a call, whether for one site or a thousand: all new ones are done in one."""
        new = [site for site in dict.fromkeys(wanted) if site not in self._estimated]
        if new:
            self._estimated.update(zip(new, self._estimate(new).tolist(), strict=True))
        return np.array([self._estimated[site] for site in wanted], dtype=np.float64)

    def guessed(self, site: Site) -> bool:
        return bool(self.measured) and kernel_class(site) not in self._classes

    def _estimate(self, new: Sequence[Site]) -> Floats:
        if not self.measured:
            return np.zeros(len(new))
        alike = self._covariance(self.coordinates(new)) @ self._weights
        logs = self._prior(new) + np.where([self.guessed(site) for site in new], 0.0, alike)
        estimates: Floats = np.maximum(np.exp(logs) - self._floor, 0.0)
        return estimates

    def _prior(self, wanted: Sequence[Site]) -> Floats:
        foreign = [self.guessed(site) for site in wanted]
        sums = np.where(foreign, self._terms_of_any(wanted), self._terms(wanted))
        logs: Floats = np.log(np.maximum(sums, self._floor))
        return logs

    def _covariance(self, places: Floats) -> Floats:
        distances = np.sqrt(squared_distances(places, self._places))
        covariance: Floats = AMPLITUDE**2 * np.exp(-distances / LENGTH_SCALE)
        return covariance


class _TermsByClass:
    """Non-negative combinations of terms, one per operation and number format, fitted to relative errors."""

    def __init__(self, known: Sequence[Site], times: Floats) -> None:
        rows = terms(known)
        self._weights = {}
        classes = [kernel_class(site) for site in known]
        for name in set(classes):
            chosen = [i for i, found in enumerate(classes) if found == name]
            self._weights[name] = _fit(rows[chosen], times[chosen])

    def __call__(self, wanted: Sequence[Site]) -> Floats:
        """Zero for a class that was never measured."""
        rows = terms(wanted)
        nothing = np.zeros(rows.shape[1])
        weights = [self._weights.get(kernel_class(site), nothing) for site in wanted]
        sums: Floats = (rows * np.array(weights)).sum(1)
        return sums


class _TermsOfAny:
    """The same for whatever was not measured: the physical terms of all that was, as far as it multiplies (or doesn't)
    and is in the same number format. What took no longer than the floor was fused away, and says nothing of what runs.
    """

    def __init__(self, known: Sequence[Site], times: Floats, floor: float) -> None:
        runs = np.flatnonzero(times > 2 * floor) if (times > 2 * floor).any() else np.arange(len(times))
        self._known, self._times = [known[int(i)] for i in runs], times[runs]
        self._rows = _physical(self._known)
        self._weights: dict[tuple[bool, str], Floats] = {}

    def __call__(self, wanted: Sequence[Site]) -> Floats:
        rows = _physical(wanted)
        sums: Floats = (rows * np.array([self._like(site) for site in wanted])).sum(1)
        return sums

    def _like(self, site: Site) -> Floats:
        kind = _multiplies(site), site.workload.dtype
        if kind not in self._weights:
            alike = [_multiplies(other) == kind[0] for other in self._known]
            same = [a and other.workload.dtype == kind[1] for a, other in zip(alike, self._known, strict=True)]
            chosen = np.flatnonzero(same if any(same) else alike if any(alike) else np.ones(len(alike)))
            self._weights[kind] = _fit(self._rows[chosen], self._times[chosen])
        return self._weights[kind]


def _physical(wanted: Sequence[Site]) -> Floats:
    rows: Floats = terms(wanted)[:, PHYSICAL]
    return rows


def _multiplies(site: Site) -> bool:
    return site.workload.macs > 0


def kernel_class(site: Site) -> tuple[str, str]:
    return site.workload.op, site.workload.dtype


def _fit(rows: Floats, times: Floats) -> Floats:
    from scipy.optimize import nnls

    scale = rows.max(0) + 1e-12
    pull = _RIDGE * np.eye(rows.shape[1])
    target = np.concatenate([np.ones(len(times)), np.zeros(len(pull))])
    weights: Floats = nnls(np.vstack([rows / scale / times[:, None], pull]), target)[0] / scale
    return weights
