"""Files, read and written: bytes, JSON, tables, tensors; the only module that writes.

Every file is written under a temporary hidden name in its folder and then renamed: a killed job
leaves no half file, and jobs that share a folder do not disturb each other. Nothing is unpickled.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import BadData, CannotCreate, IOFailed, NoInput

POINTER = b"/annex/objects/"  # how a file begins that git-annex calls unlocked


def check_content(path: Path) -> None:
    """Raise `BadData` for a file whose content is elsewhere, or is a web page."""
    begin = first_bytes(path)
    if path.is_symlink() and not path.exists():
        target = path.readlink()
        if not {".git", "annex"} & set(target.parts):
            raise BadData(f"{path}: a link to a file that is not there, {target}; restore it.")
        begin = POINTER
    annex, lfs = f"git-annex (DataLad): datalad get {path}", "Git LFS: git lfs pull"
    for mark, where in ((POINTER, annex), (b"version https://git-lfs", lfs)):
        if begin.startswith(mark):
            raise BadData(f"{path}: its content is not here; get it from {where}")
    if begin.lstrip()[:5].lower() in (b"<html", b"<!doc"):
        raise BadData(f"{path}: a web page under the name of a file; download the file again.")


def first_bytes(path: Path) -> bytes:
    """Read how a file begins; nothing of one that cannot be read: whoever reads it says why."""
    try:
        with path.open("rb") as stream:
            return stream.read(1024)
    except OSError:
        return b""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically, making its folder.

    Raises CannotCreate if the folder or a file in it cannot be made, IOFailed if writing breaks
    off; no half file is left.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = temporary.open("xb")
    except OSError as error:
        raise CannotCreate(
            f"Cannot create a file in {path.parent}: {error}. Choose a folder you can write to."
        ) from error
    try:
        with stream:
            stream.write(data)
        temporary.replace(path)
    except OSError as error:
        raise IOFailed(
            f"Cannot write {path}: {error}. Check the space left and that it is no folder."
        ) from error
    finally:  # after the renaming there is nothing left to remove
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, obj: Any) -> None:
    """Write JSON atomically, numpy values and paths among it.

    Raises ValueError for NaN or infinity, which JSON does not have: store None.
    """
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    write_text(path, text + "\n")


def write_tsv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a BIDS table atomically, a mapping a row.

    None, NaN and absent keys become `n/a`, floats get four decimals.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    write_text(path, "".join("\t".join(line) + "\n" for line in lines))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises BadData if it cannot be read, or is no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{path} is not readable JSON: {error}. Correct the file.") from error
    if not isinstance(content, dict):
        raise BadData(f"{path} holds no JSON object. Correct the file.")
    return content


def _cell(value: object) -> str:
    """Write one table cell."""
    if value is None:
        return "n/a"
    if isinstance(value, float | np.floating):
        return "n/a" if math.isnan(value) else f"{value:.4f}"
    return " ".join(str(value).split()) or "n/a"


def _plain(value: object) -> object:
    """Turn numpy values and paths into what JSON has."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def bytes_tensor(packed: bytes) -> Tensor:
    """Return bytes as a tensor of them, to be saved beside others."""
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def save_tensors(path: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write tensors, and plain data beside them in the header, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(plain, {"card": json.dumps(card, sort_keys=True)}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises NoInput if there is no such file, BadData if it is truncated or foreign.
    """
    if not path.is_file():
        raise NoInput(f"{path}: no such file; run the group level first or pass --model.")
    try:
        with safetensors.safe_open(path, "pt") as stream:
            card = json.loads((stream.metadata() or {})["card"])
            return {name: stream.get_tensor(name) for name in stream.keys()}, card  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
        raise BadData(f"{path}: damaged or foreign file ({error}); train again.") from error


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(*parts: object) -> str:
    """Checksum of plain data: what decides the result of a stage."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Read a table, such as ``scores.tsv`` of a model; empty if there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))
