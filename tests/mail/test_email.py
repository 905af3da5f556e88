"""The MIME message of an email."""

from shared.mail.email import Email, mime
from tests.mail.conftest import assert_mime_equals


def test_mime_is_ascii_with_short_lines_and_decodes_to_the_same_email(email: Email) -> None:
    assert_mime_equals(mime(email).as_bytes(), email)
