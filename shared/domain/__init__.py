"""Values and rules of conversations, calls and costs. Pure: no I/O, SDK, HTTP or storage limits."""
