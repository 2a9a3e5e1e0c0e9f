"""How far a run has come: a bar, or lines in a log; three items at a time on their way."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from tqdm import tqdm

from . import processes

LOG = logging.getLogger("singlestrip_bids")

Item = TypeVar("Item")
Read = TypeVar("Read")
Made = TypeVar("Made")
Done = TypeVar("Done")


def flow(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    compute: Callable[[Item, Read], Made],
    write: Callable[[Item, Made], Done],
    overlap: bool = True,
) -> Generator[tuple[Item, Done | Exception], None, None]:
    """Take each item through three stages; one that fails stops no other.

    At most three items are in memory, however many there are. ``read`` and ``write`` run in a
    thread each, ``compute`` in that of the caller. Without ``overlap`` one item is finished before
    the next is read.

    Yields each item, in order, with what ``write`` returned or the exception of the stage that
    failed. No item is written before the one before it was yielded: a caller that stops there has
    no more of them.
    """
    threads = torch.get_num_threads()  # which each thread counts for itself
    with (
        ThreadPoolExecutor(1, "read", torch.set_num_threads, (threads,)) as reader,
        ThreadPoolExecutor(1, "write", torch.set_num_threads, (threads,)) as writer,
    ):
        writing: list[tuple[Item, Future[Done]]] = []
        for item, reading in _ahead(items, lambda one: reader.submit(read, one), overlap):
            made: Future[Made] = Future()
            try:
                made.set_result(compute(item, reading.result()))
            except Exception as error:
                made.set_exception(error)
            yield from _outcomes(writing)
            writing = [(item, writer.submit(_finish, write, item, made))]
            if not overlap:
                yield from _outcomes(writing)
                writing = []
        yield from _outcomes(writing)


def _ahead(
    items: Iterable[Item], submit: Callable[[Item], Future[Read]], overlap: bool
) -> Iterator[tuple[Item, Future[Read]]]:
    """Have each item read, the next one before this one is handed out."""
    waiting: list[tuple[Item, Future[Read]]] = []
    for item in items:
        waiting.append((item, submit(item)))
        if len(waiting) > overlap:
            yield waiting.pop(0)
    yield from waiting


def _finish(write: Callable[[Item, Made], Done], item: Item, made: Future[Made]) -> Done:
    return write(item, made.result())


def _outcomes(
    writing: Iterable[tuple[Item, Future[Done]]],
) -> Iterator[tuple[Item, Done | Exception]]:
    """Wait for what is being written."""
    for item, future in writing:
        try:
            yield item, future.result()
        except Exception as error:
            yield item, error


class Progress:
    """A bar on a terminal; otherwise a log line every ``interval`` seconds.

    ``start`` of the ``total`` steps were done before, in a training that is resumed.
    """

    def __init__(self, label: str, total: int, start: int = 0, interval: float = 15.0) -> None:
        self.label, self.total, self.done, self.first = label, total, start, start
        self.interval = interval
        self.began = self.last = time.monotonic()
        self.bar = (
            tqdm(total=total, initial=start, desc=label, file=sys.stderr)
            if sys.stderr.isatty() and not processes.ranks()[0]
            else None
        )

    def step(self, note: str = "", steps: int = 1) -> None:
        """Count steps; ``note`` is shown beside the count (a loss, a name)."""
        self.done += steps
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(steps)
            return
        now = time.monotonic()
        if now - self.last >= self.interval or self.done == self.total:
            self.last = now
            rate = (self.done - self.first) / max(now - self.began, 1e-9)
            minutes, seconds = divmod(round((self.total - self.done) / rate), 60)
            left = f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
            LOG.info(
                "%s: %d/%d %s (%.2f/s, %s left)",
                self.label, self.done, self.total, note, rate, left,
            )  # fmt: skip

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
