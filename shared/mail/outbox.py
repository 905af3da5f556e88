"""Writes each email to a folder as an .eml file, which any mail client opens."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from shared.mail.email import Email, MailFailed, mime

LOCAL_SENDER = "chat@localhost"  # if SUMMARY_SENDER is not set


class Outbox:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def send(self, email: Email) -> tuple[str, ...]:
        try:
            await asyncio.to_thread(self._write, replace(email, sender=email.sender or LOCAL_SENDER))
        except OSError as error:
            raise MailFailed(f"Cannot write the email to OUTBOX_DIR: {error}") from error
        return email.recipients

    async def was_sent(self, operation_id: str) -> bool:
        return await asyncio.to_thread(self._file(operation_id).exists)

    def _write(self, email: Email) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._file(email.operation_id)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(mime(email).as_bytes())
        temporary.replace(file)

    def _file(self, operation_id: str) -> Path:
        return self._folder / f"{operation_id}.eml"
