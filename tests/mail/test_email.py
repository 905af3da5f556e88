"""An email in the form that SMTP and mail programs use."""

from shared.mail.email import Email, mime
from tests.mail.conftest import assert_is


def test_an_email_is_ascii_with_short_lines_and_reads_as_it_was_written(email: Email) -> None:
    assert_is(mime(email).as_bytes(), email)
