"""HTTP: requests to values, values and errors to responses. One module a group of routes."""
