"""Two processes that train together, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from singlestrip_bids.machine import processes

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["singlestrip_bids.cli", "singlestrip_bids.group"])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(folder: Path, work: Callable[..., Any], *given: Any) -> list[Any]:
    """Call a function in two processes; what it returns, by rank, and None where it died.

    What a process says goes to ``folder``, into a file named after its rank.
    """
    folder.mkdir(exist_ok=True)
    port, pipes, processes = free_port(), [], []
    for rank in range(2):
        receive, send = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_process, args=(rank, port, folder, send, work, given))
        process.start()
        send.close()
        pipes.append(receive)
        processes.append(process)
    try:
        results = [_received(pipe) for pipe in pipes]
        for process in processes:
            process.join(60)
        return results
    finally:
        for process in processes:
            process.kill()


def _received(pipe: Any) -> Any:
    assert pipe.poll(900), "a process does not come to its end"
    try:
        return pipe.recv()
    except EOFError:
        return None


def _process(rank: int, port: int, folder: Path, send: Any, work: Any, given: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    sys.stderr = (folder / str(rank)).open("w")
    result = work(*given)
    processes.leave()
    sys.stderr.flush()
    send.send(result)


def said(folder: Path) -> str:
    return "".join((folder / str(rank)).read_text() for rank in range(2))
