"""Checks of the live energy model and of the windows that it learns from, on the twin in virtual time."""
