"""Energy at the door: the ledger on disk, what is read of it, and how it is counted."""
