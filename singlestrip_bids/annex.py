"""Files whose content is elsewhere: links to nothing, and git-annex (DataLad) before `get`."""

from __future__ import annotations

from pathlib import Path

from .errors import BadData

POINTER = b"/annex/objects/"  # how a file begins that git-annex calls unlocked


def check_content(path: Path) -> None:
    """Raise `BadData` for a link to nothing, and for a file that git-annex has not fetched."""
    if path.is_symlink() and not path.exists():
        target = path.readlink()
        if {".git", "annex"} & set(target.parts):
            raise BadData(_annexed(path))
        raise BadData(f"{path}: a link to a file that is not there, {target}; restore the file.")
    try:
        with path.open("rb") as stream:
            begin = stream.read(len(POINTER))
    except OSError:
        return  # whoever reads it says why
    if begin == POINTER:
        raise BadData(_annexed(path))


def _annexed(path: Path) -> str:
    return (
        f"{path}: its content is not here; it is in git-annex (DataLad). "
        f"Get it with: datalad get {path}"
    )
