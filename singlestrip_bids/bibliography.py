"""References of the method: the entries of ``references.bib``, and citations in a text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup, escape

from . import templates

_ENTRY = re.compile(r"^@\w+\{([^,]+),.*?^\}\n", re.MULTILINE | re.DOTALL)
_VALUE = r"\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"  # braces within braces within braces
_FIELD = re.compile(rf"(\w+)\s*=\s*{_VALUE}")
_ACCENT = re.compile(r"\{?\\([\"'`^~c])\{?(\w)\}?\}?")
_COMBINING = {'"': "\u0308", "'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303"}
_CITATION = re.compile(r"\[@[\w; @]+\]")


@dataclass(frozen=True)
class Reference:
    """One entry: its key, its source in BibTeX, and its fields in plain text."""

    key: str
    source: str
    fields: Mapping[str, str]

    @property
    def authors(self) -> list[str]:
        """Family names; ``others`` may be the last."""
        names = self.fields["author"].split(" and ")
        return [name.split(",")[0] for name in names]

    @property
    def short(self) -> str:
        """Author and year: ``Hoopes et al., 2022``."""
        first, *others = self.authors
        who = first if not others else f"{first} et al."
        if len(others) == 1 and others[0] != "others":
            who = f"{first} and {others[0]}"
        return f"{who}, {self.fields['year']}" if "year" in self.fields else who

    @property
    def text(self) -> str:
        """The whole reference without its address."""
        fields = self.fields
        names = fields["author"].replace(" and others", ", et al.").replace(" and ", "; ")
        where = " ".join(
            fields[key] for key in ("journal", "booktitle", "publisher", "volume") if key in fields
        )
        where += f":{fields['pages'].replace('--', '–')}" if "pages" in fields else ""
        year = f" ({fields['year']})" if "year" in fields else ""
        return f"{(names + year).rstrip('.')}. {fields['title']}." + (
            f" {where}." if where else ""
        )

    @property
    def url(self) -> str | None:
        """Where it can be found."""
        doi, eprint = self.fields.get("doi"), self.fields.get("eprint")
        if doi:
            return f"https://doi.org/{doi}"
        return self.fields.get("url") or (f"https://arxiv.org/abs/{eprint}" if eprint else None)


def read() -> dict[str, Reference]:
    """Read all references by key, in the order of the file."""
    text = (templates.folder() / "references.bib").read_text(encoding="utf-8")
    found = {}
    for match in _ENTRY.finditer(text):
        values = {name: _plain(value) for name, value in _FIELD.findall(match[0])}
        found[match[1]] = Reference(match[1], match[0], values)
    return found


def keys(text: str) -> list[str]:
    """List the keys that a text cites as ``[@one; @two]``, in order, each once."""
    return list(dict.fromkeys(key for group in _CITATION.findall(text) for key in _keys(group)))


def link(paragraph: str, references: Mapping[str, Reference]) -> Markup:
    """Write the citations of a paragraph as links to their references, for HTML."""
    parts, end = [], 0
    for match in _CITATION.finditer(paragraph):
        links = [
            Markup('<a href="#{}">{}</a>').format(key, references[key].short)
            for key in _keys(match[0])
        ]
        parts += [escape(paragraph[end : match.start()]), Markup("("), Markup("; ").join(links)]
        parts.append(Markup(")"))
        end = match.end()
    return Markup("").join([*parts, escape(paragraph[end:])])


def _keys(group: str) -> list[str]:
    return [part.strip(" []@") for part in group.split(";")]


def _plain(value: str) -> str:
    """Turn BibTeX into Unicode, on one line."""

    def accent(match: re.Match[str]) -> str:
        mark = "\u0327" if match[1] == "c" else _COMBINING[match[1]]
        return unicodedata.normalize("NFC", match[2] + mark)

    return " ".join(_ACCENT.sub(accent, value).translate({ord(c): None for c in "{}"}).split())
