"""Errors a user can act on, each with the exit code of the BIDS Apps draft (BEP027).

Raise the narrowest class. The message names the file, the fact and the remedy; the
command line prints it without a traceback and exits with `exit_code`.
"""


class SingleStripError(Exception):
    """Base of every error shown to the user as a message instead of a traceback."""

    exit_code = 1


class ScanFailed(SingleStripError):
    """At least one scan failed; the others were processed."""

    exit_code = 1


class InvalidDataset(SingleStripError):
    """The input folder is not a BIDS dataset."""

    exit_code = 16


class NothingSelected(SingleStripError):
    """The filters (participants, sessions, modalities) leave no scan."""

    exit_code = 18


class Usage(SingleStripError):
    """The command line contradicts itself or does not say enough to decide."""

    exit_code = 64


class BadData(SingleStripError):
    """A file is there but cannot be used: unreadable, or on an unexpected grid."""

    exit_code = 65


class NoInput(SingleStripError):
    """A needed input is not there: the dataset, the label or the model."""

    exit_code = 66


class CannotCreate(SingleStripError):
    """An output folder or file cannot be created."""

    exit_code = 73


class IOFailed(SingleStripError):
    """Reading or writing broke off: disk full, quota, network."""

    exit_code = 74


class TemporaryFailure(SingleStripError):
    """Stopped for a reason that may pass: a signal, or no GPU memory left; run it again."""

    exit_code = 75
