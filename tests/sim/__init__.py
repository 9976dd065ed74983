"""The scheduler under seeded traffic in virtual time."""
