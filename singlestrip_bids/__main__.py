"""``python -m singlestrip_bids``, and so ``torchrun -m singlestrip_bids``."""

from .cli import entry

if __name__ == "__main__":
    entry()
