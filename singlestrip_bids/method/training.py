"""The one training loop, for the U-Net, its fine-tuning and the autoencoder; its optimisers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn, optim

from ..config import TrainingConfig
from ..errors import BadData, NoInput, TemporaryFailure
from ..machine import files
from ..machine.progress import Progress
from ..machine.runtime import Runtime, as_memory_allows, mix_seed

LOG = logging.getLogger("singlestrip_bids")

# the mean loss of a network on random images, one from each generator
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
    """Train a network in place, on the device of ``runtime``; return the loss of every step.

    On a processor the same seed gives the same weights, interrupted or not. Several processes
    share the images of a batch, average their gradients, and all take the same step. Images do not
    depend on how many processes there are. Where the memory of a GPU is full, a batch goes through
    the network in a way that needs less of it.

    The state of an unfinished training is saved at ``checkpoint`` by the first process. It is
    taken up if its ``fingerprint`` (of all that decides the result) agrees; the caller removes it
    once the result is safe. A network's ``after_step`` is called after every step, if it has one.

    Raises
    ------
    TemporaryFailure
        SIGTERM came to any process; the state is saved.
    BadData
        The loss is not finite.
    """
    optimiser = make_optimiser(network.parameters(), settings)
    history = _take_up(network, optimiser, checkpoint, fingerprint, label)
    if len(set(runtime.gather(len(history)))) > 1:
        raise NoInput(f"{checkpoint}: not all processes see it; give them one --work-dir.")
    images = range(settings.batch_size)[runtime.rank :: runtime.world]
    weight = len(images) / settings.batch_size
    ways = WAYS
    states: list[Tensor] = []  # of the last steps, on the device: nobody has looked at them yet
    saved = time.monotonic()
    after: Callable[[], None] = getattr(network, "after_step", lambda: None)
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
            after()
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
    """Give a network the gradients of a batch's mean loss; return the loss, and the way.

    An image's generator is seeded from ``seed`` (the training's, and the step) and its number.
    """
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
    """Raise `BadData` for a loss that is not finite; ``first`` is its step's number."""
    for step, value in enumerate(losses, first):
        if not math.isfinite(value):
            raise BadData(
                f"{label}: the loss is {value} at step {step}; try another --random-seed, "
                "and look at the label and its scan."
            )


def _save(
    network: nn.Module,
    optimiser: optim.Optimizer,
    checkpoint: Path,
    fingerprint: str,
    history: list[float],
) -> None:
    state = training_state(network, optimiser)
    state["history"] = torch.tensor(history, dtype=torch.float64)
    files.save_tensors(checkpoint, state, {"fingerprint": fingerprint})


def _take_up(
    network: nn.Module,
    optimiser: optim.Optimizer,
    checkpoint: Path,
    fingerprint: str,
    label: str,
) -> list[float]:
    """Go on from a checkpoint, if there is one; return the losses up to there."""
    if not checkpoint.is_file():
        return []
    try:
        state, card = files.load_tensors(checkpoint)
    except BadData as error:
        LOG.warning("%s; %s starts from the beginning.", error, label)
        return []
    if card.get("fingerprint") != fingerprint:
        LOG.info("%s: settings or inputs have changed; it starts from the beginning.", label)
        return []
    history: list[float] = state.pop("history").tolist()
    resume(network, optimiser, state)
    LOG.info("%s: goes on after step %d.", label, len(history))
    return history


def make_optimiser(
    parameters: Iterable[nn.Parameter], settings: TrainingConfig
) -> optim.Optimizer:
    """Make the optimiser that the settings name: ``adam`` or ``muon``."""
    rate = settings.learning_rate
    if settings.optimiser == "muon":
        return Muon(parameters, rate)
    return optim.Adam(parameters, lr=rate, weight_decay=settings.weight_decay)


class Muon(optim.Optimizer):
    """Momentum whose direction is made orthogonal: every weight matrix turns by the same amount.

    A kernel (out, in, ...) is taken as a matrix (out, in · ...). The rate ``lr`` is the spectral
    norm of its step; ``momentum`` is that of the running sum of gradients (Nesterov's). Biases and
    gains follow it, scaled to a root mean square of one, at a tenth of the rate.

    Notes
    -----
    Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks". Only the
    direction of a gradient counts, so that rare or flat losses move the weights as far as any.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.9
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["momentum"])

    def _move(self, parameter: Tensor, gradient: Tensor, rate: float, momentum: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        running = state["momentum"].mul_(momentum).add_(gradient)
        ahead = gradient + momentum * running
        if ahead.ndim > 1:
            direction = orthogonal(ahead.flatten(1)).view(ahead.shape)
        else:
            direction = 0.1 * ahead / (ahead.square().mean().sqrt() + 1e-12)
        parameter.sub_(direction, alpha=rate)


_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. (2024): steepest at zero, five steps suffice
_ITERATIONS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix (m, n) close to one, without decomposing it.

    Notes
    -----
    Newton-Schulz iteration with the coefficients of Jordan et al. (2024): singular values end
    between about 0.7 and 1.2, which serves as well as exactly one.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.T


def load_weights(path: Path, network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors into a network of the same shape; ``path`` is named in the error."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise BadData(f"{path}: other weights than its card says ({error}).") from error


def training_state(network: nn.Module, optimiser: optim.Optimizer) -> dict[str, Tensor]:
    """Flatten the weights of a network and the moments of its optimiser into one dictionary."""
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for number, moments in optimiser.state_dict()["state"].items():
        for name, tensor in moments.items():
            state[f"optimiser.{number}.{name}"] = tensor
    return state


def resume(network: nn.Module, optimiser: optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Undo :func:`training_state`."""
    weights, moments = {}, dict[int, dict[str, Tensor]]()
    for name, tensor in state.items():
        kind, rest = name.split(".", 1)
        if kind == "network":
            weights[rest] = tensor
        else:
            number, key = rest.split(".", 1)
            moments.setdefault(int(number), {})[key] = tensor
    network.load_state_dict(weights)
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
