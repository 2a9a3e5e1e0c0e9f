"""References of the method: the entries of ``references.bib``, and citations in a text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from markupsafe import Markup, escape
from pybtex.backends.html import Backend
from pybtex.database import Entry, Person, parse_string
from pybtex.style.formatting.unsrt import Style

from . import templates

_CITATION = re.compile(r"\[@[\w;\s@]+\]")  # which may go on in the next line
# pybtex writes entries with other words than it has read (a DOI's _ as \_): they are cut out
_SOURCE = re.compile(r"^@\w+\{([^,]+),.*?^\}\n", re.MULTILINE | re.DOTALL)


@cache
def read() -> Mapping[str, Entry]:
    """Read all references by key, in the order of the file."""
    return dict(parse_string(_text(), "bibtex").entries)


def sources() -> dict[str, str]:
    """Return all entries as they are written in the file, by key."""
    return {match[1]: match[0] for match in _SOURCE.finditer(_text())}


def keys(text: str) -> list[str]:
    """List the keys that a text cites as ``[@one; @two]``, in order, each once."""
    return list(dict.fromkeys(key for group in _CITATION.findall(text) for key in _keys(group)))


def short(entry: Entry) -> str:
    """Name the author and the year: ``Hoopes et al., 2022``."""
    first, *others = (_family(person) for person in entry.persons["author"])
    who = first if not others else f"{first} et al."
    if len(others) == 1 and others[0] != "others":
        who = f"{first} and {others[0]}"
    return f"{who}, {entry.fields['year']}" if "year" in entry.fields else who


@cache
def _style() -> Style:
    return Style()  # looks for its parts among all installed packages


def whole(entry: Entry) -> Markup:
    """Write the whole reference with its address, for HTML."""
    return Markup(_style().format_entry("", entry).text.render(Backend()))


def link(paragraph: str) -> Markup:
    """Write the citations of a paragraph as links to their references, for HTML."""
    parts, end = [], 0
    for match in _CITATION.finditer(paragraph):
        links = [
            Markup('<a href="#{}">{}</a>').format(key, short(read()[key]))
            for key in _keys(match[0])
        ]
        parts += [escape(paragraph[end : match.start()]), Markup("("), Markup("; ").join(links)]
        parts.append(Markup(")"))
        end = match.end()
    return Markup("").join([*parts, escape(paragraph[end:])])


def _text() -> str:
    return (templates.folder() / "references.bib").read_text(encoding="utf-8")


def _keys(group: str) -> list[str]:
    return [part.strip(" \n[]@") for part in group.split(";")]


def _family(person: Person) -> str:
    return " ".join(map(str, person.rich_prelast_names + person.rich_last_names))
