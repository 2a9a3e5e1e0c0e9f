"""Three stages at a time: order, failures, and how many items are in memory."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from singlestrip_bids.pipeline import flow

BOTH = pytest.mark.parametrize("overlap", [True, False])


def same(item, value):
    return value


@BOTH
def test_in_order_through_all_stages(overlap):
    found = flow(range(7), lambda i: 2 * i, lambda i, r: (i, r + 1), same, overlap)
    assert list(found) == [(i, (i, 2 * i + 1)) for i in range(7)]


@BOTH
def test_of_nothing(overlap):
    assert list(flow([], abs, same, same, overlap)) == []


@BOTH
@pytest.mark.parametrize("stage", range(3))
def test_a_failure_stops_no_other_item(stage, overlap):
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


def test_the_next_is_read_and_the_last_written_meanwhile():
    """Each stage waits for the others to be at work: one after another this would never end."""
    together = threading.Barrier(3, timeout=60)

    def meet(item, first):
        if first <= item <= first + 2:  # reads 2 to 4, computes 1 to 3, writes 0 to 2
            together.wait()
        return item

    found = flow(range(5), lambda i: meet(i, 2), lambda i, _: meet(i, 1), lambda i, _: meet(i, 0))
    assert list(found) == [(i, i) for i in range(5)]


@BOTH
def test_who_stops_writes_no_more(overlap):
    written = []
    with closing(flow(range(9), abs, same, lambda i, _: written.append(i), overlap)) as found:
        for item, _ in found:
            if item == 2:
                break
    assert written == [0, 1, 2]


@pytest.mark.parametrize(("overlap", "most"), [(True, 3), (False, 1)])
def test_memory_does_not_grow_with_the_number_of_items(overlap, most):
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
