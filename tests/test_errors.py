from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import singlestrip_bids
from singlestrip_bids import errors

CODES = {
    "ScanFailed": 1,
    "InvalidDataset": 16,
    "NothingSelected": 18,
    "Usage": 64,
    "BadData": 65,
    "NoInput": 66,
    "CannotCreate": 73,
    "IOFailed": 74,
    "TemporaryFailure": 75,
}
PACKAGE = Path(singlestrip_bids.__file__).parent
TABLE = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
CELLS = [line.split("|")[0] for line in TABLE.splitlines() if " | " in line]
ENTRIES = [entry for cell in CELLS for entry in re.findall(r"`([^`]+)`", cell)]
GAP = "…"  # what differs from case to case: a path, a number


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_exit_code(name, code):
    error = getattr(errors, name)("sub-01 is missing")
    assert isinstance(error, errors.SingleStripError)
    assert error.exit_code == code
    assert str(error) == "sub-01 is missing"
    assert type(error).__doc__


def test_every_error_is_listed():
    assert {cls.__name__ for cls in errors.SingleStripError.__subclasses__()} == set(CODES)


def text_of(node: ast.expr) -> str:
    """A message as it is written, with gaps for what it names."""
    if isinstance(node, ast.Constant):
        return re.sub(r"%\.?\d*[dsgr]", GAP, str(node.value)).replace("%%", "%")
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return GAP


def messages() -> Iterator[tuple[str, str]]:
    """Where each error that a user may see is raised, or warning is given, and its message."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = node.exc if isinstance(node, ast.Raise) else node
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = ast.unparse(call.func)
            if name.lower().lstrip("_") in ("log.warning", "log.error") or name in CODES:
                text = text_of(call.args[0])
                if re.search("[a-z]", text):
                    yield f"{path.name}:{call.lineno}", text


def tells_of(entry: str, message: str) -> bool:
    return re.search(".*".join(map(re.escape, entry.split(GAP))), message, re.DOTALL) is not None


def test_every_message_is_in_the_table():
    found = dict(messages())
    assert len(found) > 70
    missing = [
        f"{place} {text}"
        for place, text in found.items()
        if not any(tells_of(entry, text) for entry in ENTRIES)
    ]
    assert not missing


def test_the_table_tells_of_no_other_message():
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    texts = [text_of(n) for tree in trees for n in ast.walk(tree) if isinstance(n, kinds)]
    texts = [text for text in texts if " " in text]
    assert not [
        entry for entry in ENTRIES if " " in entry and not any(tells_of(entry, t) for t in texts)
    ]
