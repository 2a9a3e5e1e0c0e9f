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

from .config import MethodConfig, RunConfig, for_processes, method_for, model_folder
from .errors import IOFailed, SingleStripError, TemporaryFailure, Usage
from .options import LEVELS, build_parser, refuse_gone, seconds_of

if TYPE_CHECKING:
    from .machine.runtime import Runtime

LOG = logging.getLogger("singlestrip_bids")

INTERRUPTED = "Interrupted; the same command goes on from the last checkpoint."
# threads of the network that wait leave their processor to those that read and write other scans;
# in training, where nobody else is at work, threads that wait awake are faster, for a moment
SLEEPERS = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
LIGHT_SLEEPERS = {"GOMP_SPINCOUNT": "1000"}


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
    refuse_gone(words)
    arguments = parser.parse_args(words)
    if arguments.config_file:
        from .machine.runlog import tokens

        earlier = build_parser()
        earlier.prog += f" (--config-file {arguments.config_file})"
        places = [str(arguments.bids_dir), str(arguments.output_dir), *arguments.levels]
        options = tokens(arguments.config_file)
        refuse_gone(options)
        parser.set_defaults(**vars(earlier.parse_args([*places, *options])))
        arguments = parser.parse_args(words)
    arguments.levels = [level for level in LEVELS if level in arguments.levels]
    if (before := before_training(arguments)) and arguments.levels != ["group"]:
        raise Usage(f"{before} goes with the group level alone: there is no model yet.")
    if before and arguments.any_orientation:
        raise Usage(
            f"{before} expects upright heads; with --any-orientation draw the label by hand."
        )
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, value.absolute())
    arguments.derivatives = [path.absolute() for path in arguments.derivatives]
    return arguments


def before_training(arguments: argparse.Namespace) -> str:
    """Name the option, if any, that makes of the group level what comes before a label."""
    names = {"--suggest-label": arguments.suggest_label, "--draft-label": arguments.draft_label}
    return next((name for name, given in names.items() if given), "")


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    sleepers = SLEEPERS if arguments.levels == ["participant"] else LIGHT_SLEEPERS
    for name, value in sleepers.items() if "torch" not in sys.modules else ():
        os.environ.setdefault(name, value)
    from .machine import processes, runtime

    runtime.start_logging(arguments.verbose)
    log_dir = None
    try:
        limits = [n for n in (arguments.omp_nthreads, arguments.nprocs) if n]
        machine = runtime.start(arguments.device, min(limits, default=None), arguments.low_mem)
        config = _settle(arguments, machine)
        log_dir = config.log_dir
        return _levels(arguments, config, machine, words)
    except Exception as error:
        return _end(error, log_dir)
    finally:
        processes.leave()


def _levels(
    arguments: argparse.Namespace, config: RunConfig, machine: Runtime, words: Sequence[str]
) -> int:
    """Run the levels in order; several processes train together, the first does all else."""
    from .machine import runlog, runtime

    if machine.main:
        runlog.write_run(config, options_of(arguments), words, machine)
    runlog.check_shared(config, machine)
    code = 0
    with runtime.stopping_on_sigterm():
        for level in config.levels:
            alone = before_training(arguments) or arguments.reports_only
            together = level == "group" and not alone
            if not (together or machine.main):
                continue
            try:
                _work_of(level, arguments)(config, machine if together else machine.alone())
            except SingleStripError as error:
                if error.exit_code != 1 or config.stop_on_first_crash:
                    raise
                LOG.error("%s", error)
                code = 1
        return max(machine.gather(code))


def _end(error: Exception, log_dir: Path | None) -> int:
    """Say why a run ends early and return its exit code; of several processes one says it."""
    from .machine import processes, runlog, runtime

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
        runlog.report_crash(log_dir, "unexpected error, please report it", error)
    return code


def _work_of(level: str, arguments: argparse.Namespace) -> Callable[[RunConfig, Runtime], None]:
    """Say what a level does; no other is imported."""
    if arguments.draft_label:
        from . import draft

        return draft.run
    if arguments.suggest_label:
        from . import suggest

        return suggest.run
    if level == "group":
        from . import group

        return group.remake if arguments.reports_only else group.run
    from . import participant

    return participant.remake if arguments.reports_only else participant.run


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options by their long names, without what is given anew in each call."""
    anew = ["bids_dir", "output_dir", "levels", "config_file", "verbose", "reports_only"]
    anew += ["suggest_label", "draft_label"]
    return {n: v for n, v in vars(arguments).items() if n not in anew}


def _settle(arguments: argparse.Namespace, machine: Runtime) -> RunConfig:
    """Settle what was left to the app, and check where it is to write."""
    from .bids import filters, fmriprep
    from .bids.derivatives import Derivatives, check_outside
    from .machine import runlog, runtime
    from .method.model import suited_preset

    out = Derivatives(arguments.output_dir)
    arguments.device, arguments.omp_nthreads = machine.device_name, runtime.threads()
    training = "group" in arguments.levels
    begun = out.model_dir if training else None
    arguments.preset = arguments.preset or suited_preset(machine, begun)
    run_id, *_ = machine.gather(runlog.new_run_id())
    method = _method(arguments, machine, training)
    filter_file = arguments.bids_filter_file
    same = (
        *("bids_dir", "output_dir", "label_mask", "encoder", "work_dir", "border_mm"),
        *("qc_threshold", "fmriprep_masks", "fmriprep_sessionwise", "overwrite", "nprocs"),
        *("stop_on_first_crash", "low_mem", "ratings"),
    )
    lists = (
        *("levels", "modalities", "participant_label", "session_label", "label_subject"),
        *("derivatives", "output"),
    )
    plain: dict[str, Any] = {name: getattr(arguments, name) for name in same}
    plain |= {name: tuple(getattr(arguments, name)) for name in lists}
    config = RunConfig(
        method=method,
        filters=filters.read(filter_file) if filter_file else {},
        database=arguments.bids_database_dir,
        log_dir=out.log_dir(run_id),
        model=arguments.model and model_folder(arguments.model),
        propagation=not arguments.no_propagation,
        time=seconds_of(arguments.time) if arguments.time else None,
        **plain,
    )
    out.check(config.bids_dir)
    if config.work_dir:
        check_outside(config.work_dir, "work", config.bids_dir)
    fmriprep.check(config)
    return config


def _method(arguments: argparse.Namespace, machine: Runtime, training: bool) -> MethodConfig:
    """Settle how the group level learns."""
    names = ("rounds", "pseudo_labels", "top_k", "init")
    given = {name: getattr(arguments, name) for name in names}
    way = arguments.method, arguments.any_orientation
    given["seed"] = arguments.random_seed
    method = method_for(arguments.preset, arguments.set, arguments.sloppy, *way, **given)
    if arguments.encoder and training and not method.needs_features:
        raise Usage(
            "--encoder goes with --pseudo-labels prototypes or all, or with --method semisam-o1."
        )
    if (raised := for_processes(method, machine.world)) != method and training:
        LOG.info("Batches are raised to %d images, one for each process.", machine.world)
    return raised


def entry() -> NoReturn:
    """Console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
