"""Where and how the stages of one model are trained: the folder, the grid, the settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from . import checkpoints, derivatives, labels, model, volume
from .config import MethodConfig, TrainingConfig
from .errors import BadData, CannotCreate, IOFailed, ScanFailed
from .frame import Frame
from .inputs import Scan
from .records import report_crash
from .runtime import OUT_OF_MEMORY, Runtime, mix_seed
from .synthesis import Source, source
from .training import Loss, fit, learning_rate
from .volume import Conformed

LOG = logging.getLogger("singlestrip_bids")

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Stage:
    """Where and how the stages of one model are trained."""

    folder: Path
    work: Path
    method: MethodConfig
    frame: Frame
    runtime: Runtime
    log_dir: Path | None = None  # for crash files
    stop_on_first_crash: bool = False

    def conform(self, scan: Scan) -> Conformed:
        """Read a scan and bring it to the model's grid."""
        return self.frame.conform(volume.load(scan.path))

    def note(self, scan: Scan, error: Exception) -> str:
        """Leave a crash file of a scan that failed; return what to say of it.

        Raises
        ------
        ScanFailed
            With ``--stop-on-first-crash``.
        torch.OutOfMemoryError, CannotCreate, IOFailed
            It was not the scan's fault.
        """
        if isinstance(error, (OUT_OF_MEMORY, CannotCreate, IOFailed)):
            raise error
        note = report_crash(self.log_dir, scan.path, error)
        if self.stop_on_first_crash:
            raise ScanFailed(f"Stopped at the first scan that failed: {note}") from error
        return note

    def source(self, conformed: Conformed, mask: NDArray) -> Source:
        """Fit the mixtures under a mask and move the volume to the device."""
        classes = labels.class_map(conformed.data, mask > 0.5, conformed.inside, self.method.seed)
        arrays = (classes, conformed.data, np.asarray(mask, dtype=np.float32))
        return source(*(torch.from_numpy(array).to(self.runtime.device) for array in arrays))

    def train(
        self,
        name: str,
        network: Network,
        loss: Loss,
        settings: TrainingConfig,
        key: str,
        finish: Callable[[Network], dict[str, Any]] | None = None,
    ) -> str:
        """Train a network in place, or read it if it is finished; return its fingerprint.

        What ``finish`` does to the trained network is part of it, and what it returns is kept
        beside the weights. Of several processes the first one writes.
        """
        path = self.folder / f"{name}.safetensors"
        how = [finish.__name__] if finish else []
        key = model.fingerprint(name, asdict(settings), self.method.seed, key, *how)
        if self._finished(path, network, key):
            LOG.info("%s: finished before, taken from %s.", name, path)
            return key
        if self.runtime.main:
            model.retract(self.folder)
        network.to(self.runtime.device)
        checkpoint = self.work / f"{name}.checkpoint"
        seed = mix_seed(self.method.seed, int(key[:12], 16))
        history = fit(network, loss, settings, self.runtime, checkpoint, key, seed, name)
        facts = finish(network) if finish else {}
        if not self.runtime.main:
            return key
        rows = [
            {
                "step": step + 1,
                "loss": value,
                "learning_rate": f"{learning_rate(step, settings):.3g}",
            }
            for step, value in enumerate(history)
        ]
        derivatives.write_tsv(self.folder / f"{name}_training.tsv", rows)
        facts |= {"fingerprint": key, "preset": self.method.preset}
        checkpoints.save(path, network.state_dict(), facts)
        checkpoint.unlink(missing_ok=True)
        return key

    def _finished(self, path: Path, network: nn.Module, key: str) -> bool:
        """Read a network that was trained before under the same fingerprint."""
        if not path.is_file():
            return False
        try:
            tensors, card = checkpoints.load(path)
            if card.get("fingerprint") != key:
                return False
            checkpoints.restore(path, network, tensors)
        except BadData as error:
            LOG.warning("%s It is trained again now.", error)
            return False
        network.to(self.runtime.device)
        return True
