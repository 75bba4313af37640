"""Whether a file does what is promised of it: parity, score, measured time, and what really ran each node."""

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from autocompress.compression.tracing import fingerprint_of
from autocompress.devices import Device, Session, open_device
from autocompress.devices.base import Array, as_arrays
from autocompress.devices.measure import measure, reference_seconds, to_latency
from autocompress.evidence.card import Card, Parity, read_card
from autocompress.evidence.outputs import Rows, rows
from autocompress.evidence.scores import top1
from autocompress.export.onnx import plain_onnx
from autocompress.task.batches import Batch, first_batches, first_samples, size
from autocompress.task.calling import Calling, calling_of, flat_model
from autocompress.task.outputs import as_flat
from autocompress.task.task import Predict, Score, Task
from autocompress.vocabulary.errors import RunError, UntimedError, VerificationError
from autocompress.vocabulary.workload import Latency

Outputs = NDArray[np.floating[Any]]

SAMPLES = 16
"""Samples whose torch outputs a card keeps."""

FP32_SAFETY = 16.0
"""Factor on the rounding bound: runtimes sum in other orders, fuse, and use fast exponentials (a few ulp each)."""

ROUNDOFF = {"fp32": 0.0, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""Unit roundoff of the operands of a device that computes fp32 layers in less: half a step of a mantissa of 10 or 7
bits (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 2.1)."""

ROUNDING_SAFETY = 1.25
"""Factor on the measured effect of rounding (`sensitivity.rounding_effect`), itself above what independent roundings
make: both root mean squares are of few samples. Of nets with random weights ONNX Runtime was seen at 0 to 0.8 of the
effect, OpenVINO at 0.1 to 0.7."""

SLOWER = 1.10
"""Measured ratios repeat to about 10 % between machines of one kind; slower than this breaks the promise."""


Progress = Callable[[int, int], None]
"""Called with (batches scored, batches in all), where the splits say how many these are."""


@dataclass(frozen=True, slots=True)
class Check:
    """One promise and what was found."""

    name: str
    promised: str
    found: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of one artifact. `latency` and `baseline` are measured side by side, in this process; None where the
    device can't be timed, and `untimed` says why."""

    artifact: Path
    device: str
    checks: tuple[Check, ...]
    parity: Parity
    score: Score
    test: Score | None
    latency: Latency | None
    baseline: Latency | None
    providers: dict[str, int]
    untimed: str = ""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def speedup(self) -> float | None:
        return self.baseline.seconds / self.latency.seconds if self.baseline and self.latency else None

    @property
    def ran_on(self) -> str:
        return _counted(self.providers.items())

    def require(self) -> None:
        """Raises VerificationError naming every broken promise."""
        broken = [f"{c.name} promised {c.promised}, found {c.found}" for c in self.checks if not c.passed]
        if broken:
            raise VerificationError(f"{self.artifact} breaks its promise: {'; '.join(broken)}; do not ship it")


def verify(
    artifact: Path,
    task: Task,
    device: str = "ort:cpu",
    promised: Card | None = None,
    rounds: int = 60,
    progress: Progress | None = None,
) -> Verification:
    """Check a file against its card (by default the one beside it) on a device, with the task's data.

    The card promises speed, and what runs each node, for its own device only: elsewhere these are merely found out.
    Nothing is raised for a broken promise: look at `passed`, or call `require()`. Raises RunError where the file or its
    card is missing, damaged or made from another model.
    """
    if not artifact.is_file():
        raise RunError(f"no artifact {str(artifact)!r}; `autocompress export RUN --out model.onnx` writes one")
    card = promised or read_card(artifact)
    calling = calling_of(task)
    _require_same_model(task, calling, card)
    opened = open_device(device)
    session = opened.open(artifact)
    parity = _promised_parity(session, task, calling, card, precision_of(opened))
    scoring = predictor(opened.open(artifact, threads=2), calling)
    predict, score_on = _told(scoring, task, progress), task.score or top1
    score = score_on(predict, task.validation)
    test = score_on(predict, task.test) if task.test is not None else None
    latency, baseline, untimed = _times(opened, artifact, task, calling, rounds)
    providers = provider_counts(session)
    there = device == card.environment.get("device", device)
    checks = (
        _check_digest(artifact, card),
        _check_parity(parity),
        _check_score("validation score", card.validation, score),
        *([_check_score("test score", card.test, test)] if card.test and test else []),
        *([_check_time(card, latency, baseline)] if there and card.speedup and latency and baseline else []),
        *([_check_providers(card, providers)] if there else []),
    )
    return Verification(artifact, device, checks, parity, score, test, latency, baseline, providers, untimed)


def parity(expected: Outputs, found: Outputs, rounding: float, kernels: int, precision: str = "fp32") -> Parity:
    """Compare a torch model's outputs [samples, ...] with a file's on the same inputs.

    `rounding` is how far these outputs move with the rounding of 8-bit tensors (see sensitivity.py), `kernels` how many
    arithmetic kernels lie between input and output, `precision` what the device computes fp32 layers in. See
    `tolerance` for what is allowed.
    """
    if expected.shape != found.shape:
        return Parity(len(expected), math.inf, math.inf, 0.0)
    difference = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    largest = float(difference.max(initial=0.0)) if np.isfinite(difference).all() else math.inf
    rms = float(np.sqrt(np.mean(difference**2))) if math.isfinite(largest) else math.inf
    return Parity(len(expected), largest, rms, tolerance(expected, rounding, kernels, precision))


def worst_parity(
    expected: Rows, found: Rows, rounding: Sequence[float], kernels: int, precision: str = "fp32"
) -> Parity:
    """`parity` of the output that is furthest from what is allowed of it, each on its own scale, with its own effect of
    rounding."""
    if expected.values.shape != found.values.shape or expected.widths != found.widths:
        return Parity(len(expected.values), math.inf, math.inf, 0.0)
    parts = zip(expected.parts(), found.parts(), rounding, strict=True)
    each = [parity(e, f, effect, kernels, precision) for e, f, effect in parts]
    return max(each, key=lambda one: one.rms_difference / one.tolerance if one.tolerance else math.inf)


def tolerance(expected: Outputs, rounding: float, kernels: int, precision: str = "fp32") -> float:
    """Largest root-mean-square difference between a torch model and its export that rounding explains.

    In fp32 each kernel adds at most a few units in the last place of its sums: errors of L kernels, each a dot product
    of up to 4,096 terms, grow like sqrt(L * 4096) * eps (probabilistic bound; Higham and Mary 2019, section 2), times
    FP32_SAFETY. An 8-bit tensor is rounded by both sides, at worst independently: what that makes of this very model's
    outputs is `rounding`. Where the device rounds fp32 operands to fewer bits, each of the two of a kernel is off by up
    to u, uniformly: a variance of u^2 / 3, and L kernels add up to sqrt(2 L / 3) u.
    """
    spread = float(np.ptp(expected)) if expected.size else 0.0
    scale = max(spread, float(np.abs(expected).max(initial=0.0)), float(np.finfo(np.float32).tiny))
    fp32 = FP32_SAFETY * math.sqrt(kernels * 4096) * float(np.finfo(np.float32).eps)
    return (fp32 + math.sqrt(2 * kernels / 3) * ROUNDOFF[precision]) * scale + ROUNDING_SAFETY * rounding


def precision_of(device: Device) -> str:
    """What the device computes fp32 layers in."""
    return device.environment().get("precision", "fp32")


def predictor(session: Session, calling: Calling | None = None) -> Predict:
    """A deployed session as the callable that scores take: called as the user's model is, and returning what that does.

    Without `calling` it takes tensors and returns the file's outputs.
    """

    def run(inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        found = as_arrays(session.run(*(tensor.numpy() for tensor in inputs)))
        return tuple(torch.from_numpy(array) for array in found)

    def predict(*inputs: torch.Tensor) -> Any:
        outputs = run(inputs)
        return outputs if len(outputs) > 1 else outputs[0]

    return predict if calling is None else calling.predictor(run)


def provider_counts(session: Session) -> dict[str, int]:
    """How many nodes each backend really ran."""
    return dict(sorted(Counter(session.providers().values()).items()))


def validation_batch(task: Task, calling: Calling, count: int = SAMPLES) -> Batch:
    """The first samples of the validation split, at most so many as its first batch has."""
    return first_samples(calling.batch(*first_batches("validation", task.validation, 1)[0]), count)


def validation_samples(task: Task, count: int = SAMPLES, calling: Calling | None = None) -> tuple[Array, ...]:
    """The first samples of the validation split, as the runtime takes them."""
    inputs, _ = validation_batch(task, calling or calling_of(task), count)
    return tuple(tensor.numpy() for tensor in inputs)


def _told(predict: Predict, task: Task, progress: Progress | None) -> Predict:
    splits: tuple[object, ...] = (task.validation, task.test)
    whole = sum(len(split) for split in splits if isinstance(split, Sized))
    if progress is None or not whole:
        return predict
    done = 0

    def told(*inputs: Any, **named: Any) -> Any:
        nonlocal done
        outputs = predict(*inputs, **named)
        done += 1
        progress(min(done, whole), whole)
        return outputs

    return told


def _require_same_model(task: Task, calling: Calling, card: Card) -> None:
    found = fingerprint_of(task, calling)
    if found != card.plan.fingerprint:
        raise RunError(
            f"{card.artifact.path.name} was made from model {card.plan.fingerprint}, the task's model is {found}; "
            "give the task (and weights) it was searched with"
        )


def _promised_parity(session: Session, task: Task, calling: Calling, card: Card, precision: str) -> Parity:
    expected = Rows(np.array(card.outputs, dtype=np.float64), card.widths)
    found = session_rows(session, validation_batch(task, calling, len(expected.values)))
    return worst_parity(expected, found, card.rounding, len(session.providers()), precision)


def _times(
    device: Device, artifact: Path, task: Task, calling: Calling, rounds: int
) -> tuple[Latency, Latency, str] | tuple[None, None, str]:
    """The artifact's latency and the original's, or why there are none."""
    sample = validation_samples(task, 1, calling) if calling.axes.usual else calling.one_sample()
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        plain = Path(folder) / "original.onnx"
        plain_onnx(flat_model(task.model, calling), calling.examples, plain)
        try:
            found = measure(device, {"artifact": artifact, "original": plain}, plain, sample, rounds=rounds)
        except UntimedError as error:
            return None, None, str(error)
    reference_s = reference_seconds(found["artifact"])
    return to_latency(found["artifact"], reference_s), to_latency(found["original"], reference_s), ""


def _check_digest(artifact: Path, card: Card) -> Check:
    found = sha256(artifact.read_bytes()).hexdigest()
    return Check("file", card.artifact.sha256[:12], found[:12], found == card.artifact.sha256)


def _check_parity(found: Parity) -> Check:
    shown = f"{found.rms_difference:.2g} rms, {found.max_difference:.2g} at most, {found.samples} samples"
    return Check("parity", f"<= {found.tolerance:.2g} rms", shown, found.agrees)


def _check_score(name: str, promised: Score, found: Score) -> Check:
    """The same file on the same data scores the same; other hardware may round a few borderline samples otherwise."""
    passed = math.isfinite(found.value) and found.value >= promised.value - max(promised.stderr, 1e-12)
    return Check(name, _shown(promised), _shown(found), passed)


def _check_time(card: Card, latency: Latency, baseline: Latency) -> Check:
    assert card.speedup is not None, "only called with both measured"
    found = baseline.seconds / latency.seconds
    passed = baseline.seconds / latency.low >= card.speedup / SLOWER
    return Check("speed-up", f"{card.speedup:.2f}x", f"{found:.2f}x ({latency.seconds * 1e3:.3f} ms)", passed)


def _check_providers(card: Card, found: dict[str, int]) -> Check:
    """Nodes on a backend that the card does not know mean a silent fall-back."""
    strange = found.keys() - card.providers.keys()
    return Check("ran on", _counted(card.providers.items()), _counted(found.items()), bool(found) and not strange)


def _counted(items: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in items) or "nothing"


def _shown(score: Score) -> str:
    return f"{score.value:.4f} ± {score.stderr:.4f} (n={score.samples})"


def model_rows(model: torch.nn.Module, batch: Batch) -> Rows:
    """What a torch model, called with flat inputs, makes of a batch."""
    with torch.no_grad():
        outputs = as_flat(model(*batch[0]))
    return rows([tensor.numpy() for tensor in outputs], size(batch))


def session_rows(session: Session, batch: Batch) -> Rows:
    """What a deployed file makes of a batch."""
    return rows(as_arrays(session.run(*(tensor.numpy() for tensor in batch[0]))), size(batch))
