"""Daily figures and the email about them."""
