"""Identities: the app's own towards Azure, and the callers' towards the app."""
