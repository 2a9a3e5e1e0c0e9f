"""The Boutiques descriptor and the table of options: as the parser is now, valid, and of use."""

from __future__ import annotations

import json
import resource
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

from boutiques import bosh
from boutiques.validator import validate_descriptor

from singlestrip_bids import cli

FILE = Path(__file__).parents[1] / "boutiques.json"
DOCS = FILE.parent / "docs"


def test_the_file_is_current():
    descriptor = runpy.run_path(str(DOCS / "descriptor.py"))["descriptor"]
    remedy = "python docs/descriptor.py > boutiques.json"
    assert json.loads(FILE.read_text()) == descriptor(), remedy


def test_the_page_of_options_is_current():
    text = (DOCS / "options.md").read_text(encoding="utf-8")
    page = runpy.run_path(str(DOCS / "options.py"))["page"]
    assert text == page(), "python docs/options.py"
    assert "`--label-mask`" in text
    assert "sloppy" not in text


def test_it_is_valid():
    validate_descriptor(json.loads(FILE.read_text()))  # raises otherwise


def test_its_command_line_is_understood(tmp_path):
    invocation = {
        "bids_dir": "data", "output_dir": "out", "levels": ["group", "participant"],
        "participant_label": ["01", "02"], "session_label": ["a"], "set": ["steps=12"],
        "rounds": 2, "preset": "quick", "border_mm": -1.5, "overwrite": True,
        "output": ["brain", "probseg"],
    }  # fmt: skip
    path = tmp_path / "invocation.json"
    path.write_text(json.dumps(invocation))
    line = bosh(["exec", "simulate", "-i", str(path), str(FILE)]).shell_command
    program, *words = shlex.split(line)
    assert program == "singlestrip-bids"
    arguments = vars(cli.parse(words))
    paths = {name: Path(invocation[name]).absolute() for name in ("bids_dir", "output_dir")}
    expected = invocation | paths
    assert {name: arguments[name] for name in expected} == expected


def test_help_is_quick():
    """In CPU time, and best of three: other programs may run beside the tests."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "singlestrip_bids.cli", "--help"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "which scans" in said
    assert min(seconds) < 0.5
