"""The options of the command line."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from . import __version__
from .config import (
    ALL_MODALITIES,
    ANATOMICAL,
    INITS,
    METHODS,
    OUTPUTS,
    PHANTOM,
    PRESETS,
    PSEUDO_LABELS,
)
from .errors import Usage

LEVELS = ("group", "participant")
UNKNOWN_LEVEL = 17  # exit code of the BIDS Apps draft (BEP027)

QUICK = PRESETS["quick"]  # its method settings are every preset's


class Parser(argparse.ArgumentParser):
    """Exits with 64 on wrong usage, as the BIDS Apps draft asks, and with 17 on a wrong level."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit."""
        self.print_usage(sys.stderr)
        code = UNKNOWN_LEVEL if "argument LEVEL" in message else Usage.exit_code
        self.exit(code, f"{self.prog}: error: {message}\n")


GONE = {  # options that there were, and what took their place
    "--mem": "--low-mem takes the least memory",
    "--mem-gb": "--low-mem takes the least memory",
    "--boilerplate-only": "--reports-only writes the methods text, too",
    "--real-fraction": "use --set synthesis.real_fraction=F finetuning_synthesis.real_fraction=F",
    "--steps": "use --set steps=N",
    "--voxel-size": "use --set voxel_size=MM",
}


def refuse_gone(words: Sequence[str]) -> None:
    """Raise `Usage` for an option that there is no more."""
    for word in words:
        if (name := word.split("=")[0]) in GONE:
            raise Usage(f"{name} is gone: {GONE[name]}.")


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _model(text: str) -> Path | str:
    """Take a folder, or the name of the model that ships with the app."""
    return text if text == PHANTOM.name else Path(text)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2^32 - 1")
    return value


def seconds_of(text: str) -> int:
    """Read a time such as 45m or 1h30m; 0 for what is none."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    return 3600 * hours + 60 * minutes + seconds


def _time(text: str) -> str:
    if not seconds_of(text):
        raise argparse.ArgumentTypeError(f"{text} is no time such as 45m or 1h30m")
    return text


def _border(text: str) -> float:
    value = float(text)
    if not 0.1 <= abs(value) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.1 and 100, or -100 and -0.1")
    return value


for _kind, _name in (
    (_positive_int, "positive int"),
    (_fraction, "number"),
    (_seed, "int"),
    (_border, "number"),
):
    _kind.__name__ = _name  # in messages


def _derivatives(text: str) -> Path:
    return Path(re.sub(r"^\w[\w.-]*=", "", text))


def build_parser() -> Parser:
    """Build the parser; its help is the reference of all options."""
    parser = Parser(
        prog="singlestrip-bids",
        description="Skull-stripping learnt from one labelled scan. Unlike in most BIDS Apps, "
        "group comes FIRST: it trains a model from the one labelled scan and all the unlabelled "
        "ones; participant then writes a brain mask of every scan.",
        epilog="Both levels in one call: singlestrip-bids BIDS_DIR OUTPUT_DIR group participant",
        allow_abbrev=False,
    )
    parser.add_argument("bids_dir", type=Path, help="BIDS dataset; nothing is written into it")
    parser.add_argument("output_dir", type=Path, help="derivative dataset to write")
    parser.add_argument(
        "levels", metavar="LEVEL", nargs="+", choices=LEVELS,
        help="group (train), participant (mask), or both in order",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    which = parser.add_argument_group("which scans")
    which.add_argument(
        "--participant-label", "--participant_label", nargs="+", default=[], metavar="LABEL",
        help="only these subjects, with or without sub-",
    )  # fmt: skip
    which.add_argument(
        "--session-label", "--session_label", "--session-id", nargs="+", default=[],
        metavar="LABEL", help="only these sessions, with or without ses-",
    )  # fmt: skip
    which.add_argument(
        "--bids-filter-file", type=Path, metavar="FILE",
        help="only the scans that meet its conditions: JSON as for fMRIPrep, such as "
        '{"t1w": {"run": 1, "acquisition": null}}',
    )  # fmt: skip
    which.add_argument(
        "--modalities", nargs="+", default=list(ANATOMICAL), metavar="SUFFIX",
        help=f"suffixes to use (default: {' '.join(ANATOMICAL)}); "
        f"all adds {' '.join(ALL_MODALITIES[len(ANATOMICAL):])}; others of BIDS by name",
    )  # fmt: skip
    which.add_argument(
        "--bids-database-dir", type=Path, metavar="DIR",
        help="take the names of files from a pybids index in DIR, which is made if there is none; "
        "remove it when files were added (default: look into the folders)",
    )  # fmt: skip
    which.add_argument("--skip-bids-validation", action="store_true", help=argparse.SUPPRESS)

    label = parser.add_argument_group("the label (group)")
    label.add_argument(
        "--label-subject", nargs="+", default=[], metavar="LABEL",
        help="the labelled subject; needed where several have masks. Several subjects: all train",
    )  # fmt: skip
    label.add_argument("--label-mask", type=Path, metavar="FILE", help="its brain mask")
    label.add_argument(
        "-d", "--derivatives", type=_derivatives, nargs="+", default=[], metavar="[NAME=]PATH",
        help="look for the mask here instead of in BIDS_DIR/derivatives/*; NAME means nothing",
    )  # fmt: skip
    label.add_argument(
        "--suggest-label", action="store_true",
        help="train nothing, but compare scans and say which one is worth labelling",
    )  # fmt: skip
    label.add_argument(
        "--draft-label", action="store_true",
        help="train nothing, but draft the mask of that scan and write label.html, a page in "
        "which it is corrected",
    )  # fmt: skip

    training = parser.add_argument_group("training (group)")
    training.add_argument(
        "--preset", choices=sorted(PRESETS), default=None,
        help="quick: 4 mm for an adult head, minutes on 2 CPU cores; standard: 2 mm, a GPU; "
        "full: 1 mm, the scale of the paper (default: that of the training begun in OUTPUT_DIR; "
        "else standard on a GPU, quick without)",
    )  # fmt: skip
    training.add_argument(
        "--time", type=_time, metavar="TIME",
        help="as many steps as end in this time on this machine, such as 10m, 30m or 8h "
        "(default: those of the preset)",
    )  # fmt: skip
    training.add_argument(
        "--method", choices=list(METHODS), default="singlestrip",
        help="singlestrip; or semisam-o1: prototypes, then three rounds from new networks "
        "(default: singlestrip)",
    )  # fmt: skip
    training.add_argument(
        "--any-orientation", action="store_true",
        help="heads in any position, such as fetuses and animals: networks see all rotations, "
        "registration seeks the right one; all heads are taken to be of the label's size",
    )  # fmt: skip
    training.add_argument(
        "--rounds", type=int, choices=range(10), metavar="N",
        help=f"rounds of self-training; 0 = SL-1 alone (default: {QUICK.rounds})",
    )  # fmt: skip
    training.add_argument(
        "--pseudo-labels", choices=PSEUDO_LABELS, default=None,
        help="first masks of the unlabelled scans: by the network, as in the paper; by "
        "registering the labelled scan; by both (consensus); by prototypes of the label in the "
        f"features of an encoder; or by all of these (default: {QUICK.pseudo_labels})",
    )  # fmt: skip
    training.add_argument(
        "--encoder", type=Path, metavar="FILE",
        help="the network whose features prototypes use: weights of this app or of SAM-Med3D "
        "(vit_b_ori), or TorchScript (default: the one that has seen phantoms)",
    )  # fmt: skip
    training.add_argument(
        "--init", choices=INITS, default=None,
        help="weights with which the first training begins: random ones, or those of the network "
        "that has seen phantoms (default: phantom with quick, else random)",
    )  # fmt: skip
    training.add_argument(
        "--top-k", type=_positive_int, metavar="K",
        help="pseudo-labelled scans kept in each round, the best first "
        "(default: half of them, ten at least; the paper: 10)",
    )  # fmt: skip
    training.add_argument(
        "--ratings", type=Path, metavar="FILE",
        help="ratings exported from group.html: rejected scans are never used for self-training, "
        "accepted ones always",
    )  # fmt: skip
    training.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE",
        help="change settings of the method, for experiments: steps=400 (of the first training; "
        "the others keep their proportion), voxel_size=4, synthesis.real_fraction=0 ... "
        "All are in model.json, under method",
    )  # fmt: skip
    training.add_argument(
        "--random-seed", type=_seed, default=0, metavar="N", help="0 or more (default: 0)"
    )
    training.add_argument("--sloppy", action="store_true", help=argparse.SUPPRESS)

    masking = parser.add_argument_group("masking (participant)")
    masking.add_argument(
        "--model", type=_model, metavar="DIR",
        help="code/singlestrip folder of an earlier group run, or the word phantom: drafts of "
        "masks by a network that needs no label (default: that of OUTPUT_DIR)",
    )  # fmt: skip
    masking.add_argument(
        "--overwrite", action="store_true",
        help="make masks anew that are there by the same model from the same scan "
        "(default: skip such scans)",
    )  # fmt: skip
    masking.add_argument(
        "--output", nargs="+", choices=OUTPUTS, default=[], metavar="WHAT",
        help="also write: brain = anatomical scans, zero outside the mask; "
        "probseg = brain probability, distance = signed distance to the mask's border in mm",
    )  # fmt: skip
    masking.add_argument(
        "--border-mm", type=_border, metavar="MM",
        help="also write the mask grown by so many mm, or shrunk if negative",
    )  # fmt: skip
    masking.add_argument(
        "--qc-threshold", type=_fraction, metavar="DICE",
        help="name at the end the masks whose expected Dice is lower (default: none)",
    )  # fmt: skip
    masking.add_argument(
        "--fmriprep-masks", type=Path, metavar="DIR",
        help="also write masks of T1w scans to this derivative dataset, "
        "for fmriprep --derivatives singlestrip=DIR: one for each subject with one T1w",
    )  # fmt: skip
    masking.add_argument(
        "--fmriprep-sessionwise", action="store_true",
        help="one for each session with one T1w instead, "
        "for fmriprep --subject-anatomical-reference sessionwise",
    )  # fmt: skip

    how = parser.add_argument_group("how to run")
    how.add_argument(
        "--device", default="auto",
        help="auto, cpu, cuda or cuda:N (default: a GPU if there is one)",
    )  # fmt: skip
    how.add_argument(
        "--nprocs", "--nthreads", "--n-cpus", type=_positive_int, metavar="N",
        help="CPUs to use in all (default: all). With more than one, participant reads the next "
        "scan and writes the last one while this one is computed",
    )  # fmt: skip
    how.add_argument(
        "--omp-nthreads", type=_positive_int, metavar="N",
        help="CPU threads of the computing itself (default: --nprocs)",
    )  # fmt: skip
    how.add_argument(
        "--low-mem", action="store_true",
        help="participant: the least memory, one scan at a time and the network in thin slabs; "
        "the same masks, more slowly",
    )  # fmt: skip
    how.add_argument(
        "-w", "--work-dir", type=Path, metavar="DIR",
        help="for what an unfinished training needs to go on "
        "(default: OUTPUT_DIR/code/singlestrip/work)",
    )  # fmt: skip
    how.add_argument(
        "--no-propagation", action="store_true",
        help="participant: masks of the network alone; group: keep no copy of the labelled scan",
    )  # fmt: skip
    how.add_argument(
        "--stop-on-first-crash", action="store_true",
        help="stop at the first scan that fails (default: do all others)",
    )  # fmt: skip
    how.add_argument(
        "--config-file", type=Path, metavar="FILE",
        help="take the options from OUTPUT_DIR/logs/RUN_ID/config.json of an earlier run; "
        "those given beside it win",
    )  # fmt: skip
    how.add_argument(
        "--reports-only", action="store_true",
        help="train nothing, make no mask: draw what is on disk, write the pages and the methods "
        "text again",
    )  # fmt: skip
    how.add_argument("-v", "--verbose", action="count", default=0, help="log more")
    return parser
