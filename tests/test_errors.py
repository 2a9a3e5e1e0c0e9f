from __future__ import annotations

import pytest

from singlestrip_bids import errors

CODES = {
    "ScanFailed": 1,
    "InvalidDataset": 16,
    "NothingSelected": 18,
    "Usage": 64,
    "BadData": 65,
    "NoInput": 66,
    "CannotCreate": 73,
    "IOFailed": 74,
    "TemporaryFailure": 75,
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_exit_code(name, code):
    error = getattr(errors, name)("sub-01 is missing")
    assert isinstance(error, errors.SingleStripError)
    assert error.exit_code == code
    assert str(error) == "sub-01 is missing"
    assert type(error).__doc__


def test_every_error_is_listed():
    assert {cls.__name__ for cls in errors.SingleStripError.__subclasses__()} == set(CODES)
