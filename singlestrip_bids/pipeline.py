"""Three items at a time: while one is computed, the next is read and the last is written."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

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

    Parameters
    ----------
    items : iterable
        At most three of them are in memory, however many there are.
    read, write : callable
        Each runs in a thread of its own.
    compute : callable
        Runs in the thread of the caller.
    overlap : bool
        If not, one item is finished before the next is read.

    Yields
    ------
    tuple
        Each item, in order, with what ``write`` returned or the exception of the stage that
        failed. No item is written before the one before it was yielded: a caller that stops
        there has no more of them.
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
