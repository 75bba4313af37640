"""From search to verify by the command line: keyword inputs of several lengths, two heads in a dict."""

from pathlib import Path

import onnx
import pytest

from autocompress.cli.app import main
from autocompress.evidence.card import read_card

TASK = """
import torch
from torch.nn import functional as F

import autocompress as ac


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.inner, self.outer = torch.nn.Embedding(20, 16), torch.nn.Linear(16, 64), torch.nn.Linear(64, 16)
        self.kind, self.size = torch.nn.Linear(16, 3), torch.nn.Linear(16, 1)

    def forward(self, input_ids, attention_mask=None):
        states = self.words(input_ids)
        states = states + self.outer(self.inner(states).relu())
        kept = attention_mask[..., None]
        pooled = (states * kept).sum(1) / kept.sum(1)
        return {"logits": self.kind(pooled), "size": self.size(pooled), "states": states}


def batch(length):
    inputs = {"attention_mask": torch.ones(24, length, dtype=torch.long), "input_ids": torch.randint(0, 20, (24, length))}
    with torch.no_grad():
        answers = model(**inputs)
    return inputs, {"kind": answers["logits"].argmax(1), "size": answers["size"]}


def score(predict, split):
    hits = []
    for inputs, targets in split:
        outputs = predict(**inputs)
        assert list(outputs) == ["logits", "size", "states"] and outputs["states"].shape[:2] == inputs["input_ids"].shape
        hits.append((outputs["logits"].argmax(1) == targets["kind"]).float() - (outputs["size"] - targets["size"])[:, 0].abs())
    found = torch.cat(hits)
    return ac.Score(found.mean().item(), found.std().item() / len(found) ** 0.5, len(found))


def loss(outputs, targets):
    return F.cross_entropy(outputs["logits"], targets["kind"]) + F.mse_loss(outputs["size"], targets["size"])


torch.manual_seed(0)
model = Net().eval()
validation, train = [batch(n) for n in (8, 11, 6)], [batch(n) for n in (8, 9, 7)]
task = ac.Task(model, {"input_ids": validation[0][0]["input_ids"][:1], "attention_mask": torch.ones(1, 8, dtype=torch.long)},
               validation=validation, train=train, test=[batch(13)], score=score, loss=loss)
"""  # noqa: E501


@pytest.mark.slow
def test_two_heads_are_searched_exported_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, run, out = (str(tmp_path / name) for name in ("two_heads.py", "run", "model.onnx"))
    Path(task).write_text(TASK)
    for words in (
        ["search", task, "--trials", "6", "--time", "300", "--out", run],
        ["export", run, "--pick", "knee", "--out", out],
        ["verify", out, "--task", task],
    ):
        assert main(words) == 0, capsys.readouterr()
    shown = capsys.readouterr().out
    assert "every promise kept" in shown
    graph = onnx.load(out).graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in graph.output] == ["logits", "size", "states"]
    card = read_card(Path(out))
    assert card.widths == (3, 1, 8 * 16) and len(card.outputs[0]) == sum(card.widths) and card.parity.agrees
