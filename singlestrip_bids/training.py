"""The one training loop, for the U-Net, its fine-tuning and the autoencoder."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoints, optimisers
from .config import TrainingConfig
from .errors import BadData, NoInput, TemporaryFailure
from .progress import Progress
from .runtime import Runtime, as_memory_allows, mix_seed

LOG = logging.getLogger("singlestrip_bids")

Loss = Callable[[nn.Module, Sequence[torch.Generator]], Tensor]

SAVE_EVERY_S = 60.0
WARM_UP = 0.03  # share of the steps in which a cosine schedule rises


@dataclass(frozen=True)
class _Way:
    """How a batch goes through a network: one image at a time, its activations computed twice."""

    way: str
    apart: bool = False
    recompute: bool = False


WAYS: Sequence[_Way] = (
    _Way("training on whole batches"),
    _Way("training on one image at a time", apart=True),
    _Way("training on one image at a time, computing layers twice", apart=True, recompute=True),
)


def learning_rate(step: int, settings: TrainingConfig) -> float:
    """Learning rate of a step: constant, or a linear rise and a cosine fall to zero."""
    if not settings.cosine:
        return settings.learning_rate
    rise = max(int(WARM_UP * settings.steps), 1)
    if step < rise:
        return settings.learning_rate * (step + 1) / rise
    fall = (step - rise) / max(settings.steps - rise, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * fall))


def fit(
    network: nn.Module,
    loss: Loss,
    settings: TrainingConfig,
    runtime: Runtime,
    checkpoint: Path,
    fingerprint: str,
    seed: int,
    label: str,
) -> list[float]:
    """Train a network in place.

    On a processor the same seed gives the same weights, interrupted or not. Several processes
    share the images of a batch, average their gradients, and all take the same step. The first one
    saves. Images do not depend on how many processes there are. Where the memory of a GPU is full,
    a batch goes through the network in a way that needs less of it.

    Parameters
    ----------
    network : nn.Module
        On the device of ``runtime``.
    loss : callable
        ``loss(network, generators) -> Tensor``: draws an image from each generator and returns
        their mean loss. Generators are seeded from ``seed``, the step and the image's number.
    settings : TrainingConfig
        Steps, learning rate and size of a batch: not less than there are processes.
    checkpoint : Path
        Where the state of an unfinished training lies; it is taken up if its fingerprint agrees
        and removed by the caller once the result is safe.
    fingerprint : str
        Of all that decides the result.
    label : str
        For the progress display.

    Returns
    -------
    list of float
        The loss of every step.

    Raises
    ------
    TemporaryFailure
        SIGTERM came to any process; the state is saved.
    BadData
        The loss is not finite.
    """
    optimiser = optimisers.make(network.parameters(), settings)
    history = _take_up(network, optimiser, checkpoint, fingerprint, label)
    if len(set(runtime.gather(len(history)))) > 1:
        raise NoInput(f"{checkpoint}: not all processes see it; give them one --work-dir.")
    images = range(settings.batch_size)[runtime.rank :: runtime.world]
    weight = len(images) / settings.batch_size
    ways = WAYS
    states: list[Tensor] = []  # of the last steps, on the device: nobody has looked at them yet
    saved = time.monotonic()
    network.train()
    with Progress(label, settings.steps, len(history)) as progress:
        for step in range(len(history), settings.steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, settings)
            compute = partial(_gradients, network, loss, runtime, (seed, step), images)
            value, way = as_memory_allows(compute, ways)
            ways = ways[ways.index(way) :]
            states.append(runtime.average(network, value, weight))
            optimiser.step()
            if len(states) < runtime.look_every and step + 1 < settings.steps:
                continue
            losses, asked = torch.stack(states).T.tolist()
            states.clear()
            _check(losses, len(history), label)
            history += losses
            recent = history[-50:]
            progress.step(f"loss {sum(recent) / len(recent):.4f}", len(losses))
            if runtime.main and (any(asked) or time.monotonic() - saved > SAVE_EVERY_S):
                _save(network, optimiser, checkpoint, fingerprint, history)
                saved = time.monotonic()
            if any(asked):
                runtime.gather(None)  # it is saved
                raise TemporaryFailure(
                    f"{label}: stopped after {len(history)} of {settings.steps} steps and saved; "
                    "the same command goes on from here."
                )
    network.eval()
    return history


def _gradients(
    network: nn.Module,
    loss: Loss,
    runtime: Runtime,
    seed: tuple[int, int],
    images: Sequence[int],
    way: _Way,
) -> tuple[Tensor, _Way]:
    """Give a network the gradients of a batch's mean loss; return the loss, and the way."""
    torch.manual_seed(mix_seed(*seed, -1))  # dropout draws from the global generator
    generators = [runtime.generator(*seed, image) for image in images]
    network.recompute = way.recompute  # type: ignore[assignment]
    network.zero_grad(set_to_none=True)
    total = torch.zeros((), device=runtime.device)
    for some in [[one] for one in generators] if way.apart else [generators]:
        value = loss(network, some) * (len(some) / len(generators))
        value.backward()
        total += value.detach()
    return total, way


def _check(losses: Sequence[float], first: int, label: str) -> None:
    """Raise `BadData` for a loss that is not finite; ``first`` is the number of the first step."""
    for step, value in enumerate(losses, first):
        if not math.isfinite(value):
            raise BadData(
                f"{label}: the loss is {value} at step {step}; try another --random-seed, "
                "and look at the label and its scan."
            )


def _save(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    checkpoint: Path,
    fingerprint: str,
    history: list[float],
) -> None:
    state = checkpoints.training_state(network, optimiser)
    state["history"] = torch.tensor(history, dtype=torch.float64)
    checkpoints.save(checkpoint, state, {"fingerprint": fingerprint})


def _take_up(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    checkpoint: Path,
    fingerprint: str,
    label: str,
) -> list[float]:
    if not checkpoint.is_file():
        return []
    try:
        state, card = checkpoints.load(checkpoint)
    except BadData as error:
        LOG.warning("%s; %s starts from the beginning.", error, label)
        return []
    if card.get("fingerprint") != fingerprint:
        LOG.info("%s: settings or inputs have changed; it starts from the beginning.", label)
        return []
    history: list[float] = state.pop("history").tolist()
    checkpoints.resume(network, optimiser, state)
    LOG.info("%s: goes on after step %d.", label, len(history))
    return history
