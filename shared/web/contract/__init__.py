"""What requests and responses look like: of api/* completely, of openai/* as far as this app reads it.

Validation and the published OpenAPI document both come from these models.
"""
