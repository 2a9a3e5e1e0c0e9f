"""Painted heads whose brain masks are known: a dataset to try the app on, and the whole way.

``python -m singlestrip_bids.demo OUT`` makes the dataset, trains, masks and compares.
"""

from .dataset import write_dataset

__all__ = ["write_dataset"]
