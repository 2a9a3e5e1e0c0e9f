"""What a run leaves for tracing it: its settings, versions and command, and crash files."""

from __future__ import annotations

import logging
import secrets
import shlex
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..errors import BadData, NoInput, SingleStripError
from . import files
from .runtime import Runtime, describe

LOG = logging.getLogger("singlestrip_bids")


def new_run_id() -> str:
    """Name a run by its start, in UTC, and by chance: jobs may start at the same time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}_{secrets.token_hex(4)}"


def write_run(
    config: RunConfig, options: Mapping[str, Any], words: Sequence[str], runtime: Runtime
) -> None:
    """Write how a run was started: `config.json`, `versions.json` and `command.txt`.

    The ``config`` is for reading alone. The ``options`` go by their long names, the automatic ones
    resolved; None and False if not given. Filter file and ratings are copied, so that the run can
    be repeated without them. The ``words`` are the command line without the program.
    """
    folder, options = config.log_dir, dict(options)
    if folder is None:
        return
    if options.get("bids_filter_file"):
        copy = folder / "bids_filter.json"
        files.write_json(copy, files.read_json(options["bids_filter_file"]))
        options["bids_filter_file"] = copy
    rated = options.get("ratings")
    if rated and rated.is_file():
        options["ratings"] = folder / f"ratings{rated.suffix}"
        files.write_bytes(options["ratings"], rated.read_bytes())
    settings = {"options": options, "settings": asdict(config)}
    files.write_json(folder / "config.json", settings)
    files.write_json(folder / "versions.json", describe(runtime.device))
    files.write_text(folder / "command.txt", shlex.join(["singlestrip-bids", *words]) + "\n")


def check_shared(config: RunConfig, runtime: Runtime) -> None:
    """Raise `NoInput` if a process of this run does not see what the first one has written."""
    runtime.gather(None)
    if config.log_dir and not config.log_dir.is_dir():
        raise NoInput(
            f"{config.output_dir}: process {runtime.rank} does not find here what the first one "
            "has written. Give a folder on a disk that all machines of the run share."
        )


def tokens(path: Path) -> list[str]:
    """Turn the options of a `config.json` into words of a command line.

    Raises NoInput or BadData if there is no such file, or it is another.
    """
    if not path.is_file():
        raise NoInput(f"{path} (--config-file) is not there. Correct the path.")
    options = files.read_json(path).get("options")
    if not isinstance(options, dict):
        raise BadData(f"{path} (--config-file) has no options. Give the config.json of a run.")
    words: list[str] = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if "\0" in str(value):
            raise BadData(f"{path}: {name} has a null character. Correct it.")
        if value is True:
            words += [option]
        elif isinstance(value, list) and value:
            words += [option, *map(str, value)]
        elif isinstance(value, str | int | float) and value is not False:
            words += [f"{option}={value}"]
        elif value not in (None, False, []):
            raise BadData(f"{path}: {name} is {value!r}. Correct it.")
    return words


def report_crash(folder: Path | None, what: str | Path, error: Exception) -> str:
    """Log the message of an error of a scan, or of what else failed, and return it as one line.

    Its traceback goes into a crash file in the folder of this run; None writes no file.
    """
    known = isinstance(error, SingleStripError)
    line = str(error) if known else f"{what}: {error!r}"
    if folder is not None:
        name = Path(what).name.split(".")[0]
        path = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(2)}.txt"
        trace = "".join(traceback.format_exception(error))
        files.write_text(path, f"{what}\n{line}\n\n{trace}")
        line += f" [{path}]"
    LOG.error("%s", line)
    return line
