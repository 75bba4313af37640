import math

import pytest

from autocompress.search.clock import Clock

SHARES = {"setup": 0.1, "trials": 0.25, "fine_tuning": 0.55, "measuring": 0.1}


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def test_stages_get_their_shares(time):
    clock = Clock(200.0, SHARES, time)
    for stage, seconds in (("setup", 20), ("trials", 50), ("fine_tuning", 110), ("measuring", 20)):
        assert clock.until(clock.enter(stage)) == pytest.approx(seconds)
        time.now += seconds
    assert clock.left == pytest.approx(0) and clock.elapsed == pytest.approx(200)
    clock.leave()
    assert clock.stage_seconds == pytest.approx({"setup": 20, "trials": 50, "fine_tuning": 110, "measuring": 20})


def test_a_stage_that_runs_over_shortens_all_later_ones_alike(time):
    clock = Clock(200.0, SHARES, time)
    clock.enter("setup")
    time.now += 110
    assert clock.until(clock.enter("trials")) == pytest.approx(90 * 0.25 / 0.9)


def test_a_stage_that_ends_early_lengthens_them(time):
    clock = Clock(200.0, SHARES, time)
    clock.enter("setup")
    assert clock.until(clock.enter("trials")) == pytest.approx(200 * 0.25 / 0.9)


def test_the_last_stage_has_all_that_is_left(time):
    clock = Clock(200.0, SHARES, time)
    time.now += 150
    assert clock.until(clock.enter("measuring")) == pytest.approx(50)
    time.now += 70
    assert clock.left == 0 and clock.until(clock.enter("measuring")) == 0


def test_a_skipped_stage_leaves_its_share_to_the_others(time):
    clock = Clock(100.0, SHARES, time)
    clock.skip("fine_tuning")
    assert clock.until(clock.enter("trials")) == pytest.approx(100 * 0.25 / 0.35)
    assert clock.until(clock.enter("fine_tuning")) == 0


def test_time_is_spare_while_more_than_twice_the_last_stage_is_left(time):
    clock = Clock(100.0, SHARES, time)
    time.now += 79
    assert clock.spare
    time.now += 2
    assert not clock.spare


def test_without_a_limit_no_deadline_comes(time):
    clock = Clock(None, SHARES, time)
    assert clock.until(clock.enter("trials")) == math.inf and clock.left == math.inf and not clock.limited
    assert clock.until(clock.after(5)) == pytest.approx(5) and not clock.spare
