"""The processes of one run, as torchrun starts them: which is this, what do the others say.

Plain data go through the store that the processes meet at: who waits there for hours needs no
time limit, and notices that another has failed. Tensors are added up by torch.distributed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from ..errors import TemporaryFailure

TIMEOUT = timedelta(minutes=30)  # of a sum; all processes come to it at about the same time
GRACE_S = 10.0  # after SIGTERM, for the others to say how far they have come
FAREWELL = timedelta(seconds=5)
PAUSE_S = 0.05
_FAILED = "failed"


class _Meeting:
    """The store, and how often this process has exchanged data; all do so in the same order."""

    store: dist.Store | None = None
    exchanges = 0


def ranks() -> tuple[int, int, int]:
    """Return the number of this process, of all, and of this one on its machine."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(os.environ.get(name) for name in names):
        return 0, 1, 0
    rank, world, local = (int(os.environ[name]) for name in names)
    return rank, world, local


def meet() -> None:
    """Find the store, so that a failure can be told of."""
    store, *_ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    _Meeting.store, _Meeting.exchanges = dist.PrefixStore(f"attempt-{attempt}", store), 0


def join(backend: str) -> None:
    """Get ready to add up tensors (``gloo`` on processors, ``nccl`` on GPUs); waits for all."""
    rank, world, _ = ranks()
    dist.init_process_group(
        backend, store=_Meeting.store, rank=rank, world_size=world, timeout=TIMEOUT
    )


def leave() -> None:
    """Part from the other processes."""
    store, (rank, world, _) = _Meeting.store, ranks()
    if dist.is_initialized() and not (dist.get_backend() == "nccl" and _failed(store)):
        dist.destroy_process_group()  # of NCCL's, all must do so: some wait for a sum for ever
    if store is not None and not dist.is_torchelastic_launched():  # then the first one keeps it
        with contextlib.suppress(RuntimeError):
            store.set(f"left/{rank}", "")
            if rank == 0:
                store.wait([f"left/{number}" for number in range(world)], FAREWELL)
    _Meeting.store = None


def _failed(store: dist.Store | None) -> bool:
    try:
        return store is None or bool(store.check([_FAILED]))
    except RuntimeError:  # the process that kept it has ended
        return True


def exchange(value: Any, hurry: Callable[[], bool]) -> list[Any]:
    """Exchange plain data, through JSON; that of every process comes back, by rank.

    ``hurry`` tells whether this process was asked to stop: it waits a little longer, then no more.
    Raises TemporaryFailure if another process has failed, or none answers to one in a hurry.
    """
    rank, world, _ = ranks()
    store, patience = _Meeting.store, GRACE_S
    assert store is not None
    _Meeting.exchanges += 1
    keys = [f"{_Meeting.exchanges}/{number}" for number in range(world)]
    try:
        store.set(keys[rank], json.dumps(value))
        while not store.check(keys):
            if store.check([_FAILED]):
                raise _lost("failed")
            if patience < 0:
                raise TemporaryFailure(
                    "Stopped by SIGTERM while other processes were at work; the same command goes "
                    "on from the last checkpoint."
                )
            time.sleep(PAUSE_S)
            patience -= PAUSE_S * hurry()
        return [json.loads(store.get(key)) for key in keys]
    except RuntimeError as error:  # the store has gone with the process that kept it
        raise _lost(error) from error


def add_up(tensor: Tensor) -> None:
    """Replace a tensor by the sum of those of all processes.

    Raises TemporaryFailure if another process has ended (gloo). With NCCL nothing is raised:
    torchrun, or SLURM, ends the processes that wait.
    """
    try:
        dist.all_reduce(tensor)
    except RuntimeError as error:
        raise _lost(error) from error


def failed_before(code: int) -> int | None:
    """Return the exit code of the process that failed before all others; None if this one is it.

    That process says why, and all end with its exit code.
    """
    store, (rank, *_) = _Meeting.store, ranks()
    if store is None:
        return None
    if rank:
        time.sleep(10 * PAUSE_S)  # where all fail alike, the first process is the one that speaks
    own = f"{rank} {code}"
    try:
        first = store.compare_set(_FAILED, "", own).decode()
    except RuntimeError:  # as above; better told twice than never
        return None
    return None if first == own else int(first.split()[1])


def _lost(why: object) -> TemporaryFailure:
    line = str(why).strip().split("\n")[0]
    return TemporaryFailure(
        f"Another process of this run has ended or does not answer ({line}); the same command "
        "goes on from the last checkpoint."
    )
