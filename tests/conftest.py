"""Generated heads and a model trained on them, once for all tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from builders import listing

from singlestrip_bids import cli
from singlestrip_bids.demo.dataset import write_dataset

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))  # bytes are compared: no other count


@pytest.fixture(scope="session")
def heads(tmp_path_factory):
    root = tmp_path_factory.mktemp("heads") / "bids"
    return write_dataset(root, subjects=4, spacing_scale=2.5)


@pytest.fixture
def bids(heads, tmp_path):
    """A dataset that a test may change."""
    return Path(shutil.copytree(heads, tmp_path / "bids"))


@pytest.fixture(scope="session")
def untouched(heads):
    """What lay in the dataset before the app ran."""
    return listing(heads)


@pytest.fixture(scope="session")
def trained(heads, untouched, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "out"
    assert cli.main([str(heads), str(out), "group", "participant", "--sloppy"]) == 0
    return out
