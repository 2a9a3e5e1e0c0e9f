"""The two networks: the 3D U-Net that makes masks and the 2D autoencoder that judges them."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import NetworkConfig

SLOPE = 0.2  # of every LeakyReLU, in both networks


def fold(volume: Tensor, stem: int) -> Tensor:
    """Move blocks of ``stem``³ voxels into channels: (B, 1, sX, sY, sZ) -> (B, s³, X, Y, Z)."""
    b = volume.shape[0]
    x, y, z = (n // stem for n in volume.shape[2:])
    blocks = volume.reshape(b, x, stem, y, stem, z, stem)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5).reshape(b, stem**3, x, y, z)


def unfold(blocks: Tensor, stem: int) -> Tensor:
    """Undo :func:`fold`: (B, s³, X, Y, Z) -> (B, 1, sX, sY, sZ)."""
    b, _, x, y, z = blocks.shape
    volume = blocks.reshape(b, stem, stem, stem, x, y, z).permute(0, 4, 1, 5, 2, 6, 3)
    return volume.reshape(b, 1, stem * x, stem * y, stem * z)


class InstanceNorm(nn.InstanceNorm3d):
    """Instance normalisation that leaves channels last on the processor, which is far faster.

    There PyTorch moves the channels. Batch normalisation of one image is the same and does not;
    nor does group normalisation, whose gradients are many times as slow.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, X, Y, Z)."""
        if not x.is_cpu:
            return super().forward(x)
        parameters = (None, None, self.weight, self.bias, True, 0.0, self.eps)
        return torch.cat([F.batch_norm(image, *parameters) for image in x.split(1)])

    def in_place(self, x: Tensor, slab: int) -> None:
        """Do the same to ``x`` itself, with ``slab`` bytes of room; no gradients."""
        axes, count = (2, 3, 4), x[0, 0].numel()
        parts = x.split(_planes(x, x.shape[1], slab), dim=2)
        mean = torch.stack([p.float().sum(axes, keepdim=True) for p in parts]).sum(0) / count
        squares = [(p - mean).square_().sum(axes, keepdim=True) for p in parts]
        wide = (1, -1, 1, 1, 1)
        scale = torch.rsqrt(torch.stack(squares).sum(0) / count + self.eps)
        scale = scale * self.weight.view(wide)
        x.mul_(scale).add_(self.bias.view(wide) - mean * scale)


class ConvBlock(nn.Sequential):
    """Two 3³ convolutions, each with an optional instance normalisation and a LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, normalise: bool) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers.append(nn.Conv3d(channels, outputs, 3, padding=1, bias=not normalise))
            if normalise:
                layers.append(InstanceNorm(outputs, affine=True))
            layers.append(nn.LeakyReLU(SLOPE))
        super().__init__(*layers)

    def in_slabs(self, x: Tensor, below: Tensor | None, slab: int) -> Tensor:
        """Compute the same in little memory, without gradients; ``x`` is overwritten.

        Parameters
        ----------
        x : Tensor
            (B, C, X, Y, Z).
        below : Tensor or None
            (B, C', X/2, Y/2, Z/2), which ``x`` is stacked under at twice its size.
        slab : int
            Bytes that the input of a convolution may take.
        """
        for layer in self:
            if isinstance(layer, nn.Conv3d):
                x, below = _convolve(layer, x, below, slab), None
            elif isinstance(layer, InstanceNorm):
                layer.in_place(x, slab)
            else:
                F.leaky_relu_(x, SLOPE)
        return x


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


class UNet(nn.Module):
    """3D U-Net; the default configuration is SynthStrip's, 2,566,561 parameters.

    Parameters
    ----------
    config : NetworkConfig
        Features by level, normalisation and stem.

    Attributes
    ----------
    recompute : bool
        Whether training keeps the outputs of blocks alone and computes their insides again for
        the gradients: the same numbers in less memory, with a second forward pass (gradient
        checkpointing, Chen et al. 2016, arXiv:1604.06174).

    Notes
    -----
    Hoopes et al. (2022), NeuroImage 260:119474: max pooling, nearest upsampling, skip
    concatenation, one linear output.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        voxels = config.stem**3
        channels = (voxels, *config.features)
        self.encoder = nn.ModuleList(
            ConvBlock(i, o, config.normalise) for i, o in itertools.pairwise(channels)
        )
        self.decoder = nn.ModuleList(
            ConvBlock(below + here, here, config.normalise)
            for below, here in zip(channels[:1:-1], channels[-2:0:-1], strict=True)
        )
        self.head = nn.Conv3d(config.features[0], voxels, 3, padding=1)

    def forward(self, image: Tensor, slab: int | None = None) -> Tensor:
        """Compute the logits of an image.

        Parameters
        ----------
        image : Tensor
            (B, 1, X, Y, Z); X, Y and Z are multiples of ``config.multiple``.
        slab : int or None
            Bytes of room for the input of a layer, which is then computed in slabs and in place:
            the same numbers in a fraction of the memory, without gradients.
        """
        x = fold(image, self.config.stem).contiguous(memory_format=torch.channels_last_3d)
        if slab is not None:
            return self._in_slabs(x, slab)
        skips = []
        for level, block in enumerate(self.encoder):
            x = self._through(block, F.max_pool3d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = self._through(block, x, skip)
        return unfold(self.head(x), self.config.stem)

    def _through(self, block: nn.Module, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Compute a block of ``x``, which is doubled in size and joined to ``skip`` if given."""

        def compute(x: Tensor, skip: Tensor | None) -> Tensor:
            if skip is not None:
                x = torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1)
            return block(x)

        if self.recompute and torch.is_grad_enabled():
            return checkpoint(compute, x, skip, use_reentrant=False, preserve_rng_state=False)
        return compute(x, skip)

    def _in_slabs(self, x: Tensor, slab: int) -> Tensor:
        skips: list[Tensor] = []
        for block in self.encoder:
            x = F.max_pool3d(skips[-1], 2) if skips else x
            skips.append(block.in_slabs(x, None, slab))  # type: ignore[operator]
        x = skips.pop()
        for block in self.decoder:
            x = block.in_slabs(skips.pop(), x, slab)  # type: ignore[operator]
        return unfold(_convolve(self.head, x, None, slab), self.config.stem)


# kernel, stride and output channels of the encoder for slices of 256² (Galati & Zuluaga 2021);
# the decoder mirrors it
_AE_LAYERS = (
    (4, 2, 32), (4, 2, 32), (4, 2, 32), (3, 1, 32), (4, 2, 64),
    (3, 1, 64), (4, 2, 128), (3, 1, 64), (3, 1, 32),
)  # fmt: skip
_AE_SIZES = {256: 0, 128: 1, 64: 2}  # edge of the slices -> leading layers to leave out


class Autoencoder(nn.Module):
    """2D convolutional autoencoder of one-hot mask slices (background, brain).

    Parameters
    ----------
    latent : int
        Channels of the bottleneck, which has 4 × 4 elements in each.
    size : int
        Edge n of the slices: 64, 128 or 256. Smaller slices enter later, where a slice of 256²
        would have come down to their size, so that the bottleneck is the published one.

    Notes
    -----
    Galati & Zuluaga (2021), "Efficient model monitoring for quality control in cardiac image
    segmentation"; used for brain masks in SingleStrip, section 2.3.
    """

    def __init__(self, latent: int = 100, size: int = 256) -> None:
        super().__init__()
        layers = _AE_LAYERS[_AE_SIZES[size] :]
        channels = [2, *(width for *_, width in layers)]
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        for (kernel, stride, width), inputs in zip(layers, channels[:-1], strict=True):
            encoder += [nn.Conv2d(inputs, width, kernel, stride, 1), *_regularised(width)]
            up = nn.ConvTranspose2d(width, inputs, kernel, stride, 1)
            decoder = [up, *(_regularised(inputs) if inputs != 2 else []), *decoder]
        encoder.append(nn.Conv2d(channels[-1], latent, 4, 2, 1))
        bottom = nn.ConvTranspose2d(latent, channels[-1], 4, 2, 1)
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(bottom, *_regularised(channels[-1]), *decoder)

    def forward(self, onehot: Tensor) -> Tensor:
        """Reconstructed class probabilities (B, 2, n, n) of one-hot slices."""
        return torch.softmax(self.decoder(self.encoder(onehot)), dim=1)


def _regularised(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.LeakyReLU(SLOPE), nn.Dropout(0.5)]
