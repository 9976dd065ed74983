"""Parrot's HTTP API: sessions, semantic variables and calls that run when somebody asks for what they write."""
