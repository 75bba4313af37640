"""Further processes that run trials beside the first one."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

JOIN_S = 10.0
"""A worker gets this long to end its last trial; then it is ended, and its trial is tried again by a resumed run."""


@contextmanager
def crew(count: int, work: Callable[[int], None]) -> Iterator[None]:
    """Forks `count` processes that each do `work(number)`, numbers from 1, while the body runs; then waits for them.

    They inherit everything that was set up and share nothing with the body but files. Ctrl-C is the body's to handle:
    if it ends by an exception, the workers are ended too.
    """
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_deaf, args=(work, number), daemon=True) for number in range(1, count + 1)]
    for process in processes:
        process.start()
    try:
        yield
        for process in processes:
            process.join(JOIN_S)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _deaf(work: Callable[[int], None], number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    work(number)
