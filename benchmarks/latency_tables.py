"""Latency tables that the transfer benchmark shares: models as features, and what devices took for them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NASBENCH_OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
FBNET_OPS = ((1, 3, 1), (1, 3, 2), (3, 3, 1), (6, 3, 1), (1, 5, 1), (1, 5, 2), (3, 5, 1), (6, 5, 1), None)
"""Expansion, window and groups by operator id; None is the skip (Wu et al., FBNet, CVPR 2019, table 2)."""

FBNET_STAGES = ((16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))
"""Channels, blocks and stride of the first (the same, table 1), after a stem of 16 channels at stride 2."""

HAT_DEVICES = {"raspberrypi": "cpu_raspberrypi", "xeon": "cpu_xeon", "titanxp": "gpu_titanxp"}
HAT_INNER = 512
"""Width inside HAT's attention, whatever the number of heads (Wang et al., HAT, ACL 2020, appendix)."""

_TRAIN = (
    "1080ti_1",
    "1080ti_32",
    "silver_4114",
    "silver_4210r",
    "samsung_a50",
    "pixel3",
    "essential_ph_1",
    "samsung_s7",
)
_VALIDATION = ("titanx_1", "titanx_32", "gold_6240")


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """`features` are what a predictor may know of a model, `counts` its operators, `macs` its multiplications;
    `latencies` [models, devices] in milliseconds, NaN where a device did not run a model."""

    name: str
    features: Floats
    counts: Floats
    macs: Floats | None
    latencies: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Split:
    """Devices whose latencies are known, and those that are new, one at a time."""

    train: tuple[str, ...]
    new: tuple[str, ...]


def nasbench201(data: Path) -> LatencyTable:
    frame = pd.read_csv(data / "nasbench201.csv.gz")
    return from_edges("NAS-Bench-201", frame)


def from_edges(name: str, frame: pd.DataFrame) -> LatencyTable:
    """A table with `arch_str`: which operator is on which of a cell's six edges."""
    edges = np.array([[NASBENCH_OPS.index(word) for word in _edge_words(text)] for text in frame["arch_str"]])
    counts = operator_counts(edges, len(NASBENCH_OPS))
    return LatencyTable(
        name, placed_operators(edges, len(NASBENCH_OPS)), counts, _nasbench_macs(counts), _latencies(frame)
    )


def fbnet(data: Path) -> LatencyTable:
    frame = pd.read_csv(data / "fbnet.csv.gz")
    ids = np.array(json.loads((data / "fbnet_archs.json").read_text()))
    counts, places = operator_counts(ids, len(FBNET_OPS)), placed_operators(ids, len(FBNET_OPS))
    return LatencyTable("FBNet", places, counts, _fbnet_macs(ids), _latencies(frame))


def hat(data: Path) -> LatencyTable:
    """Each device ran other models: the rows of all three, one after another."""
    frames = {}
    for device, name in HAT_DEVICES.items():
        frame = pd.read_csv(data / "hat" / f"wmt14ende_{name}_all.csv")
        frame[device] = frame["latency_mean_encoder"] + frame["latency_mean_decoder"]
        frames[device] = frame
    everything = pd.concat(frames.values(), ignore_index=True)
    given = everything.loc[:, [c for c in everything.columns if c.startswith(("encoder", "decoder"))]]
    layers = given["decoder_layer_num"].to_numpy()[:, None]
    totals = layers * given.filter(regex="^decoder_.*avg$").to_numpy()
    counts = np.hstack([given.to_numpy(dtype=np.float64), totals])
    return LatencyTable("HAT", counts, counts, _hat_macs(given), everything.loc[:, list(HAT_DEVICES)])


def from_csv(paths: Sequence[Path], archs: Path | None, devices: Sequence[str]) -> LatencyTable:
    """Files of the same form, joined on `index` where there are several. See `few_shot.py --help`."""
    frame = pd.read_csv(paths[0])
    for path in paths[1:]:
        further = pd.read_csv(path).drop(columns="arch_str", errors="ignore")
        frame = frame.merge(further.loc[:, [c for c in further if c not in frame or c == "index"]], "left", "index")
    missing = [device for device in devices if device not in frame]
    if missing:
        raise ValueError(f"no column {', '.join(missing)} in {', '.join(map(str, paths))}: it has {', '.join(frame)}")
    name = paths[-1].name
    if archs is None and "arch_str" in frame:
        return from_edges(name, frame)
    if archs is None:
        raise ValueError(f"{name} has no arch_str: describe its models by --archs FILE, in the order of its rows")
    rows = _described(archs)
    rows = rows[frame["index"].to_numpy()] if "index" in frame else rows
    if len(rows) != len(frame):
        raise ValueError(f"{archs} describes {len(rows)} models, {name} has {len(frame)}")
    if archs.suffix == ".json" and (rows == rows.astype(int)).all() and rows.min() >= 0:
        ids, kinds = rows.astype(int), int(rows.max()) + 1
        return LatencyTable(name, placed_operators(ids, kinds), operator_counts(ids, kinds), None, _latencies(frame))
    return LatencyTable(name, rows, rows, None, _latencies(frame))


def published_split(table: LatencyTable, test: bool) -> Split:
    """The published one (Lee et al., HELP, NeurIPS 2021), whose third batch size is 256 on NAS-Bench-201 and 64 on
    FBNet; its own test devices are not in these tables, so those are the test that it names neither as train nor as
    validation. On HAT's three devices each is new in turn, and there is no further test."""
    devices = list(table.latencies.columns)
    if set(devices) == set(HAT_DEVICES):
        return Split(tuple(devices), () if test else tuple(devices))
    largest = "256" if "1080ti_256" in devices else "64"
    train, validation = {*_TRAIN, f"1080ti_{largest}"}, {*_VALIDATION, f"titanx_{largest}"}
    new = [d for d in devices if d not in train | validation] if test else [d for d in devices if d in validation]
    return Split(tuple(d for d in devices if d in train), tuple(new))


def placed_operators(ids: NDArray[np.int_], kinds: int) -> Floats:
    """Which operator is where, and how often each occurs in all."""
    where = np.eye(kinds)[ids].reshape(len(ids), -1)
    return np.hstack([where, operator_counts(ids, kinds)])


def operator_counts(ids: NDArray[np.int_], kinds: int) -> Floats:
    return np.stack([(ids == kind).sum(1) for kind in range(kinds)], axis=1).astype(np.float64)


def _edge_words(text: str) -> list[str]:
    return [word.split("~")[0] for word in text.replace("+", "").split("|") if word]


def _latencies(frame: pd.DataFrame) -> pd.DataFrame:
    numbers = frame.drop(columns=["index", "arch_str"], errors="ignore").select_dtypes("number").astype(np.float64)
    return numbers.where(numbers > 0)


def _described(archs: Path) -> Floats:
    if archs.suffix == ".json":
        return np.array(json.loads(archs.read_text()), dtype=np.float64)
    return pd.read_csv(archs).drop(columns="index", errors="ignore").to_numpy(dtype=np.float64)


def _nasbench_macs(counts: Floats) -> Floats:
    """15 cells, five each of 16, 32 and 64 channels at 32, 16 and 8 pixels: channels times pixels, squared, are equal.
    Between them two residual blocks of stride 2, before them a 3x3 convolution (Dong & Yang, ICLR 2020, section 2.1).
    """
    edge = 16**2 * 32**2
    reduction = sum(9 * c * 2 * c * p**2 + 9 * (2 * c) ** 2 * p**2 + 2 * c * c * p**2 for c, p in ((16, 16), (32, 8)))
    fixed = 3 * 16 * 9 * 32**2 + reduction + 640
    macs: Floats = fixed + 15 * edge * (counts[:, 2] + 9 * counts[:, 3])
    return macs


def _fbnet_macs(ids: NDArray[np.int_]) -> Floats:
    """Of the 22 searched blocks, at 224 pixels, with the stem and the last convolution."""
    macs = np.full(len(ids), 3.0 * 16 * 9 * 112**2 + 352 * 1984 * 7**2)
    inputs, size, place = 16, 112, 0
    for outputs, blocks, stride in FBNET_STAGES:
        for block in range(blocks):
            step = stride if block == 0 else 1
            costs = np.array([_block_macs(op, inputs, outputs, size, step) for op in FBNET_OPS])
            macs += costs[ids[:, place]]
            inputs, size, place = outputs, size // step, place + 1
    return macs


def _block_macs(op: tuple[int, int, int] | None, inputs: int, outputs: int, size: int, stride: int) -> float:
    made = (size // stride) ** 2
    if op is None:
        return 0.0 if inputs == outputs and stride == 1 else inputs * outputs * made
    expansion, window, groups = op
    middle = inputs * expansion
    return inputs * middle * size**2 / groups + middle * window**2 * made + middle * outputs * made / groups


def _hat_macs(given: pd.DataFrame) -> Floats:
    """Per token, attention over the other tokens left out: the features do not say how many there are."""
    encoder, decoder = given["encoder_embed_dim"], given["decoder_embed_dim"]
    encoding = 4 * HAT_INNER * encoder + 2 * encoder * given["encoder_ffn_embed_dim_avg"]
    across = 2 * HAT_INNER * (decoder + encoder)
    decoding = 4 * HAT_INNER * decoder + across + 2 * decoder * given["decoder_ffn_embed_dim_avg"]
    macs: Floats = (given["encoder_layer_num"] * encoding + given["decoder_layer_num"] * decoding).to_numpy(np.float64)
    return macs
