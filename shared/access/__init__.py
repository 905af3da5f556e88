"""The app's identity in Azure, and the authentication of callers."""
