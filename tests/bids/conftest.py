"""A small dataset of empty scans, with and without sessions."""

from __future__ import annotations

import pytest
from builders import SCANS, make_dataset


@pytest.fixture
def bids(tmp_path):
    return make_dataset(tmp_path / "bids", SCANS)
