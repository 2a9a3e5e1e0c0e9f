"""Settings as frozen dataclasses; each is plain data that goes to JSON and back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ANATOMICAL = ("T1w", "T2w", "PDw", "FLAIR", "T2starw", "inplaneT2")
"""Suffixes used unless others are asked for."""

ALL_MODALITIES = (*ANATOMICAL, "asl", "m0scan", "bold", "sbref", "boldref", "dwi")
"""Every suffix that can be asked for; ``all`` means these."""

Filters = Mapping[str, Mapping[str, tuple[str | None, ...]]]
"""Conditions on scans by suffix and entity; see `filters`."""

OUTPUTS = ("brain", "probseg", "distance")
"""What the participant level can write beside the masks."""

PSEUDO_LABELS = ("network", "registration", "consensus")
"""Ways to the first masks of the unlabelled scans."""


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the U-Net.

    ``stem`` folds blocks of ``stem``³ voxels into channels before the first convolution and
    unfolds them near the end (sub-pixel convolution, Shi et al. 2016): 1 is a plain U-Net.
    """

    features: tuple[int, ...] = (16, 32, 64, 64, 64, 64, 64)
    normalise: bool = False
    stem: int = 1

    @property
    def multiple(self) -> int:
        """Grid sizes must be multiples of this many voxels."""
        return int(self.stem * 2 ** (len(self.features) - 1))


@dataclass(frozen=True)
class SynthesisConfig:
    """Ranges of the random images; lengths are fractions of the edge of the model grid."""

    rotation_deg: float = 25.0
    scaling: float = 0.25
    anisotropy: float = 0.08
    shear: float = 0.08
    shift: float = 0.20
    warp: float = 0.03
    blur: float = 0.024
    noise: float = 0.10
    bias: float = 0.4
    gamma: float = 0.4
    crop: float = 0.33
    crop_probability: float = 0.2
    slice_thickness: float = 0.035
    slice_probability: float = 0.4
    dark_air_probability: float = 0.5
    lines_probability: float = 0.05
    real_fraction: float = 0.5
    mild: float = 0.0  # share of the real images whose contrast is changed but little


@dataclass(frozen=True)
class TrainingConfig:
    """One call of the training loop."""

    steps: int
    batch_size: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.0  # of Adam alone
    cosine: bool = False
    optimiser: str = "adam"  # or "muon"


@dataclass(frozen=True)
class QualityConfig:
    """The autoencoder: sizes of its slices and of its training (SingleStrip, section 2.3)."""

    slice_size: int = 256
    latent: int = 100
    epochs: int = 500
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5


@dataclass(frozen=True)
class MethodConfig:
    """All that decides what the group level learns, apart from its inputs.

    Fine-tuning has images of its own: mostly real ones in mild contrasts, since the pool's own
    contrasts are what is to be learnt. Without ``top_k`` half of the pool is kept, ten at least.
    """

    preset: str
    size: int
    network: NetworkConfig
    training: TrainingConfig
    finetuning: TrainingConfig
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    finetuning_synthesis: SynthesisConfig = field(
        default_factory=lambda: SynthesisConfig(real_fraction=0.8, mild=0.8)
    )
    quality: QualityConfig = field(default_factory=QualityConfig)
    voxel_size: float | None = None
    rounds: int = 1
    top_k: int | None = None
    pseudo_labels: str = "consensus"  # of the first round; later ones are the network's
    copies: int = 4  # of every unlabelled scan, for its pseudo-mask
    warm_start: bool = True  # a round starts from the network before it (False: from a new one)
    trials: int = 60  # corrupted copies, of the label and of unlabelled scans each
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


PRESETS: dict[str, MethodConfig] = {
    "quick": MethodConfig(
        preset="quick",
        size=64,
        network=NetworkConfig(features=(16, 32, 64, 64), normalise=True, stem=2),
        training=TrainingConfig(1000, 2, learning_rate=0.02, cosine=True, optimiser="muon"),
        finetuning=TrainingConfig(1000, 2, learning_rate=0.01, cosine=True, optimiser="muon"),
        quality=QualityConfig(slice_size=64),
    ),
    "standard": MethodConfig(
        preset="standard",
        size=128,
        network=NetworkConfig(features=(16, 32, 64, 64, 64), normalise=True, stem=2),
        training=TrainingConfig(10_000, 2, learning_rate=0.02, cosine=True, optimiser="muon"),
        finetuning=TrainingConfig(5_000, 2, learning_rate=0.01, cosine=True, optimiser="muon"),
        quality=QualityConfig(slice_size=128),
    ),
    "full": MethodConfig(
        preset="full",
        size=256,
        network=NetworkConfig(),
        training=TrainingConfig(steps=100_000),
        finetuning=TrainingConfig(steps=50_000),
    ),
}


def sloppy(method: MethodConfig) -> MethodConfig:
    """Shrink a method until it runs in seconds: for tests of the plumbing, never for masks."""
    return replace(
        method,
        size=32,
        copies=2,
        trials=12,
        network=NetworkConfig(features=(4, 8), normalise=True, stem=2),
        training=replace(method.training, steps=30),
        finetuning=replace(method.finetuning, steps=10),
        quality=replace(method.quality, slice_size=64, epochs=2),
    )


def for_processes(method: MethodConfig, count: int) -> MethodConfig:
    """Raise the batches to one image for each process."""

    def raised(settings: TrainingConfig) -> TrainingConfig:
        return replace(settings, batch_size=max(settings.batch_size, count))

    return replace(method, training=raised(method.training), finetuning=raised(method.finetuning))


def method_from(arguments: argparse.Namespace, preset: str) -> MethodConfig:
    """Apply the options of the command line to a preset."""
    method = PRESETS[preset]
    if arguments.sloppy:
        method = sloppy(method)
    if arguments.steps:
        share = arguments.steps / method.training.steps
        finetuning, epochs = method.finetuning.steps, method.quality.epochs
        method = replace(
            method,
            training=replace(method.training, steps=arguments.steps),
            finetuning=replace(method.finetuning, steps=max(round(finetuning * share), 1)),
            quality=replace(method.quality, epochs=max(round(epochs * share), 1)),
            trials=max(round(method.trials * share), min(method.trials, 20)),
        )
    if arguments.real_fraction is not None:
        share = arguments.real_fraction
        method = replace(
            method,
            synthesis=replace(method.synthesis, real_fraction=share),
            finetuning_synthesis=replace(method.finetuning_synthesis, real_fraction=share),
        )
    given = {
        name: getattr(arguments, name)
        for name in ("rounds", "pseudo_labels", "top_k", "voxel_size")
    }
    given = {name: value for name, value in given.items() if value is not None}
    return replace(method, seed=arguments.random_seed, **given)


@dataclass(frozen=True)
class RunConfig:
    """One call of the app: the paths, the selection and how to run."""

    bids_dir: Path
    output_dir: Path
    levels: tuple[str, ...]
    method: MethodConfig
    modalities: tuple[str, ...]
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    filters: Filters = field(default_factory=dict)
    database: Path | None = None
    label_subject: tuple[str, ...] = ()
    label_mask: Path | None = None
    derivatives: tuple[Path, ...] = ()
    model: Path | None = None
    work_dir: Path | None = None
    output: tuple[str, ...] = ()
    border_mm: float | None = None
    qc_threshold: float | None = None
    fmriprep_masks: Path | None = None
    fmriprep_sessionwise: bool = False
    overwrite: bool = False
    stop_on_first_crash: bool = False
    nprocs: int | None = None
    mem: float | None = None
    low_mem: bool = False
    log_dir: Path | None = None
    ratings: Path | None = None

    @property
    def overlap(self) -> bool:
        """Whether the participant level works on several scans at a time."""
        return not self.low_mem and self.nprocs != 1
