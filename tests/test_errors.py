from __future__ import annotations

from pathlib import Path

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


class TestLogFailure:
    def test_a_known_error_is_its_message(self, caplog):
        note = errors.log_failure(Path("sub-01.nii.gz"), errors.BadData("sub-01.nii.gz: cut"))
        assert note == "sub-01.nii.gz: cut"
        assert "Traceback" not in caplog.text

    def test_any_other_names_the_scan_and_shows_where(self, caplog):
        try:
            [].pop()
        except IndexError as error:
            note = errors.log_failure(Path("sub-01.nii.gz"), error)
        assert note == "sub-01.nii.gz: IndexError('pop from empty list')"
        assert "Traceback" in caplog.text
        assert "[].pop()" in caplog.text
