"""The one training loop, for the U-Net, its fine-tuning and the autoencoder."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoints, optimisers
from .config import TrainingConfig
from .errors import BadData, TemporaryFailure
from .runtime import Progress, Runtime, mix_seed, stop_asked

LOG = logging.getLogger("singlestrip_bids")

Loss = Callable[[nn.Module, torch.Generator], Tensor]

SAVE_EVERY_S = 60.0
WARM_UP = 0.03  # share of the steps in which a cosine schedule rises


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
    """Train a network in place; the same seed gives the same weights, interrupted or not.

    Parameters
    ----------
    network : nn.Module
        On the device of ``runtime``.
    loss : callable
        ``loss(network, generator) -> Tensor``: draws a batch from the generator and returns its
        loss. The generator is seeded from ``seed`` and the number of the step.
    settings : TrainingConfig
        Steps and learning rate.
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
        SIGTERM came; the state is saved.
    BadData
        The loss is not finite.
    """
    optimiser = optimisers.make(network.parameters(), settings)
    history = _take_up(network, optimiser, checkpoint, fingerprint, label)
    saved = time.monotonic()
    network.train()
    with Progress(label, settings.steps, len(history)) as progress:
        for step in range(len(history), settings.steps):
            torch.manual_seed(mix_seed(seed, step, 1))  # dropout draws from the global generator
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, settings)
            value = loss(network, runtime.generator(seed, step))
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()
            history.append(float(value.detach()))
            if not math.isfinite(history[-1]):
                raise BadData(
                    f"{label}: the loss is {history[-1]} at step {step}; lower the rate."
                )
            recent = history[-50:]
            progress.step(f"loss {sum(recent) / len(recent):.4f}")
            if stop_asked() or time.monotonic() - saved > SAVE_EVERY_S:
                _save(network, optimiser, checkpoint, fingerprint, history)
                saved = time.monotonic()
            if stop_asked():
                raise TemporaryFailure(
                    f"{label}: stopped after {len(history)} of {settings.steps} steps and saved; "
                    "the same command goes on from here."
                )
    network.eval()
    return history


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
