"""SingleStrip as a BIDS App: skull-stripping learnt from one labelled scan.

Examples
--------
After ``singlestrip-bids study out group``:

>>> import singlestrip_bids as ss
>>> model = ss.load_model("out/code/singlestrip")
>>> brain = model.mask("study/sub-02/anat/sub-02_T1w.nii.gz")
>>> low, high = brain.interval
>>> low <= brain.expected_dice <= high
True
>>> brain.save("sub-02_mask.nii.gz")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .image.brain import Brain
    from .method.model import Model

__version__ = "0.1.0"
__all__ = ["Brain", "Model", "__version__", "load_model", "train"]


def load_model(
    folder: str | Path,
    device: str = "auto",
    threads: int | None = None,
    propagation: bool = True,
) -> Model:
    """Read a trained model.

    Parameters
    ----------
    folder : path
        ``code/singlestrip`` of an output folder.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    threads : int, optional
        CPU threads; by default as many as there are free processors.
    propagation : bool
        Whether to join the network's masks with the propagated label.

    Returns
    -------
    Model
        Its ``mask(scan)`` finds the brain in a scan.

    Raises
    ------
    singlestrip_bids.errors.NoInput
        There is no model in the folder.
    singlestrip_bids.errors.BadData
        It is damaged, foreign, or of another version.
    singlestrip_bids.errors.Usage
        There is no such device.
    """
    from .config import model_folder
    from .machine.runtime import start
    from .method import model

    return model.load(model_folder(folder), start(device, threads), propagation)


def train(
    bids_dir: str | Path,
    output_dir: str | Path,
    *,
    label_subject: str | Sequence[str] = (),
    label_mask: str | Path | None = None,
    modalities: str | Sequence[str] = (),
    preset: str | None = None,
    settings: Mapping[str, object] | None = None,
    random_seed: int = 0,
    device: str = "auto",
) -> Model:
    """Train a model from one labelled scan and all the unlabelled ones: the group level.

    What was finished before in the output folder is not trained again.

    Parameters
    ----------
    bids_dir, output_dir : path
        The dataset, and the derivative dataset to write.
    label_subject : str or sequence of str
        The labelled subject; needed where several have masks.
    label_mask : path, optional
        Its mask, if that lies elsewhere.
    modalities : str or sequence of str
        Suffixes to use, such as ``T1w``; by default the anatomical ones.
    preset : str, optional
        ``quick``, ``standard`` or ``full``; by default as on the command line.
    settings : mapping, optional
        Of the method, for experiments, such as ``{"steps": 400}``.
    random_seed : int
        Same seed and device, same model.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Returns
    -------
    Model
        Ready to mask scans.

    Raises
    ------
    singlestrip_bids.errors.SingleStripError
        The label, the dataset or a setting does not allow a model. Of its kind ``ScanFailed``:
        the model is there, made without some unlabelled scans that could not be used.
    """
    from . import group
    from .bids.derivatives import Derivatives
    from .config import ANATOMICAL, RunConfig, method_for
    from .machine import runlog, runtime
    from .method import model

    if not group.LOG.hasHandlers():  # training takes a while: say how far it is
        runtime.start_logging(0)
    machine = runtime.start(device)
    bids_dir, output_dir = Path(bids_dir).absolute(), Path(output_dir).absolute()
    out = Derivatives(output_dir)
    lists = label_subject, modalities
    subjects, suffixes = ((v,) if isinstance(v, str) else tuple(v) for v in lists)
    pairs = [
        f"{key}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for key, value in (settings or {}).items()
    ]
    preset = preset or model.suited_preset(machine, out.model_dir)
    config = RunConfig(
        bids_dir=bids_dir,
        output_dir=output_dir,
        levels=("group",),
        method=method_for(preset, pairs, seed=random_seed),
        modalities=suffixes or ANATOMICAL,
        label_subject=subjects,
        label_mask=Path(label_mask) if label_mask else None,
        log_dir=out.log_dir(runlog.new_run_id()),
    )
    group.run(config, machine)
    return model.load(out.model_dir, machine)


def __getattr__(name: str) -> Any:
    """Import the two types of the face where they are asked for: they are slow to import."""
    home = {"Brain": ".image.brain", "Model": ".method.model"}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)
