"""How far a run has come: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

from . import processes

LOG = logging.getLogger("singlestrip_bids")


class Progress:
    """A bar on a terminal; otherwise a log line every ``interval`` seconds.

    Parameters
    ----------
    label : str
        What is going on.
    total : int
        Number of steps.
    start : int
        Steps done before (a resumed training).
    """

    def __init__(self, label: str, total: int, start: int = 0, interval: float = 15.0) -> None:
        self.label, self.total, self.done, self.first = label, total, start, start
        self.interval = interval
        self.began = self.last = time.monotonic()
        self.bar = (
            tqdm(total=total, initial=start, desc=label, file=sys.stderr)
            if sys.stderr.isatty() and not processes.ranks()[0]
            else None
        )

    def step(self, note: str = "", steps: int = 1) -> None:
        """Count steps; ``note`` is shown beside the count (a loss, a name)."""
        self.done += steps
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(steps)
            return
        now = time.monotonic()
        if now - self.last >= self.interval or self.done == self.total:
            self.last = now
            rate = (self.done - self.first) / max(now - self.began, 1e-9)
            minutes, seconds = divmod(round((self.total - self.done) / rate), 60)
            left = f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
            LOG.info(
                "%s: %d/%d %s (%.2f/s, %s left)",
                self.label, self.done, self.total, note, rate, left,
            )  # fmt: skip

    def close(self) -> None:
        """End the bar."""
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
