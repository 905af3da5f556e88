"""Sending email: through Azure Communication Services, over SMTP, or into a folder."""
