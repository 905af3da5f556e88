"""OpenAI's Responses and Conversations: their routes, and the wire format in and out."""
