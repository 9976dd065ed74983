"""The table `[parrot]` of the configuration."""

from __future__ import annotations

from proxy.config_types import Count, Name, Seconds, Table


class ParrotConfig(Table):
    """Sessions in Parrot's API."""

    session_seconds: Seconds = 600.0
    """a session lives after its last use; then 410 `session_expired`"""
    sessions: Count = 4_096
    """open at once; over it 503 `sessions_full`"""
    sessions_per_key: Count = 1_024
    """of one API key; over it 429 `key_sessions`"""
    session_variables: Count = 65_536
    """of one session; over it 413 `session_variables`"""
    session_calls: Count = 16_384
    """of one session, each output of a template counted as one; over it 413 `session_calls`"""
    session_bytes: Count = 67_108_864
    """of templates and contents of one session; over it 413 `session_bytes`, and calls whose output is too much fail"""
    held_bytes: Count = 536_870_912
    """of templates and contents of all sessions; over it 503 `parrot_full`"""
    running_calls: Count = 256
    """of one session at once, held or at an engine; the others wait for their turn"""
    turn_seconds: Seconds = 3_600.0
    """a call is tried again while the gateway or its key is full; then it fails"""
    expired_sessions: Count = 10_000
    """remembered, to be answered with 410; those that expired first are forgotten and get 404"""
    default_model: Name = ""
    """of calls that name none; empty = the first that an engine serves"""
    completion_models: tuple[Name, ...] = ()
    """models that get the text as a completion at once; others first as a chat, until their engine has no template"""
