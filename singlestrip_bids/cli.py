"""The command line: parse, settle every setting, run the levels, return the exit code.

Nothing heavy is imported before the arguments are known to be good.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .config import PRESETS, RunConfig, for_processes, method_from
from .errors import IOFailed, SingleStripError, TemporaryFailure, Usage
from .options import LEVELS, build_parser

if TYPE_CHECKING:
    from .runtime import Runtime

LOG = logging.getLogger("singlestrip_bids")

INTERRUPTED = "Interrupted; the same command goes on from the last checkpoint."
LOW_MEM_GB = 1.2  # of --mem; below, as --low-mem
SLEEPERS = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
"""So that threads of the network that wait leave their processor to those that read and write
other scans; libraries look at these when they are loaded. In training nobody else is at work, and
threads that wait awake are faster."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the app and return its exit code (BIDS Apps draft, BEP027)."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(parse(words), words)
    except SystemExit as stop:
        return int(stop.code or 0)
    except SingleStripError as error:  # in the command line, or in the file of --config-file
        print(f"singlestrip-bids: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":  # of several processes the first one says so
            print(INTERRUPTED, file=sys.stderr)
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
    arguments.levels = [level for level in LEVELS if level in arguments.levels]
    if arguments.suggest_label and arguments.levels != ["group"]:
        raise Usage("--suggest-label goes with the group level alone: there is no model yet.")
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, value.absolute())
    arguments.derivatives = [path.absolute() for path in arguments.derivatives]
    return arguments


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    if arguments.levels == ["participant"] and "torch" not in sys.modules:
        for name, value in SLEEPERS.items():
            os.environ.setdefault(name, value)
    from . import processes, runtime

    runtime.start_logging(arguments.verbose)
    log_dir, code = None, 0
    try:
        arguments.low_mem |= bool(arguments.mem and arguments.mem < LOW_MEM_GB)
        limits = [n for n in (arguments.omp_nthreads, arguments.nprocs) if n]
        machine = runtime.start(arguments.device, min(limits, default=None), arguments.low_mem)
        arguments.device, arguments.omp_nthreads = machine.device_name, runtime.threads()
        arguments.preset = arguments.preset or _preset(arguments, machine)
        config = _config(arguments, machine)
        # after the start, which gives a user without a home one
        from . import derivatives, handoff, records

        derivatives.check_output(config.output_dir, config.bids_dir)
        if config.work_dir:
            derivatives.check_outside(config.work_dir, "work", config.bids_dir)
        handoff.check(config)
        log_dir = config.log_dir
        if machine.main:
            records.write_run(config, options_of(arguments), words, machine)
        records.check_shared(config, machine)
        shared = not (
            arguments.suggest_label or arguments.boilerplate_only or arguments.reports_only
        )
        with runtime.stopping_on_sigterm():
            for level in config.levels if shared or machine.main else ():
                try:
                    _work_of(level, arguments)(config, machine)
                except SingleStripError as error:
                    if error.exit_code != 1 or config.stop_on_first_crash:
                        raise
                    LOG.error("%s", error)
                    code = 1
            return max(machine.gather(code))
    except Exception as error:
        return _end(error, log_dir)
    finally:
        processes.leave()


def _end(error: Exception, log_dir: Path | None) -> int:
    """Say why a run ends early and return its exit code; of several processes one says it."""
    from . import processes, records, runtime

    known = str(error) if isinstance(error, SingleStripError) else ""
    code = getattr(error, "exit_code", 1)
    if isinstance(error, OSError):
        where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        known, code = f"{where}; check the disk and permissions.", IOFailed.exit_code
    elif isinstance(error, runtime.OUT_OF_MEMORY):
        known = f"Out of GPU memory ({error}); free it, or use a smaller --preset."
        code = TemporaryFailure.exit_code
    before = processes.failed_before(code)
    if before is not None:
        return before
    if known:
        LOG.error("%s", known)
    else:
        records.report_crash(log_dir, "unexpected error, please report it", error)
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


def _preset(arguments: argparse.Namespace, machine: Runtime) -> str:
    """Choose the preset where none is given: that of the training which was begun here, if any."""
    suited = "standard" if machine.device.type == "cuda" else "quick"
    if "group" not in arguments.levels:
        return suited
    from . import derivatives, model

    begun = model.preset_of(derivatives.model_dir(arguments.output_dir))
    if begun not in PRESETS:
        return suited
    if begun != suited:
        LOG.info("Preset %s, with which the model here was begun; --preset changes it.", begun)
    return begun


def _config(arguments: argparse.Namespace, machine: Runtime) -> RunConfig:
    from . import derivatives, filters, records

    run_id, *_ = machine.gather(records.new_run_id())
    method = method_from(arguments, arguments.preset)
    if (raised := for_processes(method, machine.world)) != method and "group" in arguments.levels:
        LOG.info("Batches are raised to %d images, one for each process.", machine.world)
    filter_file = arguments.bids_filter_file
    return RunConfig(
        bids_dir=arguments.bids_dir,
        output_dir=arguments.output_dir,
        levels=tuple(arguments.levels),
        method=raised,
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
        log_dir=derivatives.log_dir(arguments.output_dir, run_id),
        ratings=arguments.ratings,
    )


def entry() -> NoReturn:
    """Console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
