"""One turn of a conversation, from the request to the settled cost, and its recovery if the process dies.

Independent of any service: `ports` declares what it needs from storage, the model and telemetry.
"""
