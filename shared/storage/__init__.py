"""Conversations, the ledger and days in Azure Table Storage."""
