"""The two networks: the 3D U-Net that makes masks and the 2D autoencoder that judges them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import AutoencoderConfig, NetworkConfig

SLOPE = 0.2  # of every LeakyReLU, in both networks


def fold(volume: Tensor, stem: int) -> Tensor:
    """Move blocks of ``stem``³ voxels into channels: (B, 1, sX, sY, sZ) -> (B, s³, X, Y, Z)."""
    b = volume.shape[0]
    x, y, z = (n // stem for n in volume.shape[2:])
    blocks = volume.reshape(b, x, stem, y, stem, z, stem)
    return blocks.permute(0, 2, 4, 6, 1, 3, 5).reshape(b, stem**3, x, y, z)


def unfold(blocks: Tensor, stem: int) -> Tensor:
    """Undo :func:`fold`, for any number of volumes: (B, Cs³, X, Y, Z) -> (B, C, sX, sY, sZ)."""
    b, channels, x, y, z = blocks.shape
    count = channels // stem**3
    volume = blocks.reshape(b * count, stem, stem, stem, x, y, z).permute(0, 4, 1, 5, 2, 6, 3)
    return volume.reshape(b, count, stem * x, stem * y, stem * z)


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


class Network(nn.Module):
    """A network of this app."""

    # whether training keeps the outputs of blocks alone and computes their insides again for the
    # gradients: the same numbers in less memory (gradient checkpointing, Chen et al. 2016,
    # arXiv:1604.06174); networks without blocks ignore it
    recompute = False


class UNet(Network):
    """3D U-Net; the default configuration is SynthStrip's, 2,566,561 parameters.

    It has one output for the brain and one for each of ``structures``, if there are any.

    Notes
    -----
    Hoopes et al. (2022), NeuroImage 260:119474: max pooling, nearest upsampling, skip
    concatenation, linear outputs.
    """

    def __init__(self, config: NetworkConfig, structures: int = 0) -> None:
        super().__init__()
        self.config = config
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
        self.parts = nn.ModuleList(
            nn.Conv3d(config.features[0], voxels, 3, padding=1) for _ in range(structures)
        )

    @property
    def heads(self) -> list[nn.Conv3d]:
        """Last layers: that of the brain, and those of the structures."""
        return [self.head, *self.parts]

    def forward(self, image: Tensor, numbers: Sequence[int] | None = None) -> Tensor:
        """Logits (B, 1 + structures, X, Y, Z) of images (B, 1, X, Y, Z), the brain's first.

        X, Y and Z are multiples of ``config.multiple``. With ``numbers`` only these structures are
        told, counted from 0.
        """
        x = self.trunk(image)
        if not self.parts:
            return unfold(self.head(x), self.config.stem)
        parts = self.parts if numbers is None else [self.parts[number] for number in numbers]
        weight, bias = (
            torch.cat([getattr(head, name) for head in (self.head, *parts)])
            for name in ("weight", "bias")
        )
        return unfold(F.conv3d(x, weight, bias, padding=1), self.config.stem)

    def trunk(self, image: Tensor) -> Tensor:
        """Return what the last layers see of images."""
        return deque(self.blocks(image), maxlen=1)[0]

    def blocks(self, image: Tensor) -> Iterator[Tensor]:
        """Yield what each block makes of images: down to the deepest, then up to the finest."""
        x = fold(image, self.config.stem).contiguous(memory_format=torch.channels_last_3d)
        skips = []
        for level, block in enumerate(self.encoder):
            x = self._through(block, F.max_pool3d(x, 2) if level else x)
            skips.append(x)
            yield x
        for block, skip in zip(self.decoder, skips[-2::-1], strict=True):
            x = self._through(block, x, skip)
            yield x

    def _through(self, block: nn.Module, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Compute a block of ``x``, which is doubled in size and joined to ``skip`` if given."""

        def compute(x: Tensor, skip: Tensor | None) -> Tensor:
            if skip is not None:
                x = torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1)
            return block(x)

        if self.recompute and torch.is_grad_enabled():
            return checkpoint(compute, x, skip, use_reentrant=False, preserve_rng_state=False)
        return compute(x, skip)


# kernel, stride and output channels of the encoder for slices of 256² (Galati & Zuluaga 2021);
# the decoder mirrors it
_AE_LAYERS = (
    (4, 2, 32), (4, 2, 32), (4, 2, 32), (3, 1, 32), (4, 2, 64),
    (3, 1, 64), (4, 2, 128), (3, 1, 64), (3, 1, 32),
)  # fmt: skip
_AE_SIZES = {256: 0, 128: 1, 64: 2}  # edge of the slices -> leading layers to leave out


class Autoencoder(Network):
    """2D convolutional autoencoder of one-hot slices (background, brain or its structures).

    Its bottleneck has ``latent`` channels of 4 × 4 elements. Slices smaller than 256² enter later,
    where one of 256² has come down to their size, so that the bottleneck is the published one.

    Notes
    -----
    Galati & Zuluaga (2021), "Efficient model monitoring for quality control in cardiac image
    segmentation"; used for brain masks in SingleStrip, section 2.3.
    """

    def __init__(self, config: AutoencoderConfig, structures: int = 0) -> None:
        super().__init__()
        self.config, self.classes = config, 1 + max(structures, 1)
        latent, layers = config.latent, _AE_LAYERS[_AE_SIZES[config.slice_size] :]
        channels = [self.classes, *(width for *_, width in layers)]
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        for (kernel, stride, width), inputs in zip(layers, channels[:-1], strict=True):
            encoder += [nn.Conv2d(inputs, width, kernel, stride, 1), *_regularised(width)]
            up = nn.ConvTranspose2d(width, inputs, kernel, stride, 1)
            decoder = [up, *(_regularised(inputs) if decoder else []), *decoder]
        encoder.append(nn.Conv2d(channels[-1], latent, 4, 2, 1))
        bottom = nn.ConvTranspose2d(latent, channels[-1], 4, 2, 1)
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(bottom, *_regularised(channels[-1]), *decoder)

    def forward(self, onehot: Tensor) -> Tensor:
        """Reconstructed class probabilities (B, classes, n, n) of one-hot slices."""
        return torch.softmax(self.decoder(self.encoder(onehot)), dim=1)


def _regularised(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.LeakyReLU(SLOPE), nn.Dropout(0.5)]
