"""Set the line numbers of the links in docs/tour.md anew: ``python docs/tour.py``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
LINK = re.compile(r"\[`([\w.]+)`\]\((\.\./singlestrip_bids/[\w/]+\.py)(?:#L\d+)?\)")


def renewed(text: str) -> str:
    """Return a page whose links lead to the lines where what they name is defined."""
    return LINK.sub(_link, text)


def _link(match: re.Match[str]) -> str:
    name, path = match[1], match[2]
    code = (PAGE.parent / path).read_text(encoding="utf-8")
    if name.replace(".", "/") + ".py" in path:  # of a whole module
        return f"[`{name}`]({path})"
    return f"[`{name}`]({path}#L{_line(ast.parse(code), name.split('.'))})"


def _line(tree: ast.AST, names: list[str]) -> int:
    """Find a class or function, a method, or a constant; KeyError if it is not there."""
    for node in ast.iter_child_nodes(tree):
        if getattr(node, "name", None) == names[0]:
            return _line(node, names[1:]) if names[1:] else node.lineno
        targets = node.targets if isinstance(node, ast.Assign) else []
        if names[0] in [getattr(target, "id", None) for target in targets]:
            return node.lineno
    raise KeyError(".".join(names))


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
