"""Tensors on disk: safetensors, written whole or not at all, never unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn, optim

from .derivatives import write_bytes
from .errors import BadData, NoInput


def save(path: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write tensors, and plain data beside them in the header, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(plain, {"card": json.dumps(card, sort_keys=True)}))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save` wrote.

    Raises
    ------
    NoInput
        There is no such file.
    BadData
        Truncated, or not written by this app.
    """
    if not path.is_file():
        raise NoInput(f"{path}: no such file; run the group level first or pass --model.")
    try:
        with safetensors.safe_open(path, "pt") as stream:
            card = json.loads((stream.metadata() or {})["card"])
            return {name: stream.get_tensor(name) for name in stream.keys()}, card  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise BadData(f"{path}: damaged or foreign file ({error}); train again.") from error


def restore(path: Path, network: nn.Module, tensors: dict[str, Tensor]) -> None:
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
