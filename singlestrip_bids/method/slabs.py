"""The U-Net in little memory: layer by layer, some planes at a time; the same numbers.

Without gradients, and in place: each slab takes the room of what it was computed from.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import SLOPE, InstanceNorm, UNet, fold, unfold


def forward_in_slabs(network: UNet, image: Tensor, slab: int) -> Iterator[Tensor]:
    """Logits of images (B, 1, X, Y, Z), with ``slab`` bytes of room for the input of a layer.

    First those of the brain, then of each structure.
    """
    stem = network.config.stem
    x = fold(image, stem).contiguous(memory_format=torch.channels_last_3d)
    skips: list[Tensor] = []
    for block in network.encoder:
        x = F.max_pool3d(skips[-1], 2) if skips else x
        skips.append(block_in_slabs(block, x, None, slab))
    x = skips.pop()
    for block in network.decoder:
        x = block_in_slabs(block, skips.pop(), x, slab)
    for number, head in enumerate(network.heads, 1):
        seen = x if number == len(network.heads) else x.clone()  # it is overwritten
        yield unfold(_convolve(head, seen, None, slab), stem)


def block_in_slabs(block: nn.Module, x: Tensor, below: Tensor | None, slab: int) -> Tensor:
    """Compute a block of ``x`` (B, C, X, Y, Z), which is overwritten; no gradients.

    ``below`` (B, C', X/2, Y/2, Z/2) is stacked on it at twice its size. The input of a convolution
    may take ``slab`` bytes.
    """
    for layer in block.children():
        if isinstance(layer, nn.Conv3d):
            x, below = _convolve(layer, x, below, slab), None
        elif isinstance(layer, InstanceNorm):
            normalise_in_place(layer, x, slab)
        else:
            F.leaky_relu_(x, SLOPE)
    return x


def normalise_in_place(norm: InstanceNorm, x: Tensor, slab: int) -> None:
    """Normalise ``x`` (B, C, X, Y, Z) itself, with ``slab`` bytes of room; no gradients."""
    axes, count = (2, 3, 4), x[0, 0].numel()
    parts = x.split(_planes(x, x.shape[1], slab), dim=2)
    mean = torch.stack([p.float().sum(axes, keepdim=True) for p in parts]).sum(0) / count
    squares = [(p - mean).square_().sum(axes, keepdim=True) for p in parts]
    wide = (1, -1, 1, 1, 1)
    scale = torch.rsqrt(torch.stack(squares).sum(0) / count + norm.eps)
    scale = scale * norm.weight.view(wide)
    x.mul_(scale).add_(norm.bias.view(wide) - mean * scale)


def _planes(x: Tensor, channels: int, slab: int) -> int:
    """How many planes of X fit into so many bytes, two at least."""
    return max(slab // (x[:, 0, 0].numel() * channels * x.element_size()), 2)


def _convolve(conv: nn.Conv3d, x: Tensor, below: Tensor | None, slab: int) -> Tensor:
    """Convolve some planes of X at a time; the result takes the place of ``x`` where it fits."""
    count = x.shape[2]
    planes = _planes(x, max(conv.in_channels, conv.out_channels), slab)
    if below is None and planes >= count:
        return conv(x)
    out, last = x, x[:, :, :0]  # the plane before those in work, as it was
    for start in range(0, count, planes):
        stop = min(start + planes, count)
        piece = torch.cat([last, x[:, :, start : stop + 1]], dim=2)
        if below is not None:
            first = start - last.shape[2]
            half = below[:, :, first // 2 : (first + piece.shape[2] + 1) // 2]
            double = F.interpolate(half, scale_factor=2.0, mode="nearest")
            double = double[:, :, first % 2 : first % 2 + piece.shape[2]]
            piece = torch.cat([double, piece], dim=1)
        piece = F.pad(piece, (0, 0, 0, 0, start == 0, stop == count))
        made = F.conv3d(piece, conv.weight, conv.bias, padding=(0, 1, 1))
        last = x[:, :, stop - 1 : stop].clone()
        if start == 0 and (made.shape[1], made.dtype) != (x.shape[1], x.dtype):
            shape, layout = (*made.shape[:2], *x.shape[2:]), torch.channels_last_3d
            out = torch.empty(shape, dtype=made.dtype, device=x.device, memory_format=layout)
        out[:, :, start:stop] = made
    return out
