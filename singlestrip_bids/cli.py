"""The command line: parse, settle every setting, run the levels, return the exit code.

Nothing heavy is imported before the arguments are known to be good.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .config import RunConfig, method_from
from .errors import IOFailed, SingleStripError, TemporaryFailure
from .options import build_parser

if TYPE_CHECKING:
    from .runtime import Runtime

LOW_MEM_GB = 1.2  # of --mem; below, as --low-mem


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app and return its exit code (BIDS Apps draft, BEP027)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(parse(words), words)
    except SystemExit as stop:
        return int(stop.code or 0)
    except SingleStripError as error:  # of the file of --config-file
        print(f"singlestrip-bids: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; options that it does not give come from its `--config-file`."""
    parser = build_parser()
    arguments = parser.parse_args(words)
    if arguments.config_file:
        from .records import tokens

        earlier = build_parser()
        earlier.prog += f" (--config-file {arguments.config_file})"
        places = [str(arguments.bids_dir), str(arguments.output_dir), *arguments.levels]
        defaults = vars(earlier.parse_args([*places, *tokens(arguments.config_file)]))
        parser.set_defaults(**defaults)
        arguments = parser.parse_args(words)
    if arguments.suggest_label and arguments.levels != ["group"]:
        parser.error("--suggest-label goes with the group level alone: there is no model yet")
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, value.absolute())
    arguments.derivatives = [path.absolute() for path in arguments.derivatives]
    return arguments


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    from . import runtime

    runtime.start_logging(arguments.verbose)
    log = logging.getLogger("singlestrip_bids")
    log_dir, code = None, 0
    try:
        arguments.low_mem |= bool(arguments.mem and arguments.mem < LOW_MEM_GB)
        limits = [n for n in (arguments.omp_nthreads, arguments.nprocs) if n]
        machine = runtime.start(arguments.device, min(limits, default=None), arguments.low_mem)
        arguments.device, arguments.omp_nthreads = str(machine.device), runtime.threads()
        gpu = machine.device.type == "cuda"
        arguments.preset = arguments.preset or ("standard" if gpu else "quick")
        config = _config(arguments)
        # after the start, which gives a user without a home one
        from . import derivatives, handoff, records

        derivatives.check_output(config.output_dir, config.bids_dir)
        handoff.check(config)
        log_dir = config.log_dir
        records.write_run(config, options_of(arguments), words)
        with runtime.stopping_on_sigterm():
            for level in config.levels:
                try:
                    _work_of(level, arguments)(config, machine)
                except SingleStripError as error:
                    if error.exit_code != 1 or config.stop_on_first_crash:
                        raise
                    log.error("%s", error)
                    code = 1
    except SingleStripError as error:
        log.error("%s", error)
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        log.error("%s; check the disk and permissions.", where)
        return IOFailed.exit_code
    except runtime.OUT_OF_MEMORY as error:
        log.error("Out of GPU memory (%s); free it, or use a smaller --preset.", error)
        return TemporaryFailure.exit_code
    except Exception as error:
        from . import records

        records.report_crash(log_dir, "unexpected error, please report it", error)
        return 1
    return code


def _work_of(level: str, arguments: argparse.Namespace) -> Callable[[RunConfig, Runtime], None]:
    """Say what a level does; no other is imported."""
    if arguments.boilerplate_only:
        from . import methods

        return methods.run
    if arguments.suggest_label:
        from . import suggestion

        return suggestion.run
    if level == "group":
        from . import group

        return group.remake if arguments.reports_only else group.run
    from . import participant

    return participant.remake if arguments.reports_only else participant.run


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options by their long names, without what is given anew in each call."""
    anew = ["bids_dir", "output_dir", "levels", "config_file", "verbose"]
    anew += ["reports_only", "boilerplate_only", "suggest_label"]
    return {name: value for name, value in vars(arguments).items() if name not in anew}


def _config(arguments: argparse.Namespace) -> RunConfig:
    from . import derivatives, filters, records

    filter_file = arguments.bids_filter_file
    return RunConfig(
        bids_dir=arguments.bids_dir,
        output_dir=arguments.output_dir,
        levels=tuple(arguments.levels),
        method=method_from(arguments, arguments.preset),
        modalities=tuple(arguments.modalities),
        participant_label=tuple(arguments.participant_label),
        session_label=tuple(arguments.session_label),
        filters=filters.read(filter_file) if filter_file else {},
        database=arguments.bids_database_dir,
        label_subject=tuple(arguments.label_subject),
        label_mask=arguments.label_mask,
        derivatives=tuple(arguments.derivatives),
        model=arguments.model,
        work_dir=arguments.work_dir,
        output=tuple(arguments.output),
        border_mm=arguments.border_mm,
        qc_threshold=arguments.qc_threshold,
        fmriprep_masks=arguments.fmriprep_masks,
        fmriprep_sessionwise=arguments.fmriprep_sessionwise,
        overwrite=arguments.overwrite,
        stop_on_first_crash=arguments.stop_on_first_crash,
        nprocs=arguments.nprocs,
        mem=arguments.mem,
        low_mem=arguments.low_mem,
        log_dir=derivatives.log_dir(arguments.output_dir, records.new_run_id()),
        ratings=arguments.ratings,
    )


def entry() -> NoReturn:
    """Console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
