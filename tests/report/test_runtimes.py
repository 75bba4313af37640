"""One model under every runtime of the machine."""

import pytest

from autocompress.report.runtimes import FIRST, time_everywhere
from autocompress.vocabulary.errors import DeviceError
from tests.search.test_evaluator import tiny_task


def test_every_usable_device_is_timed_and_the_fastest_comes_first() -> None:
    rows = time_everywhere(tiny_task(), ["fake", FIRST])
    assert {row.device for row in rows} == {"fake", FIRST}
    seconds = [row.latency.seconds for row in rows if row.latency]
    assert seconds == sorted(seconds)
    by_name = {row.device: row for row in rows}
    for row in rows:
        assert row.latency is not None and row.speedup is not None
        assert row.speedup * row.latency.seconds == pytest.approx(by_name[FIRST].latency.seconds, rel=0.1)  # type: ignore[union-attr]
    assert by_name["fake"].latency.origin == "estimate"  # type: ignore[union-attr]
    assert by_name[FIRST].latency.origin.startswith("measured")  # type: ignore[union-attr]


def test_a_device_that_refuses_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from autocompress.report import runtimes

    opened = runtimes.open_device

    def refusing(name: str):  # type: ignore[no-untyped-def]
        if name == "broken":
            raise DeviceError("broken is not connected")
        return opened(name)

    monkeypatch.setattr(runtimes, "open_device", refusing)
    rows = time_everywhere(tiny_task(), [FIRST, "broken"])
    assert [row.device for row in rows] == [FIRST, "broken"]
    assert rows[-1].latency is None
    assert rows[-1].reason == "broken is not connected"
