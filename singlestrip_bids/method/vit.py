"""The image encoder of SAM-Med3D (``vit_b_ori``), written from its description.

Cubes of 128³ voxels become 8³ tokens of 16³ voxels, which pass twelve transformer blocks and a
neck of two convolutions. Weights of the published checkpoints fit.

Notes
-----
Wang et al. (2023), SAM-Med3D, arXiv:2310.15161; the network is that of Kirillov et al. (2023),
Segment Anything, after Li et al. (2022), ViTDet, with relative positions as in MViTv2, in 3D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EDGE, PATCH = 128, 16  # voxels of a cube, and of a token
WIDTH, HEADS, DEPTH, OUTPUTS = 768, 12, 12, 384
GLOBAL = (2, 5, 8, 11)  # blocks whose tokens see all others; in the others they see a window
WINDOW = 14  # tokens along its edge


class VisionTransformer(nn.Module):
    """Features (B, 384, 8, 8, 8) of cubes (B, 1, 128, 128, 128) of mean 0 and deviation 1."""

    def __init__(self) -> None:
        super().__init__()
        tokens = EDGE // PATCH
        self.patch_embed = _Tokens()
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, tokens, tokens, WIDTH))
        self.blocks = nn.ModuleList(
            _Block(tokens if number in GLOBAL else WINDOW) for number in range(DEPTH)
        )
        self.neck = nn.Sequential(
            nn.Conv3d(WIDTH, OUTPUTS, 1, bias=False),
            _ChannelNorm(),
            nn.Conv3d(OUTPUTS, OUTPUTS, 3, padding=1, bias=False),
            _ChannelNorm(),
        )

    def forward(self, cube: Tensor) -> Tensor:
        """Describe the tokens."""
        x = self.patch_embed(cube) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.neck(x.movedim(-1, 1))
        return found


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv3d(1, WIDTH, PATCH, stride=PATCH)

    def forward(self, cube: Tensor) -> Tensor:
        return self.proj(cube).movedim(1, -1)


class _ChannelNorm(nn.Module):
    """Layer normalisation of the channels of each place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(OUTPUTS))
        self.bias = nn.Parameter(torch.zeros(OUTPUTS))

    def forward(self, x: Tensor) -> Tensor:
        last = F.layer_norm(x.movedim(1, -1), (OUTPUTS,), self.weight, self.bias, eps=1e-6)
        return last.movedim(-1, 1)


class _Block(nn.Module):
    def __init__(self, window: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = _Attention(window)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = _Perceptron()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.lin2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class _Attention(nn.Module):
    """Attention within a window of ``window``³ tokens, to which smaller grids are padded."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)
        reach = 2 * window - 1
        self.rel_pos_d, self.rel_pos_h, self.rel_pos_w = (
            nn.Parameter(torch.zeros(reach, WIDTH // HEADS)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens (B, n, n, n, C); those of the padding are seen, but see nothing."""
        b, n, window = len(x), x.shape[1], self.window
        padded = F.pad(x, (0, 0, *(0, window - n) * 3))
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).movedim(-2, 1)
            for part in self.qkv(padded).chunk(3, dim=-1)
        )  # (B, heads, w, w, w, c)
        query = query[:, :, :n, :n, :n]
        bias = self._positions(query).reshape(b, HEADS, n**3, window**3)
        query, key, value = (part.flatten(2, 4) for part in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).reshape(x.shape))

    def _positions(self, query: Tensor) -> Tensor:
        """Say how much each query asks for each place, by its distance along each axis."""
        n, window = query.shape[2], self.window
        places = torch.arange(window, device=query.device)
        apart = places[:n, None] - places[None, :] + window - 1  # (n, w)
        depth, height, width = (
            torch.einsum(f"bhxyzc,{axis}kc->bhxyzk", query, table[apart])
            for axis, table in zip("xyz", self._tables(), strict=True)
        )
        return depth[..., :, None, None] + height[..., None, :, None] + width[..., None, None, :]

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.rel_pos_d, self.rel_pos_h, self.rel_pos_w
