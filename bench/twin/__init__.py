"""Is the twin right? Measured rows are played again on it and compared; calibrations are fitted to them."""
