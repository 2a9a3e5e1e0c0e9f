"""Device, threads, precision, memory, processes, seeds, signals and logging of a run."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import logging
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..errors import TemporaryFailure, Usage
from . import processes, processors

LOG = logging.getLogger("singlestrip_bids")

OUT_OF_MEMORY = torch.OutOfMemoryError
SLAB, THIN_SLAB = 16 << 20, 4 << 20  # bytes
LOOK_EVERY = 10  # steps of a training on a GPU: to look at a loss is to wait for it
Result = TypeVar("Result")
Item = TypeVar("Item")
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Runtime:
    """Where tensors live, how networks compute, and which of the run's processes this is.

    In prediction, layers whose input takes more than ``slab`` bytes are computed in slabs; None
    computes each layer whole. All processes take the same way through the same code; what has one
    result is written by the first.
    """

    device: torch.device  # of all tensors
    bfloat16: bool  # whether networks compute in this precision
    slab: int | None = None
    rank: int = 0  # number of this process
    world: int = 1  # how many there are

    def autocast(self) -> torch.autocast:
        """Context in which networks run."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def take(self, network: Network) -> Network:
        """Move a network to the device, to be applied; it can be trained later."""
        with torch.inference_mode(False):  # weights that move within it could not be
            return network.to(self.device).eval()

    def generator(self, *seed: int) -> torch.Generator:
        """Make a generator on the device, the same for the same numbers."""
        return torch.Generator(self.device).manual_seed(mix_seed(*seed))

    @property
    def main(self) -> bool:
        """Whether this is the first process, which writes what has one result."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """What ``--device`` may say to get this device again."""
        return str(self.device) if self.world == 1 else self.device.type

    @property
    def look_every(self) -> int:
        """Steps of a training between two looks at its losses."""
        return 1 if self.device.type == "cpu" else LOOK_EVERY

    def alone(self) -> Runtime:
        """Return the same for work that a process does without the others."""
        return replace(self, rank=0, world=1)

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """Let the first process go through the context before the others."""
        if not self.main:
            self.gather(None)
        yield
        if self.main:
            self.gather(None)

    @contextlib.contextmanager
    def share(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """Give this process its share of a list; within the context it may warn."""
        level = LOG.level
        LOG.setLevel(min(level, logging.WARNING))
        try:
            yield items[self.rank :: self.world]
        finally:
            LOG.setLevel(level)

    def collect(self, share: Sequence[Any]) -> list[Any]:
        """Undo :meth:`share`: put the plain data of all processes into the list's order."""
        shares = self.gather(share)
        whole: list[Any] = [None] * sum(map(len, shares))
        for rank, part in enumerate(shares):
            whole[rank :: self.world] = part
        return whole

    def gather(self, value: Any) -> list[Any]:
        """Exchange plain data: return that of every process, by rank. Each waits for all."""
        return [value] if self.world == 1 else processes.exchange(value, stop_asked)

    def average(self, network: nn.Module, loss: Tensor, weight: float) -> Tensor:
        """Average gradients and loss over the processes; nothing here waits for the device.

        The gradients of the network are replaced by their sum over all processes, each times its
        ``weight``: the share of the batch that a process has. The shares of all add up to 1.

        Returns (2,): the loss of the whole batch, and a number above 0 if any process was asked to
        stop.
        """
        own = loss.detach()
        state = torch.stack([own, torch.full_like(own, float(_Stop.asked))])
        if self.world == 1:
            return state
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = weight * torch.cat([*(gradient.flatten() for gradient in gradients), state])
        processes.add_up(flat)
        *sums, state = flat.split([*(gradient.numel() for gradient in gradients), 2])
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total.view_as(gradient))
        return state

    @property
    def way(self) -> str:
        """How it computes, in words."""
        where = "on the processor" if self.device.type == "cpu" else "on the GPU"
        return where if self.slab is None else f"{where} in slabs of {self.slab >> 20} MB"

    def rungs(self) -> list[Runtime]:
        """Return this and what needs less of the device's memory: thin slabs, the processor."""
        thin = replace(self, slab=THIN_SLAB)
        ladder = [self, thin, replace(thin, device=torch.device("cpu"), bfloat16=False)]
        return list(dict.fromkeys(ladder))


class Way(Protocol):
    """A way to compute the same, with more or less of the device's memory."""

    @property
    def way(self) -> str:
        """How, in words."""


AnyWay = TypeVar("AnyWay", bound=Way)


def as_memory_allows(compute: Callable[[AnyWay], Result], ways: Sequence[AnyWay]) -> Result:
    """Compute in the first way, and where the GPU's memory is full in the next, and say so.

    Raises torch.OutOfMemoryError if there is not even enough memory for the last way.
    """
    for way, below in itertools.pairwise(ways):
        try:
            return compute(way)
        except OUT_OF_MEMORY as error:
            why = str(error).split("\n")[0]
        LOG.warning("OUT OF MEMORY %s (%s): now %s.", way.way, why, below.way)
        torch.cuda.empty_cache()  # outside of the handler, which keeps tensors alive
    return compute(ways[-1])


def one_by_one(*tasks: Callable[[], Result]) -> list[Result]:
    """Do tasks in their order."""
    return [task() for task in tasks]


def side_by_side(*tasks: Callable[[], Result]) -> list[Result]:
    """Do small things on the processor in a thread each, since none of them fills all threads."""
    threads = torch.get_num_threads()
    share = max(threads // len(tasks), 1)
    try:
        with ThreadPoolExecutor(len(tasks), "side", torch.set_num_threads, (share,)) as pool:
            return list(pool.map(lambda task: task(), tasks))
    finally:
        torch.set_num_threads(threads)


def start(device: str, threads: int | None = None, low_memory: bool = False) -> Runtime:
    """Resolve ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` and set the number of threads.

    With ``low_memory``, prediction computes in thin slabs. Of several processes (torchrun) each
    takes the GPU of its number on this machine, and they join.

    Raises Usage if the device is not known or not there; a GPU that was asked for is never
    replaced by the processor.
    """
    _name_user()
    rank, world, local = processes.ranks()
    if world > 1:
        processes.meet()
    if threads:
        torch.set_num_threads(threads)
    elif world == 1 and "OMP_NUM_THREADS" not in os.environ:
        _leave_busy_processors()
    chosen = _device(device, local if world > 1 else None)
    gpu = chosen.type == "cuda"
    slab = THIN_SLAB if low_memory else None if gpu else SLAB
    bfloat16 = _gpu_has_bfloat16(chosen) if gpu else _cpu_has_bfloat16()
    if world > 1:
        alike = {tuple(one) for one in processes.exchange([chosen.type, bfloat16], stop_asked)}
        if len(alike) > 1:
            raise Usage(
                f"The processes have different devices (kind, bfloat16): {sorted(alike)}. Check "
                "the GPUs and drivers of all nodes, or use --device cpu."
            )
        if gpu:
            torch.cuda.set_device(chosen)
        processes.join("nccl" if gpu else "gloo")
    return Runtime(chosen, bfloat16, slab, rank, world)


def _leave_busy_processors() -> None:
    """Use as many threads as processors are free: one that waits for its turn stops them all."""
    allowed, free = processors.allowed(), processors.free()
    if free < allowed:
        LOG.info(
            "Other work keeps %d of %d processors busy; computing on %d (--omp-nthreads sets it).",
            allowed - free, allowed, free,
        )  # fmt: skip
    torch.set_num_threads(min(torch.get_num_threads(), free))


def _device(name: str, local: int | None) -> torch.device:
    """Resolve the name of a device; ``local`` is the number of this process among several."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu":
            LOG.info("No GPU found: computing on %d CPU threads.", torch.get_num_threads())
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise Usage(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N.") from error
    if chosen.type not in ("cpu", "cuda"):
        raise Usage(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N.")
    if chosen.type == "cuda" and local is not None:
        if chosen.index is not None:
            raise Usage(f"--device {name}: each process takes a GPU of its own; use auto or cuda.")
        chosen = torch.device("cuda", local)
    if chosen.type == "cuda" and not (
        torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count()
    ):
        raise Usage(
            f"--device {chosen}: this machine offers {torch.cuda.device_count()} CUDA devices; "
            "check the driver (docker needs --gpus all, Apptainer --nv) or use --device cpu."
        )
    return chosen


def _name_user() -> None:
    """Give home and name to a container's user without a passwd entry.

    Without a home pybids cannot be imported; without a name the optimisers of PyTorch 2.10 fail.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = tempfile.gettempdir()
    try:
        getpass.getuser()
    except (KeyError, OSError):  # Python 3.13 raises the second
        os.environ["USER"] = str(os.getuid())


def threads() -> int:
    """Return the number of CPU threads in use."""
    return torch.get_num_threads()


def _gpu_has_bfloat16(device: torch.device) -> bool:
    """Tell whether a GPU computes in bfloat16; older ones emulate it, slowly."""
    return torch.cuda.get_device_capability(device)[0] >= 8


def _cpu_has_bfloat16() -> bool:
    """Tell whether bfloat16 is faster here: only with instructions of its own (AVX-512, AMX)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def mix_seed(*seed: int) -> int:
    """Fold several integers into one 63-bit seed (FNV-1a over their bytes)."""
    value = 0xCBF29CE484222325
    for number in seed:
        for byte in int(number).to_bytes(8, "little", signed=True):
            value = ((value ^ byte) * 0x100000001B3) & (2**64 - 1)
    return value >> 1


def describe(device: torch.device) -> dict[str, Any]:
    """Versions and hardware of what runs on a device, for the model card."""
    from .. import __version__

    return {
        "singlestrip-bids": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: metadata.version(name) for name in ("numpy", "scipy", "scikit-learn", "nibabel")},
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "processes": processes.ranks()[1],
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def start_logging(verbosity: int) -> None:
    """Log to standard error: information by default, details with one -v.

    Of several processes only the first does; the others tell errors, and warnings of their share.
    """
    rank, *_ = processes.ranks()
    name = f" [process {rank}]" if rank else ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s{name} %(message)s", "%H:%M:%S")
    )
    LOG.handlers[:] = [handler]
    LOG.setLevel(logging.ERROR if rank else logging.DEBUG if verbosity else logging.INFO)
    LOG.propagate = False


class _Stop:
    """Whether SIGTERM has come."""

    asked = False


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    _Stop.asked = True


@contextlib.contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Within the context SIGTERM only asks; loops that call :func:`check_stop` answer."""
    _Stop.asked = False
    previous = signal.signal(signal.SIGTERM, _on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        _Stop.asked = False


def stop_asked() -> bool:
    """Tell whether SIGTERM has come."""
    return _Stop.asked


def check_stop() -> None:
    """Raise :class:`TemporaryFailure` (exit code 75) once SIGTERM has come."""
    if _Stop.asked:
        raise TemporaryFailure("Stopped by SIGTERM; the same command goes on from here.")
