"""Email into a folder."""

from pathlib import Path

import pytest

from shared.mail.email import Email, MailFailed
from tests.mail.conftest import assert_is, chosen


async def test_an_email_is_written_to_a_file_that_opens(tmp_path: Path, email: Email) -> None:
    folder = tmp_path / "not" / "yet"
    outbox = chosen(OUTBOX_DIR=str(folder))
    assert not await outbox.was_sent(email.operation_id)
    await outbox.send(email)
    assert await outbox.was_sent(email.operation_id)
    assert [file.name for file in folder.iterdir()] == [f"{email.operation_id}.eml"]
    assert_is((folder / f"{email.operation_id}.eml").read_bytes(), email)


async def test_a_folder_that_can_not_be_written_is_a_failure(tmp_path: Path, email: Email) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MailFailed, match="OUTBOX_DIR"):
        await chosen(OUTBOX_DIR=str(tmp_path / "file")).send(email)
