"""The filter file: conditions on the entities of scans, written as for fMRIPrep.

It only narrows a selection: names in it are compared with those of scans and never become paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..config import SUFFIXES, Filters
from ..errors import BadData, NoInput, Usage
from ..machine.files import read_json

ANY = "*"
ENTITIES = (  # what can be asked of a scan, by pybids' long names
    *("subject", "session", "sample", "task", "acquisition", "ceagent", "reconstruction"),
    *("direction", "run", "modality", "echo", "flip", "inv", "mt", "part", "recording", "chunk"),
    *("datatype", "suffix", "extension", "space", "desc", "res", "label"),
)
_NUMBERS = ("run", "echo", "flip", "inv", "chunk")  # 1 and 01 are the same
_PREFIXES = {"subject": "sub-", "session": "ses-"}
_QUERIES = {suffix.lower(): suffix for suffix in SUFFIXES}
_OTHERS = ("fmap", "roi")  # queries of fMRIPrep for what is no scan here


def read(path: Path) -> Filters:
    """Read a filter file: for a suffix and entity, the values one of which a scan must have.

    In `{"t1w": {"session": ["1", "2"], "acquisition": null, "run": "*"}}` null (here None) means
    that the entity is absent, `*` that it is there.

    Raises NoInput if there is no such file, BadData if it is not JSON or not of this form, Usage
    if it names a query or an entity that is not known.
    """
    if not path.is_file():
        raise NoInput(f"{path} (--bids-filter-file) is not there. Correct the path.")
    filters: dict[str, Mapping[str, tuple[str | None, ...]]] = {}
    for query, conditions in read_json(path).items():
        if query.lower() in _OTHERS:
            continue
        if query.lower() not in _QUERIES:
            raise Usage(
                f"{path}: unknown query {query!r}. Known: {', '.join(_QUERIES)}. Correct it."
            )
        if not isinstance(conditions, dict):
            raise BadData(f'{path}: {query} needs an object such as {{"session": "1"}}.')
        filters[_QUERIES[query.lower()]] = {
            name: _values(path, query, name, value) for name, value in conditions.items()
        }
    return filters


def accepts(filters: Filters, entities: Mapping[str, str]) -> bool:
    """Tell whether a scan meets the conditions for its suffix; without any it does."""
    conditions = filters.get(entities["suffix"], {})
    return all(_meets(name, values, entities.get(name)) for name, values in conditions.items())


def _values(path: Path, query: str, name: str, value: Any) -> tuple[str | None, ...]:
    """Check one condition and make it a tuple of plain values."""
    if name not in ENTITIES:
        raise Usage(
            f"{path}: {query} has the unknown entity {name!r}. Known: {', '.join(ENTITIES)}. "
            "Correct it."
        )
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(v, bool) or not _plain(v) for v in values):
        raise BadData(
            f"{path}: {name} of {query} is {value!r}. Give a text, a whole number, null (absent), "
            '"*" (any), or a list of these.'
        )
    return tuple(None if v is None else _bare(name, str(v)) for v in values)


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int)


def _meets(name: str, values: Iterable[str | None], actual: str | None) -> bool:
    if actual is None:
        return None in values
    return any(value in (ANY, _bare(name, actual)) for value in values)


def _bare(name: str, value: str) -> str:
    """Strip what makes equal values look different: `ses-`, and zeros before a number."""
    value = value.removeprefix(_PREFIXES.get(name, ""))
    return value.lstrip("0") or "0" if name in _NUMBERS and value.isdecimal() else value
