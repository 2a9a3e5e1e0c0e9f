"""The command line as a Boutiques descriptor, for platforms such as CBRAIN and for `bosh`.

`python docs/descriptor.py > boutiques.json` writes it anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from singlestrip_bids import __version__, errors
from singlestrip_bids.options import build_parser

_SKIPPED = (argparse._HelpAction, argparse._VersionAction)


def descriptor() -> dict[str, Any]:
    """Describe the parser by the Boutiques schema 0.5."""
    parser = build_parser()
    actions = [
        action
        for action in parser._actions
        if not isinstance(action, _SKIPPED) and action.help != argparse.SUPPRESS
    ]
    keys = " ".join(_key(action) for action in actions)
    return {
        "name": parser.prog,
        "description": parser.description,
        "tool-version": __version__,
        "schema-version": "0.5",
        "command-line": f"{parser.prog} {keys}",
        "inputs": [_input(action) for action in actions],
        "groups": [
            {"id": f"group_{number}", "name": group.title, "members": members}
            for number, group in enumerate(parser._action_groups)
            if (members := [a.dest for a in group._group_actions if a in actions])
        ],
        "output-files": [
            {
                "id": "dataset",
                "name": "Derivative dataset",
                "description": "Brain masks, and the model under code/singlestrip",
                "path-template": "[OUTPUT_DIR]",
            }
        ],
        "error-codes": [
            {"code": code, "description": meaning} for code, meaning in sorted(_codes().items())
        ],
        "tags": {"domain": ["neuroinformatics", "bids", "mri"]},
    }


def _key(action: argparse.Action) -> str:
    return f"[{action.dest.upper()}]"


def _input(action: argparse.Action) -> dict[str, Any]:
    """Describe one argument."""
    fields: dict[str, Any] = {
        "id": action.dest,
        "name": action.dest.replace("_", " "),
        "description": (action.help or "").replace("%%", "%"),
        "value-key": _key(action),
        "optional": bool(action.option_strings),
        **_type(action),
    }
    if action.option_strings:
        fields["command-line-flag"] = next(o for o in action.option_strings if o[:2] == "--")
    if action.nargs == "+":
        fields |= {"list": True, "min-list-entries": 1}
    return fields


def _type(action: argparse.Action) -> dict[str, Any]:
    """Say of which kind the values are, and which are possible."""
    if action.nargs == 0:
        return {"type": "Flag"}
    if isinstance(action.choices, range):
        numbers = action.choices
        return {
            "type": "Number",
            "integer": True,
            "minimum": min(numbers),
            "maximum": max(numbers),
        }
    if action.choices:
        return {"type": "String", "value-choices": list(action.choices)}
    if action.dest == "bids_dir" or action.metavar == "FILE":
        return {"type": "File"}
    parse = getattr(action.type, "__name__", "str")
    if parse.endswith("int"):
        return {"type": "Number", "integer": True}
    if parse in ("float", "number"):
        return {"type": "Number"}
    return {"type": "String"}


def _codes() -> dict[int, str]:
    """Return the exit codes of the app and what they mean."""
    kinds = errors.SingleStripError.__subclasses__()
    return {kind.exit_code: (kind.__doc__ or "").strip().splitlines()[0] for kind in kinds}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(descriptor(), indent=2) + "\n")
