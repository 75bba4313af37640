"""Transfer to a new device: exact where it must be, honest where it can't, and what bad input is told."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal, spearmanr

from autocompress.profiles.hypotheses import Hypotheses
from autocompress.profiles.robust import DEGREES, observe
from autocompress.profiles.surfaces import Similarity, smooth
from autocompress.profiles.transfer import COVERAGE, NewDevice, Transfer
from autocompress.vocabulary.errors import ProfileError

MODELS, OPERATORS = 160, 5


def counts(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 7, size=(MODELS, OPERATORS)).astype(float)


def latencies(features: np.ndarray, devices: int, seed: int = 1, noise: float = 0.02) -> np.ndarray:
    """Every device adds up what its operators take; two kinds of devices that differ in which are slow."""
    generator = np.random.default_rng(seed)
    kinds = np.array([[1, 2, 3, 5, 8], [8, 2, 5, 1, 1]])[np.arange(devices) % 2]
    costs = kinds * np.exp(0.2 * generator.normal(size=(devices, OPERATORS)))
    scale = np.exp(generator.normal(size=devices))
    return scale * (3 + features @ costs.T) * np.exp(noise * generator.normal(size=(MODELS, devices)))


FEATURES = counts()
TABLE = latencies(FEATURES, 8)


def measured(truth: np.ndarray, count: int, seed: int = 0) -> list[tuple[int, float]]:
    rows = np.random.default_rng(seed).choice(len(truth), count, replace=False)
    return [(int(row), float(truth[row])) for row in rows]


@pytest.fixture(scope="module")
def transfer() -> Transfer:
    return Transfer(FEATURES, TABLE[:, :7])


def errors(device: NewDevice, truth: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.abs(device.predict().latency / truth - 1)
    return found


def test_a_known_device_rescaled_is_recovered() -> None:
    """In other units and without noise: 10 measurements say which it is, to within the least noise considered (1 %)."""
    exact = latencies(FEATURES, 4, noise=0.0)
    transfer = Transfer(FEATURES, exact, known=exact)
    device = transfer.onboard(measured(1000 * exact[:, 2], 10))
    assert errors(device, 1000 * exact[:, 2]).max() < 0.02


def test_a_new_device_is_learnt_from_ten_models(transfer: Transfer) -> None:
    device = transfer.onboard(measured(TABLE[:, 7], 10))
    assert spearmanr(device.predict().latency, TABLE[:, 7]).statistic > 0.97
    assert errors(device, TABLE[:, 7]).mean() < 0.05


def test_more_measurements_and_more_devices_predict_better(transfer: Transfer) -> None:
    truth, alone = TABLE[:, 7], Transfer(FEATURES, TABLE[:, :0])

    def error(known: Transfer, count: int) -> float:
        return float(np.mean([errors(known.onboard(measured(truth, count, seed)), truth).mean() for seed in range(5)]))

    few = error(alone, 10)
    assert error(transfer, 10) < 0.7 * few
    assert error(alone, 40) < 0.7 * few
    assert error(transfer, 40) <= error(transfer, 5)


@pytest.mark.parametrize("devices", [0, 1, 2, 5])
@pytest.mark.parametrize("count", [5, 10, 30])
def test_intervals_cover_about_what_they_say(devices: int, count: int) -> None:
    """Over 12 new devices; the models of one are not independent, so that they are worth some tens of samples: three
    binomial standard errors of 40 are 14 %."""
    new = latencies(FEATURES, 12, seed=5)
    transfer = Transfer(FEATURES, TABLE[:, :devices])
    inside = []
    for device, truth in enumerate(new.T):
        chosen = measured(truth, count, seed=device)
        forecast = transfer.onboard(chosen).predict()
        others = np.setdiff1d(np.arange(MODELS), [row for row, _ in chosen])
        inside.append(((forecast.low <= truth) & (truth <= forecast.high))[others].mean())
    assert np.mean(inside) > COVERAGE - 0.14


def test_an_interval_of_lower_coverage_lies_within() -> None:
    truth = measured(TABLE[:, 7], 10)
    wide = Transfer(FEATURES, TABLE[:, :7], coverage=0.9).onboard(truth).predict()
    narrow = Transfer(FEATURES, TABLE[:, :7], coverage=0.5).onboard(truth).predict()
    assert np.all((wide.low <= narrow.low) & (narrow.low <= narrow.latency) & (narrow.high <= wide.high))


def test_one_bad_measurement_does_not_decide(transfer: Transfer) -> None:
    good = measured(TABLE[:, 7], 12)
    bad = [(good[0][0], 20 * good[0][1]), *good[1:]]
    assert errors(transfer.onboard(bad), TABLE[:, 7]).mean() < 2 * errors(transfer.onboard(good), TABLE[:, 7]).mean()


def test_a_device_like_no_other_is_learnt_from_features_and_not_trusted_before() -> None:
    odd = np.exp(FEATURES @ np.array([-0.3, 0.5, -0.2, 0.1, 0.4]))
    transfer = Transfer(FEATURES, TABLE[:, :7])
    few, many = (transfer.onboard(measured(odd, count)) for count in (6, 60))
    assert spearmanr(many.predict().latency, odd).statistic > 0.97
    forecast = few.predict()
    assert ((forecast.low <= odd) & (odd <= forecast.high)).mean() > 0.7


def test_repeated_measurements_count_once_by_their_median(transfer: Transfer) -> None:
    chosen = measured(TABLE[:, 7], 5)
    (row, latency), *rest = chosen
    repeated = transfer.onboard([(row, 0.5 * latency), (row, latency), (row, 30 * latency), *rest])
    assert np.array_equal(repeated.predict().latency, transfer.onboard(chosen).predict().latency)


def test_models_outside_the_table_are_predicted_the_same() -> None:
    transfer = Transfer(FEATURES, TABLE[:, :7], summary=FEATURES.sum(1, keepdims=True))
    device = transfer.onboard(measured(TABLE[:, 7], 10))
    inside = device.predict()
    outside = device.predict(FEATURES[:9], transfer.known()[:9], FEATURES[:9].sum(1, keepdims=True))
    assert outside.latency == pytest.approx(inside.latency[:9])
    assert outside.high == pytest.approx(inside.high[:9])


def test_devices_may_have_run_different_models() -> None:
    parts = np.full((MODELS, 3), np.nan)
    for device in range(3):
        parts[device::3, device] = TABLE[device::3, device]
    device = Transfer(FEATURES, parts).onboard(measured(TABLE[:, 6], 10))
    assert spearmanr(device.predict().latency, TABLE[:, 6]).statistic > 0.95


def test_a_summary_helps_where_nothing_else_is_known() -> None:
    """Which of many places an operator is at does not matter, how many there are does."""
    places = np.random.default_rng(3).integers(0, 2, size=(200, 30)).astype(float)
    number = places.sum(1, keepdims=True)
    truth = 1 + number[:, 0]
    nothing = np.zeros((200, 0))
    plain, summed = Transfer(places, nothing), Transfer(places, nothing, summary=number)
    chosen = measured(truth, 10)
    assert errors(summed.onboard(chosen), truth).mean() < 0.3 * errors(plain.onboard(chosen), truth).mean()


def test_same_input_same_forecast() -> None:
    first, second = (Transfer(FEATURES, TABLE[:, :4]).onboard(measured(TABLE[:, 7], 10)).predict() for _ in range(2))
    assert np.array_equal(first.low, second.low) and np.array_equal(first.latency, second.latency)


def test_chosen_models_tell_more_than_random_ones(transfer: Transfer) -> None:
    truth = TABLE[:, 7]
    chosen = transfer.choose(5)
    assert len(set(chosen)) == 5
    designed = errors(transfer.onboard([(row, float(truth[row])) for row in chosen]), truth).mean()
    random = [errors(transfer.onboard(measured(truth, 5, seed)), truth).mean() for seed in range(10)]
    assert designed < np.mean(random)
    assert set(transfer.choose(3, [4, 8, 15, 16])) <= {4, 8, 15, 16}


BAD = {
    "a zero": ([(0, 0.0), (1, 1.0)], r"model 0 was measured at 0\.0: a latency must be positive"),
    "a NaN": ([(0, 1.0), (1, math.nan)], "model 1 was measured at nan"),
    "an infinity": ([(0, 1.0), (1, math.inf)], "model 1 was measured at inf"),
    "a negative": ([(0, 1.0), (1, -1.0)], r"model 1 was measured at -1\.0"),
    "none": ([], "measured on the new device: 0, but it takes at least 2"),
    "one": ([(3, 1.0)], "measured on the new device: 1, but"),
    "one model twice": ([(3, 1.0), (3, 1.1)], "measured on the new device: 1, but"),
    "a model that is not there": ([(0, 1.0), (MODELS, 1.0)], f"model {MODELS} .* models 0 to {MODELS - 1}"),
    "a model before the first": ([(-1, 1.0), (1, 1.0)], "model -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_measurements_are_told_in_one_line(transfer: Transfer, case: str) -> None:
    given, clue = BAD[case]
    with pytest.raises(ProfileError, match=clue) as caught:
        transfer.onboard(given)
    assert "\n" not in str(caught.value)


def with_value(table: np.ndarray, value: float) -> np.ndarray:
    changed = table.copy()
    changed[3, 1] = value
    return changed


BAD_TABLES = {
    "a zero": (lambda: Transfer(FEATURES, with_value(TABLE, 0.0)), r"known device 1 takes 0\.0 for model 3"),
    "an infinity": (lambda: Transfer(FEATURES, with_value(TABLE, math.inf)), "known device 1 takes inf"),
    "a feature that is NaN": (lambda: Transfer(with_value(FEATURES, math.nan), TABLE), "1 features are NaN"),
    "other models": (lambda: Transfer(FEATURES[1:], TABLE), "same models by devices"),
    "no models": (lambda: Transfer(FEATURES[:0], TABLE[:0]), "same models by devices"),
    "a device never measured": (
        lambda: Transfer(FEATURES, np.full((MODELS, 1), np.nan)),
        "known device 0 has 0 measured models",
    ),
    "a coverage above 1": (lambda: Transfer(FEATURES, TABLE, coverage=95), "coverage is 95"),
    "unknown known latencies": (
        lambda: Transfer(FEATURES, TABLE, known=with_value(TABLE, math.nan)),
        "must be positive",
    ),
    "too many to choose": (lambda: Transfer(FEATURES, TABLE[:, :1]).choose(MODELS + 1), "1 to 160 can be chosen"),
    "other features to predict": (
        lambda: Transfer(FEATURES, TABLE[:, :1]).onboard([(0, 1.0), (1, 2.0)]).predict(FEATURES[:2]),
        "expected is",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_told_in_one_line(case: str) -> None:
    make, clue = BAD_TABLES[case]
    with pytest.raises(ProfileError, match=clue) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_surfaces_take_noise_out_and_leave_outliers_alone() -> None:
    exact = latencies(FEATURES, 2, noise=0.0)
    noisy = exact * np.exp(0.05 * np.random.default_rng(2).normal(size=exact.shape))
    noisy[7, 0] = 1e-3 * exact[7, 0]
    found = smooth(FEATURES, noisy).logs - np.log(exact)
    assert np.abs(found - found.mean(0)).mean() < 0.03
    assert abs(found[7, 0]) < 0.15


def test_similarity_is_a_covariance() -> None:
    similarity = Similarity.over(np.hstack([FEATURES, np.ones((MODELS, 1))]))
    places = similarity.places(np.hstack([FEATURES, np.ones((MODELS, 1))]))
    covariance = similarity.between(places, places)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    assert np.diag(covariance) == pytest.approx(similarity.variance(places))
    assert np.diag(covariance).mean() == pytest.approx(1.0)


def test_the_bound_is_below_the_evidence_and_close() -> None:
    """Oracle: the evidence under Student-t noise by averaging Gaussian evidences over drawn noise scales. The bound is
    a tenth of a nat below per observation."""
    generator = np.random.default_rng(0)
    factor = generator.normal(size=(6, 6))
    covariance, noise, target = factor @ factor.T, 0.5, generator.normal(size=6)
    found = observe(covariance[None], np.array([noise]), target).evidence[0]
    scales = generator.gamma(DEGREES / 2, 2 / DEGREES, size=(20000, 6))
    each = [multivariate_normal.pdf(target, cov=covariance + np.diag(noise**2 / s)) for s in scales]
    exact = math.log(np.mean(each))
    assert exact - 0.15 * 6 < found < exact + 0.02


def test_left_out_residuals_are_those_of_fits_without() -> None:
    """Closed form against solving without the observation, for noise too small to matter to its scales."""
    generator = np.random.default_rng(1)
    factor = generator.normal(size=(5, 5))
    covariance, target = factor @ factor.T + np.eye(5), generator.normal(size=5)
    off, variance = observe(covariance[None], np.array([1e-6]), target).left_out()
    rest = np.arange(1, 5)
    gain = covariance[0, rest] @ np.linalg.inv(covariance[np.ix_(rest, rest)])
    assert off[0, 0] == pytest.approx(target[0] - gain @ target[rest], rel=1e-4)
    assert variance[0, 0] == pytest.approx(covariance[0, 0] - gain @ covariance[rest, 0], rel=1e-4)


def test_a_prior_stays_a_probability_for_any_number_of_devices() -> None:
    uniform = Hypotheses.uniform(5, summarised=True)
    likely = np.random.default_rng(0).normal(size=(5, 3, 2, len(uniform.grid)))
    for hypotheses in (uniform, uniform.learnt(20 * likely), uniform.learnt(20 * likely).pruned()):
        for devices in (1, 2, 4, 9):
            prior = hypotheses.of(devices).prior
            assert prior.sum() == pytest.approx(1.0)
            assert (prior > 0).all()
            assert len(prior) == (devices + 1 if devices > 1 else 1)
    assert uniform.learnt(20 * likely).pruned().grid.shape[0] < uniform.grid.shape[0]
