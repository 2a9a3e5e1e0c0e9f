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
from singlestrip_bids.descriptor import descriptor

FILE = Path(__file__).parents[1] / "boutiques.json"


def test_the_file_is_current():
    remedy = "python -m singlestrip_bids.descriptor > boutiques.json"
    assert json.loads(FILE.read_text()) == descriptor(), remedy


def test_the_table_of_options_is_current():
    page = FILE.parent / "docs" / "usage.md"
    text = page.read_text(encoding="utf-8")
    renewed = runpy.run_path(str(page.with_name("options.py")))["renewed"]
    assert renewed(text) == text, "python docs/options.py"
    assert "`--label-mask`" in text
    assert renewed(text.replace("`--label-mask`", "`--gone`")) == text


def test_it_is_valid():
    validate_descriptor(json.loads(FILE.read_text()))  # raises otherwise


def test_its_command_line_is_understood(tmp_path):
    invocation = {
        "bids_dir": "data", "output_dir": "out", "levels": ["group", "participant"],
        "participant_label": ["01", "02"], "session_label": ["a"], "steps": 12, "rounds": 2,
        "preset": "quick", "border_mm": -1.5, "overwrite": True, "output": ["brain", "probseg"],
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
