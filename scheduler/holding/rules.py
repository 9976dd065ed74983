"""By which numbers does a room decide?"""

from __future__ import annotations

from typing import NamedTuple


class Rules(NamedTuple):
    """How a room decides."""

    cover_share: float = 0.6
    """A call joins what runs if so much of its own time is covered by steps that are made anyway."""
    pad_seconds: float = 0.02
    """A workflow begins so much earlier than must be: events and the network take their time."""
    burst: float = 2.0
    """So many standard deviations more than usual may come while a workflow runs: it begins so much earlier…"""
    join_burst: float = 1.0
    """…of which joining leaves so much."""
    join_margin: float = 0.06
    """Joining may use up so much of the margin that work was begun with."""
    full_batch: float = 256.0
    """Sequences beyond which company saves nothing worth waiting for."""
    start_full: float = 2.0
    """Times that many held calls begin without anyone being urgent."""
    in_flight: int = 256
    company_least: float = 0.05
    """With fewer workflows to be expected before it must begin, a lone one is not held."""
    interactive_stretch: float = 0.01
    """Company may lengthen what is not to be held by so much."""
    people_seconds: float = 60.0
    """So long after one that people wait for, another is expected: then the steps are not filled…"""
    people_prefill_seconds: float = 0.05
    """…with more prompts than take so long,…"""
    people_stretch: float = 0.05
    """…nor with sequences that lengthen steps by more than this."""
    between_seconds: float = 0.25
    """Within this a client makes an urgent workflow's next call: till then, what it was promised counts."""
    again_seconds: float = 0.03
    """Where nothing came, went or ended, it is not decided anew sooner, except for who can wait no longer."""
    spread_from: float = 0.15
    """Of several engines, one is given more until company lengthens its steps by so much."""
    shortest_first: float = 10.0
    """Under overload, a second of work that is left counts as so many seconds of waiting…"""
    ageing_seconds: float = 300.0
    """…but as no more than this: so nobody starves."""
