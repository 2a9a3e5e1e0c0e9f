"""Settings as frozen dataclasses; each is plain data that goes to JSON and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from math import inf
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .errors import Usage

# suffixes used unless others are asked for, what ``all`` means, and every one that can be asked
# for: those that BIDS has for images of a head
ANATOMICAL = ("T1w", "T2w", "PDw", "FLAIR", "T2starw", "inplaneT2")
ALL_MODALITIES = (*ANATOMICAL, "asl", "m0scan", "bold", "sbref", "boldref", "dwi")
SUFFIXES = (
    *ALL_MODALITIES,
    *("inplaneT1", "PDT2", "angio", "T2star", "FLASH", "PD", "MTw", "UNIT1", "MP2RAGE", "MEGRE"),
    *("MESE", "VFA", "IRT1", "MPM", "MTS", "MTR", "T1map", "T2map", "T2starmap", "R1map", "R2map"),
    *("R2starmap", "PDmap", "MTRmap", "MTsat", "T1rho", "MWFmap", "MTVmap", "Chimap", "S0map"),
    *("M0map", "cbv", "ADC", "FA", "colFA", "expADC", "trace"),
)
OUTPUTS = ("brain", "probseg", "distance")  # what can be written beside the masks
INITS = ("random", "phantom")  # weights with which a training can begin
PSEUDO_LABELS = ("network", "registration", "consensus", "prototypes", "all")  # of the first round
WITH_PROTOTYPES = ("prototypes", "all")  # among them
FEATURES = ("levels", "deepest")  # of an encoder: all levels of its decoder, or as published
REFINEMENTS = ("none", "regions", "volumes")  # of pseudo-labels between rounds
ALL = 10_000  # pseudo-labels: more than there are scans

PHANTOM = Path(__file__).parent / "phantom"  # the model that ships with the app, and its name

Filters = Mapping[str, Mapping[str, tuple[str | None, ...]]]  # conditions: by suffix, entity
Settings = TypeVar("Settings")


def model_folder(given: str | Path) -> Path:
    """Return where a model lies; the word ``phantom`` stands for the one that ships."""
    return PHANTOM if str(given) == PHANTOM.name else Path(given)


def _require(fact: bool, what: str) -> None:
    """Raise `ValueError` where a setting makes no sense."""
    if not fact:
        raise ValueError(what)


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the U-Net.

    ``stem`` folds blocks of ``stem``³ voxels into channels before the first convolution and
    unfolds them near the end (sub-pixel convolution, Shi et al. 2016): 1 is a plain U-Net.
    """

    features: tuple[int, ...] = (16, 32, 64, 64, 64, 64, 64)
    normalise: bool = False
    stem: int = 1

    def __post_init__(self) -> None:
        whole = all(width >= 1 for width in self.features) and len(self.features) > 1
        _require(whole and self.stem >= 1, "features (two or more) and stem are 1 or more")

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

    def __post_init__(self) -> None:
        for one in fields(self):
            value, name = getattr(self, one.name), one.name
            share = name.endswith("probability") or name in ("real_fraction", "mild", "crop")
            _require(0 <= value < inf, f"{name} is 0 or more")
            _require(not share or value <= 1, f"{name} is a share, 1 at most")


@dataclass(frozen=True)
class TrainingConfig:
    """One call of the training loop."""

    steps: int
    batch_size: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.0  # of Adam alone
    cosine: bool = False
    optimiser: str = "adam"  # or "muon"

    def __post_init__(self) -> None:
        _require(self.steps >= 1 and self.batch_size >= 1, "steps and batch_size are 1 or more")
        _require(0 < self.learning_rate < inf, "learning_rate is positive")
        _require(0 <= self.weight_decay < inf, "weight_decay is 0 or more")
        _require(self.optimiser in ("adam", "muon"), "optimiser is adam or muon")


@dataclass(frozen=True)
class AutoencoderConfig:
    """The autoencoder: sizes of its slices and of its training (SingleStrip, section 2.3)."""

    slice_size: int = 256
    latent: int = 100
    epochs: int = 500
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5

    def __post_init__(self) -> None:
        _require(self.slice_size in (64, 128, 256), "slice_size is 64, 128 or 256")
        counts = self.latent, self.epochs, self.batch_size
        _require(min(counts) >= 1, "latent, epochs and batch_size are 1 or more")


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
    quality: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    voxel_size: float | None = None
    rounds: int = 1
    top_k: int | None = None
    pseudo_labels: str = "consensus"  # of the first round; later ones are the network's
    copies: int = 4  # of every unlabelled scan, for its pseudo-label
    fine_steps: int = 0  # of the network that draws the border in voxels half as large; 0: none
    warm_start: bool = True  # a round starts from the network before it (False: from a new one)
    init: str = "random"  # weights with which SL-1 begins; or those of "phantom"
    features: str = "levels"  # by which prototypes and refinement tell likeness
    refinement: str = "none"  # of the pseudo-labels, from the second round on
    consistency: float = 0.0  # weight of agreement with a moving average; above 0, all is ramped
    any_orientation: bool = False  # heads lie as they like, and are of the label's size
    trials: int = 60  # corrupted copies, of the label and of unlabelled scans each
    seed: int = 0

    def __post_init__(self) -> None:
        _require(8 <= self.size <= 1024, "size is between 8 and 1024")
        _require(
            self.size % self.network.multiple == 0,
            "size does not suit the network (set that first)",
        )
        _require(self.voxel_size is None or 0 < self.voxel_size < inf, "voxel_size is positive")
        _require(0 <= self.rounds <= 9, "rounds is between 0 and 9")
        _require(self.top_k is None or self.top_k >= 1, "top_k is 1 or more")
        _require(self.pseudo_labels in PSEUDO_LABELS, f"pseudo_labels is one of {PSEUDO_LABELS}")
        _require(self.init in INITS, f"init is one of {INITS}")
        _require(self.features in FEATURES, f"features is one of {FEATURES}")
        _require(self.refinement in REFINEMENTS, f"refinement is one of {REFINEMENTS}")
        _require(0 <= self.consistency < inf, "consistency is 0 or more")
        _require(self.fine_steps >= 0, "fine_steps is 0 or more")
        _require(self.copies >= 1, "copies is 1 or more")
        _require(self.trials >= 4, "trials is 4 or more")

    @property
    def registers(self) -> bool:
        """Whether the first pseudo-labels are also the propagated label's."""
        return self.pseudo_labels not in ("network", "prototypes")

    @property
    def needs_features(self) -> bool:
        """Whether scans are described by an encoder."""
        first = self.pseudo_labels in WITH_PROTOTYPES
        return self.rounds > 0 and (first or (self.refinement != "none" and self.rounds > 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


PRESETS: dict[str, MethodConfig] = {
    "quick": MethodConfig(
        preset="quick",
        size=64,
        network=NetworkConfig(features=(16, 32, 64, 64), normalise=True, stem=2),
        training=TrainingConfig(300, 2, learning_rate=0.02, cosine=True, optimiser="muon"),
        finetuning=TrainingConfig(700, 2, learning_rate=0.01, cosine=True, optimiser="muon"),
        quality=AutoencoderConfig(slice_size=64),
        fine_steps=700,
        init=PHANTOM.name,
    ),
    "standard": MethodConfig(
        preset="standard",
        size=128,
        network=NetworkConfig(features=(16, 32, 64, 64, 64), normalise=True, stem=2),
        training=TrainingConfig(10_000, 2, learning_rate=0.02, cosine=True, optimiser="muon"),
        finetuning=TrainingConfig(5_000, 2, learning_rate=0.01, cosine=True, optimiser="muon"),
        quality=AutoencoderConfig(slice_size=128),
    ),
    "full": MethodConfig(
        preset="full",
        size=256,
        network=NetworkConfig(),
        training=TrainingConfig(steps=100_000),
        finetuning=TrainingConfig(steps=50_000),
    ),
}


def semisam_o1(method: MethodConfig) -> MethodConfig:
    """Change a method to SemiSAM-O1 as published (arXiv:2604.24109), on this app's pipeline.

    Prototypes, then three rounds from new networks, each as long as the first training, whose
    pseudo-labels are put to a vote in between; none is left out.
    """
    return replace(
        method,
        pseudo_labels="prototypes",
        features="deepest",
        refinement="volumes",
        rounds=3,
        warm_start=False,
        finetuning=method.training,
        consistency=0.1,
        fine_steps=0,
        top_k=ALL,
    )


def in_any_orientation(method: MethodConfig) -> MethodConfig:
    """Change a method to one for heads that lie as they like: fetuses, animals."""

    def turned(synthesis: SynthesisConfig) -> SynthesisConfig:
        return replace(synthesis, rotation_deg=180.0)

    return replace(
        method,
        synthesis=turned(method.synthesis),
        finetuning_synthesis=turned(method.finetuning_synthesis),
        any_orientation=True,
    )


METHODS: dict[str, Callable[[MethodConfig], MethodConfig]] = {
    "singlestrip": lambda method: method,
    "semisam-o1": semisam_o1,
}


def sloppy(method: MethodConfig) -> MethodConfig:
    """Shrink a method until it runs in seconds: for tests of the plumbing, never for masks."""
    return replace(
        method,
        size=32,
        copies=2,
        trials=12,
        network=NetworkConfig(features=(4, 8), normalise=True, stem=2),
        init="random",
        training=replace(method.training, steps=30),
        finetuning=replace(method.finetuning, steps=10),
        fine_steps=5,
        quality=replace(method.quality, slice_size=64, epochs=2),
    )


def for_processes(method: MethodConfig, count: int) -> MethodConfig:
    """Raise the batches to one image for each process."""

    def raised(settings: TrainingConfig) -> TrainingConfig:
        return replace(settings, batch_size=max(settings.batch_size, count))

    return replace(method, training=raised(method.training), finetuning=raised(method.finetuning))


def with_steps(method: MethodConfig, steps: int) -> MethodConfig:
    """Change the steps of the first training; all other trainings keep their proportion to it."""
    share = steps / method.training.steps
    finetuning, quality = method.finetuning, method.quality
    return replace(
        method,
        training=replace(method.training, steps=steps),
        finetuning=replace(finetuning, steps=scaled(finetuning.steps, share)),
        fine_steps=scaled(method.fine_steps, share),
        quality=replace(quality, epochs=max(round(quality.epochs * share), 1)),
        trials=max(round(method.trials * share), min(method.trials, 20)),
    )


def scaled(steps: int, share: float) -> int:
    """Change a number of steps, unless there are none."""
    return max(round(steps * share), 1) if steps else 0


def with_settings(method: MethodConfig, pairs: Sequence[str]) -> MethodConfig:
    """Change settings by their names: ``training.steps=400``, ``voxel_size=4``.

    A key is the path to a field; ``steps`` is that of `with_steps`. Raises Usage if there is no
    such setting, or it has no such value.
    """
    steps = [pair for pair in pairs if pair.startswith("steps=")]
    others = [pair for pair in pairs if pair not in steps]
    for pair in [*steps[-1:], *others]:
        key, _, text = pair.partition("=")
        try:
            if key == "steps":
                method = with_steps(method, int(text))
            else:
                method = _changed(method, key.split("."), text)
        except (ValueError, OverflowError) as error:
            raise Usage(
                f"--set {pair}: {error}. Give KEY=VALUE, as training.steps=400."
            ) from error
    return method


def _changed(settings: Settings, path: Sequence[str], text: str) -> Settings:
    """Change one field, deep within settings."""
    name, *rest = path
    kinds = get_type_hints(type(settings))
    known = sorted(kinds.keys() - {"preset", "seed"})  # which have options of their own
    if name not in known:
        raise ValueError(f"no setting {name!r}; there are {', '.join(known)}")
    old = getattr(settings, name)
    if is_dataclass(old) != bool(rest):
        raise ValueError(f"{name} is {'a group of settings' if is_dataclass(old) else 'no group'}")
    value = _changed(old, rest, text) if rest else _parsed(kinds[name], text)
    changed: Settings = replace(settings, **{name: value})  # type: ignore[type-var]
    return changed


def _parsed(kind: Any, text: str) -> Any:
    """Read a value of a type: whole numbers with commas between, none, true, false, a number."""
    if get_origin(kind) is tuple:
        return tuple(int(part) for part in text.split(","))
    either = get_args(kind) or (kind,)
    word = text.lower()
    if word == "none" and type(None) in either:
        return None
    if bool in either:
        if word not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return word == "true"
    try:
        return either[0](text)
    except ValueError:
        raise ValueError(f"{text!r} is no {either[0].__name__}") from None


def method_for(
    preset: str,
    settings: Sequence[str] = (),
    tiny: bool = False,
    way: str = "singlestrip",
    any_orientation: bool = False,
    **given: Any,
) -> MethodConfig:
    """Make the settings of a run from a preset, shrunk by `sloppy` first if ``tiny``.

    ``way`` is one of `METHODS`. The ``given`` fields that are None stay as they are; ``settings``
    are changed last, as by `with_settings`. Raises Usage if there is no such preset or setting.
    """
    if preset not in PRESETS:
        raise Usage(f"No preset {preset!r}. Choose one of {', '.join(sorted(PRESETS))}.")
    method = sloppy(PRESETS[preset]) if tiny else PRESETS[preset]
    method = METHODS[way](method)
    method = in_any_orientation(method) if any_orientation else method
    method = replace(method, **{name: v for name, v in given.items() if v is not None})
    return with_settings(method, settings)


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
    encoder: Path | None = None
    time: int | None = None  # seconds that the group level may take
    work_dir: Path | None = None
    output: tuple[str, ...] = ()
    border_mm: float | None = None
    qc_threshold: float | None = None
    fmriprep_masks: Path | None = None
    fmriprep_sessionwise: bool = False
    propagation: bool = True
    overwrite: bool = False
    stop_on_first_crash: bool = False
    nprocs: int | None = None
    low_mem: bool = False
    log_dir: Path | None = None
    ratings: Path | None = None

    @property
    def overlap(self) -> bool:
        """Whether the participant level works on several scans at a time."""
        return not self.low_mem and self.nprocs != 1
