"""The model service: endpoints and failover, wire formats, and the meaning of its errors."""
