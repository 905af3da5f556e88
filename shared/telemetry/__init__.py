"""How each call went, for operators: a log line, and optionally spans and metrics."""
