"""Values and rules of conversations, calls and costs. Pure: no I/O, no SDK, no HTTP, no storage limits."""
