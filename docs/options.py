"""Write the page of all options, docs/options.md, from the parser: ``python docs/options.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from singlestrip_bids.options import build_parser

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# All options

Write the folders and the levels first, the options after them:
`singlestrip-bids BIDS_DIR OUTPUT_DIR group participant --preset quick`.
The table is made from the program itself (`python docs/options.py`).

option | values | meaning
---|---|---
"""


def page() -> str:
    """Return the page: one table of all options, group by group."""
    lines = []
    for group in build_parser()._action_groups:
        if group._group_actions and group.title not in ("positional arguments", "options"):
            lines.append(f"**{group.title}** | |")
        lines += [row(a) for a in group._group_actions if a.help != argparse.SUPPRESS]
    return HEAD + "\n".join(lines) + "\n"


def row(action: argparse.Action) -> str:
    """Return the row of one option."""
    names = action.option_strings or [str(action.metavar or action.dest.upper())]
    choices = list(action.choices or ())
    if isinstance(action.choices, range):
        choices = [f"{choices[0]} to {choices[-1]}"]
    values = ", ".join(map(str, choices)) or str(action.metavar or action.dest.upper())
    values = "" if action.nargs == 0 else values + (" ..." if action.nargs == "+" else "")
    meaning = " ".join((action.help or "").replace("%%", "%").replace("|", "\\|").split())
    return f"{', '.join(f'`{name}`' for name in names)} | {values} | {meaning}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
