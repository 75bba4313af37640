"""What the stages after the trials do with the time that they have."""

from dataclasses import replace

import pytest

from autocompress.search.candidate import Candidate, Rung, Status
from autocompress.search.clock import Clock
from autocompress.search.config import Settings
from autocompress.search.ledger import Ledger
from autocompress.search.promotion import Promotion
from autocompress.search.records import RunFolder
from autocompress.search.rungs import Limits
from tests.search.fake import FakeEvaluator, fake_space

SHARES = {"setup": 0.0, "trials": 0.0, "fine_tuning": 0.9, "measuring": 0.1}


class Slow(FakeEvaluator):
    """Building a model takes `build_s` seconds of a clock of its own, training as long as it was given."""

    now = 0.0
    build_s = 0.0

    def export(self, plan, weights, path):
        Slow.now += self.build_s
        return super().export(plan, weights, path)

    def fine_tune(self, plan, starts, seconds, weights):
        Slow.now += seconds
        return super().fine_tune(plan, starts, seconds, weights)


@pytest.mark.parametrize("build_s", [0.0, 2.0, 7.5, 20.0])
def test_fewer_plans_are_trained_where_building_takes_long(build_s, tmp_path):
    """With 90 s for training, some plan is trained for at least as long as building it takes, and time is kept."""
    Slow.now = 0.0
    evaluator = Slow()
    evaluator.build_s = build_s
    folder = RunFolder(tmp_path / "run")
    with folder.opened():
        ledger, baseline = Ledger(folder), evaluator.baseline()
        for candidate in scored(evaluator, build_s):
            ledger.record(candidate)
        clock = Clock(100.0, SHARES, lambda: Slow.now)
        promotion = Promotion(
            evaluator, ledger, folder, Settings(), Limits(max_drop=0.02), baseline, clock, lambda stage, text: None
        )
        deadline = clock.enter("fine_tuning")
        promotion.fine_tune(deadline)
    trained = [c for c in ledger.candidates.values() if c.trained_s > 0]
    assert trained and max(c.trained_s for c in trained) >= max(build_s, 1.0)
    assert Slow.now <= deadline + build_s


def scored(evaluator: FakeEvaluator, build_s: float) -> list[Candidate]:
    """Every plan of one decision, as the trials leave it."""
    space = fake_space()
    plans = [space.plan({d.name: option}) for d in space.decisions for option in range(1, len(d.options))]
    found = []
    for plan in plans:
        price = evaluator.price(plan)
        candidate = Candidate(plan.key, plan, Rung.VALIDATED, Status.COMPLETE, price.latency, None, seconds=build_s)
        found.append(replace(candidate, score=evaluator._score(0.92 - evaluator._error(plan), 5000)))
    return found
