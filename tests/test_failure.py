"""The one text a platform shows when a job failed."""

from pathlib import Path

import pytest

from alexmri.contract.failure import failure_text, report_failure
from alexmri.errors import UserError


def test_a_users_mistake_is_told_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = report_failure(UserError("epochs is 0"), tmp_path / "output" / "failure")
    assert code == 2
    assert (tmp_path / "output" / "failure").read_text(encoding="utf-8") == "epochs is 0"
    assert capsys.readouterr().err == "error: epochs is 0\n"


def test_the_traceback_of_an_unexpected_error_goes_to_the_log_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        {}["key"]  # noqa: B018 - raises
    except KeyError as error:
        code = report_failure(error, tmp_path / "failure")
    assert code == 1
    written = (tmp_path / "failure").read_text(encoding="utf-8")
    assert written == "internal error: KeyError: 'key' (the log has the traceback)"
    assert "Traceback" in capsys.readouterr().err


def test_the_text_is_one_line_of_1024_bytes_of_valid_utf8() -> None:
    text = failure_text(UserError("ü\udcff\n" + "ß" * 3000))
    assert 1020 < len(text.encode()) <= 1024
    assert text.startswith("ü? ß")
    text.encode("utf-8")


def test_a_file_that_cannot_be_written_does_not_hide_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "output").write_text("a file where the folder should be", encoding="utf-8")
    assert report_failure(UserError("the cause"), tmp_path / "output" / "failure") == 2
    assert "error: the cause\nwarning: " in capsys.readouterr().err
