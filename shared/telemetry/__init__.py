"""Telemetry of calls for operators: a log line for each call, and optionally spans and metrics."""
