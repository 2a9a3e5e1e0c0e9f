"""Write the table of options in usage.md anew, from the parser: ``python docs/options.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from singlestrip_bids.options import build_parser

USAGE = Path(__file__).with_name("usage.md")
BEGIN, END = "<!-- written by docs/options.py -->\n", "<!-- to here -->"


def table() -> str:
    """Return one table of all options, group by group."""
    lines = ["| option | values | meaning |", "|---|---|---|"]
    for group in build_parser()._action_groups:
        if group._group_actions and group.title not in ("positional arguments", "options"):
            lines.append(f"| **{group.title}** | | |")
        lines += map(row, group._group_actions)
    return "\n".join(lines) + "\n"


def row(action: argparse.Action) -> str:
    """Return the row of one option."""
    names = action.option_strings or [str(action.metavar or action.dest.upper())]
    choices = list(action.choices or ())
    if isinstance(action.choices, range):
        choices = [f"{choices[0]} to {choices[-1]}"]
    values = ", ".join(map(str, choices)) or str(action.metavar or action.dest.upper())
    values = "" if action.nargs == 0 else values + (" ..." if action.nargs == "+" else "")
    meaning = " ".join((action.help or "").replace("%%", "%").replace("|", "\\|").split())
    return f"| {', '.join(f'`{name}`' for name in names)} | {values} | {meaning} |"


def renewed(text: str) -> str:
    """Return a page with the table as it should be."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.partition(END)[2]


if __name__ == "__main__":
    USAGE.write_text(renewed(USAGE.read_text(encoding="utf-8")), encoding="utf-8")
