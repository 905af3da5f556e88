"""Models of requests and responses: complete for api/*; for openai/*, the fields that this app reads.

Validation and the OpenAPI document are both derived from these models.
"""
