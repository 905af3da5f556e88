"""Sending email: by Azure Communication Services, by SMTP, or into a folder."""
