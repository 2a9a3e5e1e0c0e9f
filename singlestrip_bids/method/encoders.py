"""Frozen networks that describe every place of a head by a vector of features.

The app's own has seen phantoms alone. Others come from a file: a network of this app, SAM-Med3D's
encoder, or any network as TorchScript. All take images (1, 1, X, Y, Z) in [0, 1], give features
(1, C, x, y, z) of unit length, and have seen the whole head.
"""

from __future__ import annotations

import itertools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PHANTOM, MethodConfig, NetworkConfig
from ..errors import BadData, NoInput
from ..machine import files
from ..machine.runtime import Runtime
from . import model
from .networks import UNet
from .vit import EDGE, VisionTransformer

KNOWN = 64  # voxels along the grid whose heads the app's own encoder knows
PREFIXES = ("module.", "image_encoder.")  # of the names of weights, outermost first
INNER = ("model_state_dict", "state_dict", "model")  # where checkpoints have their weights


@dataclass(frozen=True)
class Encoder:
    """A frozen network, its name, the checksum of its file, and if features are as published."""

    name: str
    network: nn.Module
    sha256: str
    deepest: bool

    @property
    def key(self) -> str:
        """Fingerprint of all that decides the features."""
        return files.fingerprint(self.sha256, self.deepest)


class Levels(nn.Module):
    """Features of a U-Net: of all levels of its decoder, joined, or of the deepest level alone.

    Images of a finer grid than the network knows are seen at its resolution.
    """

    def __init__(self, network: UNet, deepest: bool = False) -> None:
        super().__init__()
        self.network, self.deepest = network, deepest

    def forward(self, image: Tensor) -> Tensor:
        """Describe the voxels of an image, or blocks of them."""
        factor = max(min(image.shape[2:]) // KNOWN, 1)
        multiple = factor * self.network.config.multiple
        lack = [-n % multiple for n in image.shape[:1:-1]]  # last axis first
        padded = F.pad(image, [n for more in lack for n in (0, more)])
        levels = list(self.network.blocks(F.avg_pool3d(padded, factor)))
        middle = len(self.network.encoder)
        chosen = [levels[middle - 1]] if self.deepest else levels[middle:]
        size = chosen[-1].shape[2:]
        joined = [
            F.normalize(F.interpolate(level.float(), size=size, mode="trilinear"), dim=1)
            for level in chosen
        ]
        step = padded.shape[2] // size[0]  # voxels of the image an edge
        x, y, z = (max(n // step, 1) for n in image.shape[2:])
        return F.normalize(torch.cat(joined, 1), dim=1)[:, :, :x, :y, :z]


class Cubes(nn.Module):
    """Features of a network that knows cubes of ``edge`` voxels and describes blocks of them.

    The head is brought to such a cube, its intensities to a mean of 0 and a deviation of 1. It is
    shown eight times, shifted by a quarter of a block, so that features are twice as fine; where
    features are to be as published (``deepest``), once.
    """

    def __init__(self, network: nn.Module, edge: int = EDGE, deepest: bool = False) -> None:
        super().__init__()
        self.network, self.edge, self.deepest = network, edge, deepest

    def forward(self, image: Tensor) -> Tensor:
        """Describe blocks of an image."""
        cube = F.interpolate(image, size=(self.edge,) * 3, mode="trilinear", align_corners=False)
        head = cube[cube > 0] if bool((cube > 0).any()) else cube.flatten()
        cube = (cube - head.mean()) / head.std().clamp(min=1e-6)
        first = self.network(cube)
        quarter = self.edge // (4 * first.shape[2]) if first.ndim == 5 else 0
        if self.deepest or not quarter:
            return F.normalize(first.float(), dim=1)
        b, channels, x, y, z = first.shape
        found = first.new_empty((b, channels, 2 * x, 2 * y, 2 * z), dtype=torch.float32)
        for place in itertools.product((0, 1), repeat=3):
            shifts = [quarter * (1 - 2 * one) for one in place]
            seen = self.network(torch.roll(cube, shifts, dims=(2, 3, 4)))
            i, j, k = (slice(one, None, 2) for one in place)
            found[:, :, i, j, k] = seen.float()
        return F.normalize(found, dim=1)


def own(deepest: bool, runtime: Runtime) -> Encoder:
    """Return the encoder that ships with the app."""
    shipped = model.load(PHANTOM, runtime)
    checksum = shipped.card["sha256"][shipped.card["network"]]
    return Encoder(PHANTOM.name, Levels(shipped.network, deepest).eval(), checksum, deepest)


def chosen(method: MethodConfig, path: Path | None, runtime: Runtime) -> Encoder | None:
    """Return the encoder that a method needs: that of a file, or the app's own.

    Raises
    ------
    NoInput, BadData
        As by `read`.
    """
    if not method.needs_features:
        return None
    deepest = method.features == "deepest"
    return read(path, deepest, runtime) if path else own(deepest, runtime)


def read(path: Path, deepest: bool, runtime: Runtime) -> Encoder:
    """Read an encoder from a file, and try it.

    Weights (safetensors, or a checkpoint of PyTorch, of which nothing is run) are those of a U-Net
    of this app or of SAM-Med3D's ``vit_b_ori``. TorchScript is any network that gives features
    (1, C, x, y, z) of cubes (1, 1, 128, 128, 128).

    Raises
    ------
    NoInput
        No such file.
    BadData
        A file that is damaged, or of no such network, or whose features say nothing.
    """
    if not path.is_file():
        raise NoInput(f"{path}: no such file of weights; correct --encoder.")
    files.check_content(path)
    if _is_script(path):
        network: nn.Module = Cubes(_script(path), deepest=deepest)
    else:
        network = _network_of(path, _weights(path), deepest)
    _try(path, runtime.take(network), runtime)
    return Encoder(path.name, network, files.sha256(path), deepest)


def _is_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _script(path: Path) -> nn.Module:
    try:
        network: nn.Module = torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        raise _damaged(path, error) from error
    return network


def _weights(path: Path) -> dict[str, Tensor]:
    """Read the weights of a file by their names, without the prefixes that they have there."""
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, RuntimeError, ValueError, OSError, EOFError) as error:
        raise _damaged(path, error) from error
    except Exception as error:  # of the unpickler, which refuses all but tensors and plain data
        raise BadData(
            f"{path}: more than weights, or damaged; code in it is never run. Save its "
            "state_dict as safetensors."
        ) from error
    for name in INNER:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict):
        found = {}
    tensors = {str(name): one for name, one in found.items() if isinstance(one, Tensor)}
    for prefix in PREFIXES:
        inner = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        tensors = inner or tensors
    return tensors


def _damaged(path: Path, error: Exception) -> BadData:
    line = str(error).strip().split("\n")[0]
    return BadData(f"{path}: damaged, or no file of weights ({line}); get it again.")


def _network_of(path: Path, tensors: dict[str, Tensor], deepest: bool) -> nn.Module:
    """Build the network whose weights these are."""
    try:
        if "patch_embed.proj.weight" in tensors:
            transformer = VisionTransformer()
            transformer.load_state_dict(tensors)
            return Cubes(transformer, deepest=deepest)
        unet = _unet_like(tensors)
        unet.load_state_dict(tensors)
        return Levels(unet, deepest)
    except (RuntimeError, LookupError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise BadData(
            f"{path}: weights of neither a network of this app nor SAM-Med3D's vit_b_ori "
            f"({line}); give another as TorchScript."
        ) from error


def _unet_like(tensors: dict[str, Tensor]) -> UNet:
    """Make a U-Net of the shape that weights have; raises `LookupError` for others."""
    count = len({name.split(".")[1] for name in tensors if name.startswith("encoder.")})
    first = [tensors[f"encoder.{level}.0.weight"] for level in range(count)]
    features = tuple(int(one.shape[0]) for one in first)
    stem = round(first[0].shape[1] ** (1 / 3))
    normalised = "encoder.0.1.weight" in tensors
    parts = len({name.split(".")[1] for name in tensors if name.startswith("parts.")})
    return UNet(NetworkConfig(features, normalised, stem), parts)


def _try(path: Path, network: nn.Module, runtime: Runtime) -> None:
    """Describe noise; raises `BadData` unless features come."""
    image = torch.rand((1, 1, KNOWN, KNOWN, KNOWN), generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            found = network(image.to(runtime.device))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        line = str(error).strip().split("\n")[-1]
        raise BadData(
            f"{path}: it takes no cube of {EDGE} voxels an edge ({line}); give another encoder."
        ) from error
    dull = found.ndim != 5 or min(found.shape[2:]) < 2 or not bool(found.isfinite().all())
    if dull or float(found.std(dim=(2, 3, 4)).max()) < 1e-6:
        raise BadData(
            f"{path}: of a cube it makes {tuple(found.shape)}, where features (1, C, x, y, z), "
            "finite and not all alike, are needed; give another encoder."
        )
