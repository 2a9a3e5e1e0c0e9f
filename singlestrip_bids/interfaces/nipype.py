"""Brain extraction as a Nipype interface: one scan in, its mask out. Needs the `nipype` extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Directory,
    File,
    SimpleInterface,
    TraitedSpec,
    traits,
)
from nipype.utils.filemanip import split_filename


class _SingleStripInputSpec(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="scan with its skull, NIfTI; of 4D the mean")
    model = traits.Either(
        traits.Enum("phantom"),
        Directory(exists=True),
        mandatory=True,
        desc="code/singlestrip folder that a group run has written, or phantom: for drafts",
    )
    device = traits.Str("cpu", usedefault=True, desc="auto, cpu, cuda or cuda:N")
    num_threads = traits.Range(low=1, value=1, usedefault=True, nohash=True, desc="CPU threads")


class _SingleStripOutputSpec(TraitedSpec):
    out_mask = File(exists=True, desc="brain mask, uint8, on the grid of in_file")
    expected_dice = traits.Float(desc="Dice with a reader's mask that can be expected, 0 to 1")
    expected_dice_interval = traits.Tuple(traits.Float, traits.Float, desc="90 % interval of it")


class SingleStrip(SimpleInterface):
    """Mask the brain of one scan with a model of the group level.

    Nipype counts `num_threads` as the node's processors. It asks for the memory when the node is
    made: `Node(SingleStrip(), name="brain", mem_gb=SingleStrip.mem_gb)`.
    """

    input_spec = _SingleStripInputSpec
    output_spec = _SingleStripOutputSpec
    mem_gb = 2.0

    def _run_interface(self, runtime: Any) -> Any:
        from .. import load_model  # slow to import

        model = load_model(self.inputs.model, self.inputs.device, self.inputs.num_threads)
        brain = model.mask(self.inputs.in_file)
        _, name, _ = split_filename(self.inputs.in_file)
        path = Path(runtime.cwd) / f"{name}_mask.nii.gz"
        brain.save(path)
        self._results = {
            "out_mask": str(path),
            "expected_dice": brain.expected_dice,
            "expected_dice_interval": brain.interval,
        }
        return runtime
