"""HTTP: requests to values, values and errors to responses. One module per group of routes."""
