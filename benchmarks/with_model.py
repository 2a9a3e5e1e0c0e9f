"""Mask one scan with a model of this app: ``python -m benchmarks.with_model MODEL SCAN MASK``."""

from __future__ import annotations

import sys

import singlestrip_bids


def main(words: list[str]) -> int:
    """Write the mask."""
    folder, scan, mask = words
    brain = singlestrip_bids.load_model(folder, "cpu").mask(scan)
    brain.mask.to_filename(mask)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
