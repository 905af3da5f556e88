"""The model service: endpoints and failover, its wire formats, and what its errors mean."""
