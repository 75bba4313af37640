"""Magika (PyPI: magika), an ONNX file made by JAX that tells the type of a file from its first and last 1,024 bytes.

Its labels are the original's own answers: a score is the share of files on which a model agrees with it. The files are
those of the Python installation, at most 300 of each answer, split by a hash of their content.
"""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import autocompress as ac

BATCH = 50
BYTES = 1024
BLOCK = 4096
PADDING = 256
SMALLEST = 8
PER_SUFFIX = 500
PER_ANSWER = 300


def make_task(seed: int = 0) -> ac.Task:
    spec = find_spec("magika")
    if spec is None or spec.origin is None:
        raise SystemExit("magika is not installed: pip install --no-deps magika")
    [path] = sorted((Path(spec.origin).parent / "models").glob("*/model.onnx"))
    parts = collected(path)
    order = torch.Generator().manual_seed(seed)
    return ac.Task(
        model=str(path),
        example_inputs=parts["train"][:1][0],
        train=DataLoader(parts["train"], BATCH, shuffle=True, generator=order),
        validation=DataLoader(parts["validation"], BATCH),
        test=DataLoader(parts["test"], BATCH),
    )


def collected(model: Path) -> dict[str, TensorDataset]:
    """Half of the files train, a quarter each is for validation and test."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    seen: set[bytes] = set()
    kept: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)
    taken: dict[int, int] = defaultdict(int)
    for file in files():
        content = content_of(file)
        digest = hashlib.sha256(content).digest()
        if len(content) < SMALLEST or digest in seen:
            continue
        seen.add(digest)
        encoded = features(content, file.stat().st_size)
        answer = int(session.run(None, {"bytes": encoded[None]})[0].argmax())
        if taken[answer] < PER_ANSWER:
            taken[answer] += 1
            part = ("train", "train", "validation", "test")[digest[0] % 4]
            kept[part].append((torch.from_numpy(encoded), answer))
    return {
        part: TensorDataset(torch.stack([x for x, _ in found]), torch.tensor([answer for _, answer in found]))
        for part, found in kept.items()
    }


def files() -> Iterator[Path]:
    """Files of the installation and its packages, in an order that says nothing of their kind, so many of a suffix."""
    roots = {Path(sys.base_prefix), Path(sys.prefix)}
    found = {p for root in roots for p in root.rglob("*") if p.is_file() and not p.is_symlink() and p.suffix != ".pyc"}
    given: dict[str, int] = defaultdict(int)
    for path in sorted(found, key=_shuffled):
        given[path.suffix] += 1
        if given[path.suffix] <= PER_SUFFIX:
            yield path


def _shuffled(path: Path) -> bytes:
    return hashlib.sha256(f"{path.name} {path.stat().st_size}".encode()).digest()


def content_of(path: Path) -> bytes:
    """The first and the last block of a file, all of a small one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(BLOCK)
        file.seek(max(size - BLOCK, 0))
        return first if size <= BLOCK else first + file.read(BLOCK)


def features(content: bytes, size: int) -> np.ndarray:
    """int32 [2048] as magika makes them: 1,024 bytes from each end without the white space outside, padded inwards."""
    whole = size <= BLOCK
    first = (content.strip() if whole else content[:BLOCK].lstrip())[:BYTES]
    last = (content.strip() if whole else content[-BLOCK:].rstrip())[-BYTES:]
    found = np.full(2 * BYTES, PADDING, np.int32)
    found[: len(first)] = np.frombuffer(first, np.uint8)
    found[2 * BYTES - len(last) :] = np.frombuffer(last, np.uint8)
    return found
