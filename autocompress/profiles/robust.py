"""Gaussian processes measured with Student-t noise: a few observations, any of which may be an outlier.

Variational inference over each observation's noise scale (Tipping & Lawrence, Variational inference for Student-t
models, Neurocomputing 2005), for a whole batch of covariances at once.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, gammaln

from autocompress.profiles.features import Floats

DEGREES = 4.0
"""Degrees of freedom of the noise: the fewest at which its variance still is no more than twice a Gaussian's."""

NOISE_VARIANCE = DEGREES / (DEGREES - 2)
"""Variance of Student-t noise of scale 1."""

_ROUNDS = 6


@dataclass(frozen=True, slots=True)
class Posteriors:
    """One posterior per covariance of the batch.

    `evidence` [batch]: lower bound of the log evidence. `inverse` [batch, n, n]: of covariance plus noise. `weights`
    [batch, n]: the mean at any place is its covariance with the observations times these.
    """

    evidence: Floats
    inverse: Floats
    weights: Floats

    def left_out(self) -> tuple[Floats, Floats]:
        """[batch, n] each: how far every observation lies off what the others predict, and that prediction's variance
        (Rasmussen & Williams 2006, section 5.4.2), for the noise scales found with all of them."""
        variance = 1 / np.einsum("bii->bi", self.inverse)
        return self.weights * variance, variance


def observe(covariances: Floats, noise: Floats, target: Floats) -> Posteriors:
    """Posteriors for covariances [batch, n, n] and noise scales [batch], of observations less their mean [n]."""
    count = len(target)
    squared = np.repeat(noise[:, None] ** 2, count, axis=1)
    precision = np.ones_like(squared)
    for remaining in reversed(range(_ROUNDS)):
        noisy = covariances + (squared / precision)[:, None] * np.eye(count)
        inverse = np.asarray(np.linalg.inv(noisy), dtype=np.float64)
        weights = inverse @ target
        if remaining:
            precision = _precision(squared, precision, inverse, weights)
    gaussian = -0.5 * (weights @ target + np.linalg.slogdet(noisy)[1] + count * np.log(2 * np.pi))
    return Posteriors(gaussian + _scale_terms(precision).sum(1), inverse, weights)


def _precision(squared: Floats, precision: Floats, inverse: Floats, weights: Floats) -> Floats:
    """Expected noise precision of each observation, given its expected squared residual."""
    variances = squared / precision
    residual = variances * weights
    uncertainty = variances - variances**2 * np.einsum("bii->bi", inverse)
    expected = residual**2 + np.maximum(uncertainty, 0.0)
    updated: Floats = (DEGREES + 1) / (DEGREES + expected / squared)
    return updated


def _scale_terms(precision: Floats) -> Floats:
    """What the noise scales add to the bound: E[log scale] terms less KL(posterior gamma, prior gamma)."""
    shape, prior = (DEGREES + 1) / 2, DEGREES / 2
    rate = shape / precision
    expected_log = digamma(shape) - np.log(rate)
    divergence = (
        (shape - prior) * digamma(shape) - gammaln(shape) + gammaln(prior)
        + prior * (np.log(rate) - np.log(prior)) + shape * (prior - rate) / rate
    )  # fmt: skip
    terms: Floats = 0.5 * (expected_log - np.log(precision)) - divergence
    return terms
