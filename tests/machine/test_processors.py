"""Processors that may be used, and those that have nothing else to do."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from singlestrip_bids.machine import processors, runtime


@pytest.fixture
def busy_everywhere():
    """One busy loop for each processor, and one more."""
    count = len(os.sched_getaffinity(0)) + 1
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(0.5)
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def stat(*rows: str) -> str:
    return "\n".join(["cpu 9 9 9 9", *rows, "intr 5", "ctxt 7"])


def test_not_more_are_free_than_allowed():
    assert 1 <= processors.free() <= processors.allowed() <= len(os.sched_getaffinity(0))


def test_none_is_free_but_one_is_used(busy_everywhere, threads, monkeypatch, caplog):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    caplog.set_level("INFO", "singlestrip_bids")
    assert processors.free() == 1
    runtime.start("cpu")
    assert torch.get_num_threads() == 1
    if processors.allowed() > 1:
        assert "processors busy; computing on 1 (--omp-nthreads sets it)" in caplog.text


@pytest.mark.parametrize("asked", ["option", "environment"])
def test_what_is_asked_for_counts(threads, monkeypatch, asked):
    monkeypatch.setattr(processors, "free", lambda: pytest.fail("nobody asked"))
    if asked == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
    else:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    runtime.start("cpu", 1 if asked == "option" else None)


@pytest.mark.parametrize(("shares", "free"), [([1, 1, 1, 1], 1), ([1, 1, 0, 1], 2), ([0.2], 2)])
def test_work_that_goes_on_counts(tmp_path, monkeypatch, shares, free):
    """The first processor works for these shares of the moments in which it is looked at."""
    worked, left = [100], list(shares)
    monkeypatch.setattr(processors, "STAT", tmp_path / "stat")
    monkeypatch.setattr(processors, "allowed", lambda: 2)
    monkeypatch.setattr(processors, "_own", lambda: {0, 1})
    sleep = time.sleep

    def moment(seconds: float) -> None:
        sleep(seconds)
        worked[0] += round(os.sysconf("SC_CLK_TCK") * seconds * left.pop(0))
        write()

    def write() -> None:
        rows = f"cpu0 {worked[0]} 0 0 500 9 0 0 0", "cpu1 100 0 0 500 9 0 0 0"
        processors.STAT.write_text(stat(*rows))

    write()
    monkeypatch.setattr(processors.time, "sleep", moment)
    assert processors.free() == free
    assert not left or free == 2


@pytest.mark.parametrize("content", [None, "", "cpu0 x y z", "nothing"])
def test_a_system_that_does_not_say(tmp_path, monkeypatch, content):
    monkeypatch.setattr(processors, "STAT", tmp_path / "stat")
    if content is not None:
        processors.STAT.write_text(content)
    assert processors.free() == processors.allowed()


@pytest.mark.parametrize(
    ("limit", "count"), [("50000 100000", 1), ("150000 100000", 2), ("max 100000", 4), ("", 4)]
)
def test_the_quota_of_the_control_group(tmp_path, monkeypatch, limit, count):
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(processors, "GROUPS", tmp_path)
    monkeypatch.setattr(processors, "_own", lambda: {0, 1, 2, 3})
    assert processors.allowed() == count
