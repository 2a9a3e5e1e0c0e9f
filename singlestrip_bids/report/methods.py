"""Methods text with a run's true numbers, and its references, ready to be pasted into a paper."""

from __future__ import annotations

import logging
import shutil
import subprocess
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..bids.derivatives import Derivatives
from ..image.grid import PERCENTILES
from ..machine import files
from ..method import model
from ..method.classes import EACH, INSIDE, OUTSIDE
from ..method.guard import TOLERANCE
from ..method.propagation import AGREED
from . import citations
from . import subject as subject_report
from .templates import render

LOG = logging.getLogger("singlestrip_bids")


def write(out: Derivatives, folder: Path) -> None:
    """Write ``logs/CITATION`` as Markdown, BibTeX and HTML, and TeX where pandoc is installed.

    A failure is logged: no model and no mask is lost by it. The model lies in ``folder``.
    """
    try:
        card = model.read_card(folder)
        if card is None:
            return
        masks = [row for row in subject_report.read_rows(out, card=card) if row.fields]
        prose = text(card, files.read_tsv(folder / "scores.tsv"), masks)
        contents = {".md": prose, ".bib": references(prose), ".html": page(prose)}
        for extension, content in contents.items():
            files.write_text(out.citation(extension), content)
        _write_tex(out)
    except Exception as error:  # the masks are worth more than a text about them
        LOG.warning("The methods text could not be written (%r).", error)


def text(
    card: Mapping[str, Any],
    scores: Sequence[Mapping[str, str]],
    masks: Sequence[subject_report.Row],
) -> str:
    """Write the methods section of a model in Markdown; citations are ``[@key]``.

    Of the rows of ``scores.tsv`` and of the masks on disk those of another model are left out.
    """
    pool, made_by = set(card["unlabelled"]), card["sha256"][card["network"]]
    masks = [row for row in masks if row.fields.get("ModelSHA256") == made_by]
    rounds, unusable = [], 0
    for number in range(1, card["method"]["rounds"] + 1):
        rows = [row for row in scores if row["round"] == str(number) and row["scan"] in pool]
        kept = sum(row["kept"] == "True" for row in rows)
        failed = sum(row["note"] != "n/a" for row in rows)
        unusable = max(unusable, failed)
        rounds += [(kept, len(rows) - failed)] if kept else []
    expected = [row.expected for row in masks if row.expected is not None]
    filled = render(
        "methods.md",
        card=card,
        label=_tally(label["scan"] for label in card["label"]),
        pool=_tally(card["unlabelled"]),
        unusable=unusable + len(card["guard"]["failed"]),
        ratings=card["ratings"] if any(card.get("ratings", {}).values()) else None,
        inside=INSIDE,
        outside=OUTSIDE,
        each=EACH,
        rounds=rounds,
        sample=card["guard"]["sample"],
        opinions=_opinions(card["guard"]),
        tolerance=f"{TOLERANCE:g}".removeprefix("0"),
        percentiles=[f"{value:g}" for value in PERCENTILES],
        masks=_tally(row.scan for row in masks),
        averaged=sum("over time" in str(row.fields.get("Averaged")) for row in masks),
        unweighted=sum("diffusion" in str(row.fields.get("Averaged")) for row in masks),
        joined=sum(row.fields.get("PropagatedWeight", 0) > 0 for row in masks),
        agreed=f"{AGREED:g}".removeprefix("0"),
        resized=sum(_resized(row, card) for row in masks),
        expected={
            "median": median(expected),
            "low": min(expected),
            "high": max(expected),
            "count": len(expected),
        }
        if expected
        else None,
    )
    paragraphs = (" ".join(part.split()) for part in filled.split("\n\n"))
    return "\n\n".join(_wrap(part) for part in paragraphs if part) + "\n"


def references(prose: str) -> str:
    """Return the BibTeX entries that a text cites."""
    known = citations.sources()
    return "\n".join(known[key] for key in citations.keys(prose))


def page(prose: str) -> str:
    """Turn the text into a page with a list of references."""
    sections = []
    for part in prose.strip().split("\n\n"):
        heading = part.removeprefix("# ") if part.startswith("# ") else ""
        sections.append((heading, citations.link(" ".join(part.split()))))
    known = citations.read()
    cited = {key: citations.whole(known[key]) for key in citations.keys(prose)}
    return render(
        "methods.html",
        sections=sections,
        references=cited,
        **subject_report.page_values("Methods"),
    )


def _resized(row: subject_report.Row, card: Mapping[str, Any]) -> bool:
    """Tell whether a head was seen at another voxel size than the labelled one."""
    size = row.fields.get("WorkingVoxelSizeMm", card["voxel_size_mm"])
    return abs(size / card["voxel_size_mm"] - 1) > 0.01


def _opinions(guard: Mapping[str, Any]) -> list[float]:
    """Return the Dice of each network with the propagated label, if all have one."""
    found = [standing.get("opinion") for standing in guard["standings"].values()]
    return found if all(found) and len(found) > 1 else []


def _tally(scans: Iterable[str]) -> list[tuple[str, int]]:
    """Count scans by their suffix, the commonest first."""
    return Counter(scan.rsplit("_", 1)[-1].split(".")[0] for scan in scans).most_common()


def _wrap(paragraph: str) -> str:
    return textwrap.fill(paragraph, 99, break_long_words=False, break_on_hyphens=False)


def _write_tex(out: Derivatives) -> None:
    """Let pandoc turn the Markdown into TeX, if it is installed."""
    pandoc = shutil.which("pandoc")
    paths = {end: out.citation(end) for end in (".md", ".bib", ".tex")}
    if pandoc is None:
        paths[".tex"].unlink(missing_ok=True)  # of an earlier text
        return
    command = [pandoc, paths[".md"].name, "--standalone", "--natbib", "--to", "latex"]
    command += ["--bibliography", paths[".bib"].name]  # TeX looks for it beside the text
    done = subprocess.run(
        command,
        cwd=paths[".md"].parent,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    files.write_text(paths[".tex"], done.stdout)
