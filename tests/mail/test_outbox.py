"""Email written to a folder."""

from pathlib import Path

import pytest

from shared.mail.email import Email, MailFailed
from tests.mail.conftest import assert_mime_equals, transport_for


async def test_outbox_writes_each_email_to_an_eml_file(tmp_path: Path, email: Email) -> None:
    folder = tmp_path / "not" / "yet"
    outbox = transport_for(OUTBOX_DIR=str(folder))
    assert not await outbox.was_sent(email.operation_id)
    await outbox.send(email)
    assert await outbox.was_sent(email.operation_id)
    assert [file.name for file in folder.iterdir()] == [f"{email.operation_id}.eml"]
    assert_mime_equals((folder / f"{email.operation_id}.eml").read_bytes(), email)


async def test_outbox_raises_mail_failed_if_the_folder_is_not_writable(tmp_path: Path, email: Email) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MailFailed, match="OUTBOX_DIR"):
        await transport_for(OUTBOX_DIR=str(tmp_path / "file")).send(email)
