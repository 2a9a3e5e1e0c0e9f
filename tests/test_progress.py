from __future__ import annotations

import io
import logging
import re
import sys

import pytest

from singlestrip_bids import progress as module
from singlestrip_bids.progress import Progress


class Clock:
    """A clock that moves on by one step at every call."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def no_terminal(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    return caplog


LINE = re.compile(r"fit: (\d+)/(\d+) (.*) \(([\d.]+)/s, (\d+):(\d\d):(\d\d) left\)")


def run_steps(monkeypatch, step_s: float, total: int, steps: int, **options) -> None:
    clock = Clock(step_s)
    monkeypatch.setattr(module.time, "monotonic", clock.monotonic)
    with Progress("fit", total, **options) as progress:
        for _ in range(steps):
            progress.step("loss 0.5")


class TestProgress:
    def lines(self, caplog) -> list[tuple]:
        found = [LINE.fullmatch(message) for message in caplog.messages]
        assert all(found)
        return [match.groups() for match in found]

    def test_line_every_interval_and_at_the_end(self, monkeypatch, no_terminal):
        run_steps(monkeypatch, 1.0, total=40, steps=40, interval=15.0)
        lines = self.lines(no_terminal)
        assert [int(line[0]) for line in lines] == [15, 30, 40]
        assert {line[1:3] for line in lines} == {("40", "loss 0.5")}

    def test_rate_and_time_left(self, monkeypatch, no_terminal):
        run_steps(monkeypatch, 4.0, total=1000, steps=10, interval=40.0)
        ((*_, rate, hours, minutes, seconds),) = self.lines(no_terminal)
        assert float(rate) == 0.25
        assert int(hours) * 3600 + int(minutes) * 60 + int(seconds) == 990 * 4

    def test_time_left_of_days(self, monkeypatch, no_terminal):
        run_steps(monkeypatch, 20.0, total=100_000, steps=1)
        ((*_, hours, minutes, seconds),) = self.lines(no_terminal)
        assert int(hours) * 3600 + int(minutes) * 60 + int(seconds) == 99_999 * 20

    def test_resumed(self, monkeypatch, no_terminal):
        run_steps(monkeypatch, 2.0, total=100, steps=10, start=90, interval=1e6)
        ((done, *_, rate, hours, minutes, seconds),) = self.lines(no_terminal)
        assert (int(done), float(rate)) == (100, 0.5)
        assert (hours, minutes, seconds) == ("00", "00", "00")

    def test_bar_on_a_terminal(self, monkeypatch, caplog):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        caplog.set_level(logging.INFO)
        with Progress("fit", 3) as progress:
            for _ in range(3):
                progress.step("loss 0.5")
        assert "fit: 100%" in terminal.getvalue()
        assert "3/3" in terminal.getvalue()
        assert not caplog.messages
