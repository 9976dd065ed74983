"""Who used what: the ledger."""
