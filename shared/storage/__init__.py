"""Sessions, the ledger and daily figures in Azure Table Storage."""
