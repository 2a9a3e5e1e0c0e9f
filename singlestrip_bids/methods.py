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

from . import bibliography, derivatives, model, reports
from .config import RunConfig
from .errors import NoInput
from .guard import TOLERANCE
from .labels import INSIDE, OUTSIDE
from .runtime import Runtime
from .templates import render
from .volume import PERCENTILES

LOG = logging.getLogger("singlestrip_bids")


def run(config: RunConfig, runtime: Runtime) -> None:
    """Write the text again.

    Raises
    ------
    NoInput
        There is no model to write about.
    """
    folder = config.model or derivatives.model_dir(config.output_dir)
    if model.read_card(folder) is None:
        raise NoInput(f"{folder}: no model here to write about; run the group level first.")
    write(config.output_dir, folder)


def write(output_dir: Path, folder: Path) -> None:
    """Write ``logs/CITATION`` as Markdown, BibTeX and HTML, and TeX where pandoc is installed.

    A failure is logged: no model and no mask is lost by it.

    Parameters
    ----------
    output_dir : Path
        Derivative dataset, with the masks there are.
    folder : Path
        Of the model.
    """
    try:
        card = model.read_card(folder)
        if card is None:
            return
        masks = [row for row in reports.read_rows(output_dir, card=card) if row.fields]
        prose = text(card, model.read_table(folder, "scores"), masks)
        contents = {".md": prose, ".bib": references(prose), ".html": page(prose)}
        for extension, content in contents.items():
            derivatives.write_text(derivatives.citation_path(output_dir, extension), content)
        _write_tex(output_dir)
    except Exception as error:  # the masks are worth more than a text about them
        LOG.warning("The methods text could not be written (%r).", error)


def text(
    card: Mapping[str, Any], scores: Sequence[Mapping[str, str]], masks: Sequence[reports.Row]
) -> str:
    """Write the methods section in Markdown; citations are ``[@key]``.

    Parameters
    ----------
    card : mapping
        Of the model.
    scores : sequence of mapping
        Rows of ``scores.tsv``; those of an earlier model's rounds and scans are left out.
    masks : sequence of Row
        All masks on disk; those of another model are left out.
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
        rounds=rounds,
        sample=card["guard"]["sample"],
        tolerance=f"{TOLERANCE:g}".removeprefix("0"),
        percentiles=[f"{value:g}" for value in PERCENTILES],
        masks=_tally(row.scan for row in masks),
        averaged=sum("over time" in str(row.fields.get("Averaged")) for row in masks),
        unweighted=sum("diffusion" in str(row.fields.get("Averaged")) for row in masks),
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
    known = bibliography.sources()
    return "\n".join(known[key] for key in bibliography.keys(prose))


def page(prose: str) -> str:
    """Turn the text into a page with a list of references."""
    sections = []
    for part in prose.strip().split("\n\n"):
        heading = part.removeprefix("# ") if part.startswith("# ") else ""
        sections.append((heading, bibliography.link(" ".join(part.split()))))
    known = bibliography.read()
    cited = {key: bibliography.whole(known[key]) for key in bibliography.keys(prose)}
    return render(
        "methods.html", sections=sections, references=cited, **reports.page_values("Methods")
    )


def _resized(row: reports.Row, card: Mapping[str, Any]) -> bool:
    """Tell whether a head was seen at another voxel size than the labelled one."""
    size = row.fields.get("WorkingVoxelSizeMm", card["voxel_size_mm"])
    return abs(size / card["voxel_size_mm"] - 1) > 0.01


def _tally(scans: Iterable[str]) -> list[tuple[str, int]]:
    """Count scans by their suffix, the commonest first."""
    return Counter(scan.rsplit("_", 1)[-1].split(".")[0] for scan in scans).most_common()


def _wrap(paragraph: str) -> str:
    return textwrap.fill(paragraph, 99, break_long_words=False, break_on_hyphens=False)


def _write_tex(output_dir: Path) -> None:
    """Let pandoc turn the Markdown into TeX, if it is installed."""
    pandoc = shutil.which("pandoc")
    if pandoc is None:
        return
    paths = {end: derivatives.citation_path(output_dir, end) for end in (".md", ".bib", ".tex")}
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
    derivatives.write_text(paths[".tex"], done.stdout)
