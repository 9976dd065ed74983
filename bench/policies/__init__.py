"""Policies side by side on the twin."""
