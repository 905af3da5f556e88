"""One turn of a conversation, from the request to the settled cost, and what becomes of it if its process dies.

Knows no service: `ports` names what it needs from storage, the model and telemetry.
"""
