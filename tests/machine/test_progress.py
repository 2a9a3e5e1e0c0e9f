"""How far a run has come, and its items on their way through three stages."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from contextlib import closing

import pytest

from singlestrip_bids.machine import progress
from singlestrip_bids.machine.progress import Progress, flow


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
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    with Progress("fit", total, **options) as shown:
        for _ in range(steps):
            shown.step("loss 0.5")


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


BOTH = pytest.mark.parametrize("overlap", [True, False])


def same(item, value):
    return value


class TestFlow:
    @BOTH
    def test_in_order_through_all_stages(self, overlap):
        found = flow(range(7), lambda i: 2 * i, lambda i, r: (i, r + 1), same, overlap)
        assert list(found) == [(i, (i, 2 * i + 1)) for i in range(7)]

    @BOTH
    def test_of_nothing(self, overlap):
        assert list(flow([], abs, same, same, overlap)) == []

    @BOTH
    @pytest.mark.parametrize("stage", range(3))
    def test_a_failure_stops_no_other_item(self, stage, overlap):
        def fail(number):
            def work(item, value=0):
                if number == stage and item in (0, 3):
                    raise ValueError(item)
                return item

            return work

        found = dict(flow(range(5), *map(fail, range(3)), overlap))
        assert list(found) == list(range(5))
        assert {i: str(found[i]) for i in (0, 3)} == {0: "0", 3: "3"}
        assert [found[i] for i in (1, 2, 4)] == [1, 2, 4]

    def test_the_next_is_read_and_the_last_written_meanwhile(self):
        """Each stage waits for the others: one after another this would never end."""
        together = threading.Barrier(3, timeout=60)

        def meet(item, first):
            if first <= item <= first + 2:  # reads 2 to 4, computes 1 to 3, writes 0 to 2
                together.wait()
            return item

        found = flow(
            range(5), lambda i: meet(i, 2), lambda i, _: meet(i, 1), lambda i, _: meet(i, 0)
        )
        assert list(found) == [(i, i) for i in range(5)]

    @BOTH
    def test_who_stops_writes_no_more(self, overlap):
        written = []
        with closing(flow(range(9), abs, same, lambda i, _: written.append(i), overlap)) as found:
            for item, _ in found:
                if item == 2:
                    break
        assert written == [0, 1, 2]

    @pytest.mark.parametrize(("overlap", "most"), [(True, 3), (False, 1)])
    def test_memory_does_not_grow_with_the_number_of_items(self, overlap, most):
        alive, peak, lock = 0, 0, threading.Lock()

        class Held:
            def __init__(self):
                nonlocal alive, peak
                with lock:
                    alive += 1
                    peak = max(peak, alive)

            def __del__(self):
                nonlocal alive
                with lock:
                    alive -= 1

        for _ in flow(range(50), lambda i: Held(), same, lambda i, held: i, overlap):
            pass
        assert peak <= most
        assert alive == 0
