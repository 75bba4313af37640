"""A search as its own process, which announces every question to its evaluator: something to kill.

Usage: python -m tests.search.searcher RUN [TRIALS]
"""

import sys
from pathlib import Path

from autocompress.search.config import load_settings
from autocompress.search.loop import run
from tests.search.fake import FakeEvaluator


def main() -> None:
    evaluator = FakeEvaluator(before=lambda what, key: print(what, key, flush=True))
    trials = int(sys.argv[2]) if len(sys.argv) > 2 else 30
    settings = load_settings(None, trials=trials, fine_tuning={"time_s": 60.0})
    study = run(lambda _: evaluator, settings, Path(sys.argv[1]))
    print("front", " ".join(candidate.id for candidate in study.front), flush=True)


if __name__ == "__main__":
    main()
