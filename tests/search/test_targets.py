"""One device of a search: it learns from what is timed, comes back after it was lost, and may not be here at all."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from autocompress.devices.base import Array, NodeTime
from autocompress.profiles import Profile, load
from autocompress.profiles.files import ModelRow
from autocompress.search import targets
from autocompress.search.engine import Baseline
from autocompress.search.objective import Objective
from autocompress.search.targets import ATTEMPTS, Target, Targets
from autocompress.task.task import Score
from autocompress.vocabulary.errors import DeviceError, DeviceLostError
from autocompress.vocabulary.workload import Capabilities, Latency
from tests.profiles.nets import random_net

ORIGINAL = Path("1.onnx")


@dataclass
class Board:
    """Takes as many milliseconds as a file's name says; loses the connection for the first `losses` timed runs, runs
    out of memory on `heavy` files, and has a broken clock for `odd` ones."""

    losses: int = 0
    heavy: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()
    timed: list[str] = field(default_factory=list)
    name: str = "board"
    runtime: str = "board 1"
    estimate: bool = False

    def capabilities(self) -> Capabilities:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {"device": self.name}

    def open(self, path: Path, threads: int = 1) -> "BoardSession":
        if path.stem in self.heavy:
            raise DeviceError(f"{path}: out of memory on the board")
        return BoardSession(self, path.stem)

    def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        raise NotImplementedError


@dataclass
class BoardSession:
    board: Board
    model: str

    def run(self, *inputs: Array) -> Array:
        return np.zeros(1)

    def providers(self) -> dict[str, str]:
        return {}

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        self.board.timed.append(self.model)
        if runs > 1 and self.board.losses:
            self.board.losses -= 1
            raise DeviceLostError("the board stopped answering; check its power and its network")
        return [float("nan") if self.model in self.board.odd else float(self.model) * 1e-3] * runs


@pytest.fixture
def profile() -> Profile:
    return load("arm-cortex-a76-roofline")


def target_on(board: Board, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setattr(Profile, "open_device", lambda self: board)
    monkeypatch.setattr(targets, "RECOVERY_S", 0.0)
    made = Target(profile, ORIGINAL, [])
    one = Latency(1e-3, 1e-3, 1e-3, 1.0, "measured")
    made.adopt(one, one, random_net(random.Random(0)), "original")
    return made


def test_files_are_timed_in_the_original_s_seconds(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = target_on(Board(), profile, monkeypatch).measure({"a": Path("0.5.onnx")}, 0.1, 16)
    assert timed.refused == {}
    assert timed.found["a"].seconds == pytest.approx(0.5e-3)
    assert timed.found["a"].origin == "measured"


def test_a_lost_device_is_tried_again(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(losses=ATTEMPTS - 1)
    timed = target_on(board, profile, monkeypatch).measure({"a": Path("0.5.onnx")}, 0.1, 16)
    assert timed.found["a"].seconds == pytest.approx(0.5e-3)
    assert board.losses == 0


def test_a_device_that_stays_lost_leaves_files_unmeasured(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(losses=1000)
    timed = target_on(board, profile, monkeypatch).measure({"a": Path("0.5.onnx"), "b": Path("2.onnx")}, 0.1, 16)
    assert timed.found == {}
    assert timed.refused == dict.fromkeys("ab", "the board stopped answering; check its power and its network")
    assert board.losses == 1000 - ATTEMPTS


def test_what_the_device_cannot_run_does_not_spoil_the_others(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(heavy=("9",), odd=("7",))
    paths = {name: Path(f"{name}.onnx") for name in ("9", "7", "0.5")}
    timed = target_on(board, profile, monkeypatch).measure(paths, 0.1, 16)
    assert timed.found.keys() == {"0.5"}
    assert "out of memory" in timed.refused["9"]
    assert "nan seconds; a time must be positive" in timed.refused["7"]


def test_a_device_that_is_elsewhere_is_priced(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Profile) -> Board:
        raise DeviceError("board is not connected")

    monkeypatch.setattr(Profile, "open_device", gone)
    target = Target(profile, ORIGINAL, [])
    kernels = random_net(random.Random(0))
    assert target.device is None
    assert target.measure({"a": Path("0.5.onnx")}, 1.0, 16).refused == {"a": "board is not connected"}
    assert target.baseline(Path("rewritten.onnx"), kernels)[0] == target.price(kernels) == profile.predict(kernels)


def test_what_is_timed_makes_the_next_prices_better(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The board takes half as long again as its roofline: known after a few lots."""
    target = target_on(Board(), profile, monkeypatch)
    lessons = []
    for lot in range(4):
        nets = [random_net(random.Random(100 * lot + i)) for i in range(6)]
        found = []
        for kernels in nets:
            truth = 1.5 * profile.predict(kernels).seconds * target._scale
            found.append((kernels, target.price(kernels), Latency(truth, truth, truth, 1.0, "measured")))
        lessons.append(target.learn(found))
    errors = [lesson.error for lesson in lessons if lesson is not None]
    assert errors[0] == pytest.approx(1 / 3, abs=0.01), "predicted 1, found 1.5"
    assert errors[-1] < 0.2 * errors[0]
    assert [lesson.models for lesson in lessons if lesson] == [6] * 4


def untouched(milliseconds: float, origin: str = "measured") -> Latency:
    seconds = milliseconds * 1e-3
    return Latency(seconds, 0.99 * seconds, 1.01 * seconds, 1.0, origin)


def ort_target(monkeypatch: pytest.MonkeyPatch, profile: Profile | None = None) -> tuple[Target, Latency]:
    """A measured profile's target, and what it predicts for the model below."""
    target = target_on(Board(), profile or load("intel-xeon-amx-ort"), monkeypatch)
    return target, target.profile.predict(NET)


NET = random_net(random.Random(1))


@pytest.mark.parametrize(("factor", "told"), [(1.0, False), (1.3, False), (3.0, True), (0.2, True)])
def test_an_untouched_model_that_takes_another_time_than_predicted_is_told(
    factor: float, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within its interval, and what processes differ by, nothing is said; else both numbers, and what to do."""
    target, predicted = ort_target(monkeypatch)
    found = untouched(factor * 1e3 * predicted.seconds)
    doubt = target.doubt(untouched(1.0), found, NET, "original")
    assert (doubt is not None) == told
    if doubt is not None:
        assert f"{1e3 * predicted.seconds:.3g} ms" in doubt and f"{1e3 * found.seconds:.3g} ms" in doubt
        assert "autocompress profile ort:cpu --task TASK --out DIR" in doubt and "\n" not in doubt


def test_a_profile_of_this_very_model_is_held_to_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a day when all is three times as slow, it is right; where the rewritten model alone is slow, it is not."""
    shipped = load("intel-xeon-amx-ort")
    row = replace_id(shipped.models[0], "original")
    own = replace(shipped, models=(row, *shipped.models[1:]))
    target, predicted = ort_target(monkeypatch, own)
    slow_day = 3e3 * own.reference_s
    ratio = predicted.seconds / own.reference_s
    assert target.doubt(untouched(slow_day), untouched(slow_day * ratio), NET, "original") is None
    assert target.doubt(untouched(slow_day), untouched(3 * slow_day * ratio), NET, "original") is not None


def test_what_was_not_timed_leaves_no_doubt(monkeypatch: pytest.MonkeyPatch, profile: Profile) -> None:
    """A prediction can't contradict itself, nor can the roofline of a datasheet."""
    target, _ = ort_target(monkeypatch)
    assert target.doubt(untouched(1.0), untouched(1e6, "predicted"), NET, "original") is None
    datasheet, _ = ort_target(monkeypatch, profile)
    assert datasheet.doubt(untouched(1.0), untouched(1e6, "estimate"), NET, "original") is None
    assert datasheet.doubt(untouched(1.0), untouched(1e6), NET, "original") is not None


def test_every_profile_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    right, predicted = ort_target(monkeypatch)
    wrong = Target(load("arm-cortex-a76-roofline"), ORIGINAL, [])
    aims = Targets(Objective.WORST, [right, wrong])
    timed = {right.name: (untouched(1.0), predicted), wrong.name: (untouched(1.0), untouched(1e6))}
    doubts = aims.doubts(timed, NET, "original")
    assert len(doubts) == 1 and wrong.name in doubts[0]
    kept = Baseline(Score(1, 0, 1), Score(1, 0, 1), predicted, 1, 1, 1, doubts=doubts)
    assert Baseline.from_document(json.loads(json.dumps(kept.to_document()))).doubts == doubts


def replace_id(row: ModelRow, name: str) -> ModelRow:
    return row.model_copy(update={"id": name})


def test_nothing_timed_teaches_nothing(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_on(Board(), profile, monkeypatch)
    assert target.learn([]) is None
    assert target.profile is profile
    assert replace(target.profile) == profile
