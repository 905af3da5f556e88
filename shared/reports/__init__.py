"""Daily figures and the summary email."""
