"""Templates of pages and texts: the folder ``boilerplate``, filled in by jinja2."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape


def folder() -> Path:
    """Return where the templates lie: within the installed package, or beside it in a clone."""
    package = Path(__file__).parents[1]
    installed = package / "boilerplate"
    return installed if installed.is_dir() else package.parent / "boilerplate"


def render(name: str, **values: Any) -> str:
    """Fill in a template; values are escaped in ``.html``, a missing one is an error."""
    return _environment().get_template(name).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder()),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["score"] = _score
    return environment


def _score(value: object) -> str:
    """Write a number between 0 and 1 as papers do: .941, and n/a for none."""
    if not isinstance(value, float | int):
        return "n/a"
    return f"{value:.3f}".removeprefix("0")
