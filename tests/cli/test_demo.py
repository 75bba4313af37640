"""The demonstration: its data and network, and (slow) that it shows what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from autocompress.cli import demo
from autocompress.evidence.scores import top1
from autocompress.search import load
from autocompress.task.checks import check_task


def test_the_splits_are_disjoint_and_whole() -> None:
    sizes = [len(demo.digits_of(split)[1]) for split in (demo.TRAIN, demo.VALIDATION, demo.TEST)]
    assert sum(sizes) == len(demo.digits()[1]) == 1797
    everyone = torch.cat([demo.digits_of(split)[0] for split in (demo.TRAIN, demo.VALIDATION, demo.TEST)])
    assert torch.equal(everyone, demo.digits()[0])


def test_every_split_has_every_digit() -> None:
    for split in (demo.TRAIN, demo.VALIDATION, demo.TEST):
        assert demo.digits_of(split)[1].unique().tolist() == list(range(10))


def test_shifted_batches_repeat_with_their_seed_and_differ_between_passes() -> None:
    def first(loader: demo.ShiftedBatches) -> torch.Tensor:
        return next(iter(loader))[1]

    images, labels = demo.digits_of(demo.TRAIN)
    one, same = demo.ShiftedBatches(images, labels), demo.ShiftedBatches(images, labels)
    assert torch.equal(first(one), first(same))
    assert not torch.equal(first(one), first(one))


def test_the_task_is_whole() -> None:
    check_task(demo.untrained_task())


def test_training_learns_and_leaves_the_net_ready() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(demo.SIZE**2, 10))
    demo.train_net(net, *demo.digits_of(demo.TRAIN), passes=2)
    assert not net.training
    assert top1(net, demo.batches(*demo.digits_of(demo.VALIDATION))).value > 0.7


def test_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "train_net", lambda *arguments: None)
    weights = tmp_path / "new" / "original.safetensors"
    made = demo.digits_task(weights).model
    with torch.no_grad():
        made.linear.bias.fill_(3.0)
    demo.save_file(made.state_dict(), weights)
    again = demo.digits_task(weights).model
    assert again.linear.bias.tolist() == [3.0] * 10


@pytest.mark.slow
def test_the_demo_ends_with_verified_models(tmp_path: Path) -> None:
    """How many and how fast is for people and benchmarks: on a starved machine the time may end before any."""
    command = [sys.executable, "-m", "autocompress.cli", "demo", "--out", str(tmp_path / "demo"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    study = load(tmp_path / "demo" / "run")
    assert {row["id"] for row in json.loads(done.stdout)} == {candidate.id for candidate in study.candidates}
    verified = [c for c in study.front if c.artifact is not None]
    assert all((study.path / c.artifact).exists() and c.measured and c.test_score for c in verified)
    assert not verified or study.drop(study.best(max_drop=0.01)) <= 0.01
    assert (study.path / "report.html").stat().st_size > 100_000
