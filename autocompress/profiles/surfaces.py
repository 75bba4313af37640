"""Surfaces: how latency varies over models on devices that were measured, with what is noise taken out.

Log latencies of each device are smoothed by Gaussian process regression over the models' features (Rasmussen &
Williams, Gaussian Processes for Machine Learning, 2006, sections 2.2 and 5.4.1), so that a device is known at models
that it never ran, and a bad measurement is not handed on as a fact about the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.profiles.features import Floats, squared_distances
from autocompress.vocabulary.errors import ProfileError

Rows = NDArray[np.intp]

_KERNELS = ((1.0, 1.0), (0.5, 0.5), (0.5, 1.0), (0.5, 2.0), (0.0, 1.0), (0.0, 2.0))
"""Candidates of (share of the linear kernel, length scale of the Gaussian one); the evidence chooses."""

_NOISE_SHARES = np.logspace(-5, 2, 29)
"""Candidates of noise over signal variance."""

_CLIP = 2.5
"""Residuals beyond this many robust standard deviations are pulled in to it (Huber's winsorised residuals)."""

_CLIPPING_ROUNDS = 4
_MAD_TO_DEVIATION = 1.4826
_EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Similarity:
    """Covariance between models by their features: a mixture of a linear and a Gaussian kernel.

    Features are brought to mean 0 and variance 1 over the models of a table, and divided by the root of their number:
    the variance of a typical model is 1.
    """

    mean: Floats
    scale: Floats
    linear: float = 0.5
    length: float = 2.0

    @staticmethod
    def over(features: Floats) -> "Similarity":
        mean, deviation = features.mean(0), features.std(0)
        varies = deviation > _EPSILON * (1 + np.abs(mean))
        count = max(int(varies.sum()), 1)
        scale = np.where(varies, 1 / (np.where(varies, deviation, 1.0) * np.sqrt(count)), 0.0)
        return Similarity(mean, scale)

    def with_shape(self, linear: float, length: float) -> "Similarity":
        return Similarity(self.mean, self.scale, linear, length)

    def places(self, features: Floats) -> Floats:
        """[models, features], scaled: what the covariances are taken of."""
        placed: Floats = (features - self.mean) * self.scale
        return placed

    def between(self, a: Floats, b: Floats) -> Floats:
        """[len(a), len(b)] covariances of places."""
        gaussian = np.exp(-squared_distances(a, b) / (2 * self.length**2))
        mixed: Floats = self.linear * (a @ b.T) + (1 - self.linear) * gaussian
        return mixed

    def variance(self, a: Floats) -> Floats:
        """[len(a)]: the diagonal of `between(a, a)`."""
        own: Floats = self.linear * (a**2).sum(1) + (1 - self.linear)
        return own


@dataclass(frozen=True, slots=True)
class Surfaces:
    """Known devices' log latencies at every model [models, devices], and the similarity that explained them."""

    logs: Floats
    similarity: Similarity


def smooth(features: Floats, latencies: Floats) -> Surfaces:
    """Surfaces of latencies [models, devices] that are NaN where a device did not run a model.

    A device needs two models; the time of a fit is cubic in their number. Raises ProfileError.
    """
    similarity = Similarity.over(features)
    if not latencies.shape[1]:
        return Surfaces(np.zeros((len(features), 0)), similarity)
    places = similarity.places(features)
    masks = _distinct(np.isfinite(latencies))
    fitted = [_fit_all(similarity.with_shape(*shape), places, latencies, masks) for shape in _KERNELS]
    best = max(range(len(fitted)), key=lambda i: sum(fit.evidence for fit in fitted[i]))
    chosen = similarity.with_shape(*_KERNELS[best])
    logs = np.empty(latencies.shape)
    for mask, devices in masks:
        covariance = chosen.between(places, places[mask])
        for device in devices:
            fit = fitted[best][device]
            logs[:, device] = fit.centre + covariance @ fit.weights
    return Surfaces(logs, chosen)


@dataclass(frozen=True, slots=True)
class _Fit:
    centre: float
    weights: Floats
    evidence: float


def _distinct(measured: NDArray[np.bool_]) -> list[tuple[Rows, list[int]]]:
    """(rows measured, devices that measured just these): devices with the same rows share a decomposition."""
    groups: dict[bytes, list[int]] = {}
    for device in range(measured.shape[1]):
        if measured[:, device].sum() < 2:
            raise ProfileError(
                f"known device {device} has {int(measured[:, device].sum())} measured models: it needs at least 2, "
                "leave it out or measure more"
            )
        groups.setdefault(measured[:, device].tobytes(), []).append(device)
    return [(np.flatnonzero(measured[:, devices[0]]), devices) for devices in groups.values()]


def _fit_all(
    similarity: Similarity, places: Floats, latencies: Floats, masks: Sequence[tuple[Rows, list[int]]]
) -> list[_Fit]:
    fits: dict[int, _Fit] = {}
    for mask, devices in masks:
        values, vectors = np.linalg.eigh(similarity.between(places[mask], places[mask]))
        for device in devices:
            fits[device] = _fit(np.maximum(values, 0.0), vectors, np.log(latencies[mask, device]))
    return [fits[device] for device in sorted(fits)]


def _fit(values: Floats, vectors: Floats, logs: Floats) -> _Fit:
    """Noise by evidence, then outliers pulled in, and again."""
    centre = float(np.median(logs))
    target = logs - centre
    for _ in range(_CLIPPING_ROUNDS):
        rotated = vectors.T @ target
        share, evidence = _best_noise(values, rotated)
        fitted = vectors @ (values * rotated / (values + share))
        residual = logs - centre - fitted
        bound = _CLIP * _MAD_TO_DEVIATION * float(np.median(np.abs(residual))) + _EPSILON
        weights = vectors @ (rotated / (values + share))
        target = fitted + np.clip(residual, -bound, bound)
    return _Fit(centre, weights, evidence)


def _best_noise(values: Floats, rotated: Floats) -> tuple[float, float]:
    """(noise share, log evidence with the signal's variance at its optimum)."""
    variances = values[:, None] + _NOISE_SHARES
    scale = np.maximum((rotated[:, None] ** 2 / variances).mean(0), _EPSILON**2)
    evidence = -0.5 * (len(values) * np.log(scale) + np.log(variances).sum(0))
    best = int(np.argmax(evidence))
    return float(_NOISE_SHARES[best]), float(evidence[best])
