"""The optimisers, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .config import TrainingConfig

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


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is made orthogonal: every weight matrix turns by the same amount.

    A kernel (out, in, ...) is taken as a matrix (out, in · ...). Biases and gains follow their
    momentum, scaled to a root mean square of one, at a tenth of the rate.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        All of the network.
    lr : float
        Spectral norm of a step of a weight matrix.
    momentum : float
        Of the running sum of gradients (Nesterov's).

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


def make(parameters: Iterable[nn.Parameter], settings: TrainingConfig) -> torch.optim.Optimizer:
    """Make the optimiser that the settings name: ``adam`` or ``muon``."""
    rate = settings.learning_rate
    match settings.optimiser:
        case "muon":
            return Muon(parameters, rate)
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=settings.weight_decay)
    raise ValueError(f"optimiser {settings.optimiser!r}: neither 'adam' nor 'muon'")
