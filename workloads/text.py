"""What does a prompt say? Prose drawn from a seed: plain English in the manner of an old tale, nobody's property."""

from __future__ import annotations

import random
from functools import lru_cache

WORDS_PER_TOKEN = 0.85
"""About what tokenizers of today make of such prose; what a prompt really came to is in its answer's usage."""

SALT_GROUPS = 4

_WHO = (
    "the old man",
    "a young woman",
    "his mother",
    "the child",
    "a friend of the family",
    "the teacher",
    "her father",
    "the doctor of the city",
    "a man from the sea",
    "the people of the street",
    "someone at the door",
    "the last of the company",
)
_DID = (
    "walked down to",
    "looked for",
    "remembered",
    "found",
    "talked of",
    "came back to",
    "left",
    "kept",
    "built",
    "told the story of",
    "stood before",
    "thought of",
    "went around",
    "asked about",
)
_HOW = ("small", "great", "old", "quiet", "dark", "long", "strange", "open", "white", "low", "little", "good")
_WHAT = (
    "house",
    "river",
    "road",
    "field",
    "tree",
    "stone",
    "fire",
    "letter",
    "book",
    "table",
    "door",
    "window",
    "wall",
)
_WHERE = (
    "by the water",
    "at the end of the road",
    "in the light of the fire",
    "under the trees",
    "near the market",
    "on the other side of the river",
    "across the fields",
    "high above the sea",
    "in the next room",
)
_WHEN = (
    "In the morning",
    "Many years before",
    "That summer",
    "After the rain",
    "Toward evening",
    "On the second day",
    "When the wind turned",
    "Late in the winter",
    "Before the night came",
    "For a moment",
)
_LINK = ("and", "but", "while", "because", "until", "so")
_SENTENCES_PER_PARAGRAPH = (3, 7)


@lru_cache(maxsize=256)
def prose(seed: str, tokens: int, words_per_token: float = WORDS_PER_TOKEN) -> str:
    """About so many tokens of prose. The same seed tells the same tale: a shorter one is the beginning of a longer."""
    rng = random.Random(seed)
    wanted = max(1, round(tokens * words_per_token))
    paragraphs: list[str] = []
    while wanted > 0:
        words = " ".join(_sentence(rng) for _ in range(rng.randint(*_SENTENCES_PER_PARAGRAPH))).split(" ")[:wanted]
        wanted -= len(words)
        paragraphs.append(" ".join(words))
    return "\n\n".join(paragraphs)


def salt_of(seed: str) -> str:
    """A number in groups of three digits: one token a group to some tokenizers, three to others, but whatever the seed,
    they come to as many."""
    rng = random.Random(seed)
    return " ".join(["Number", *(f"{rng.randrange(100, 1000)}" for _ in range(SALT_GROUPS))]) + "."


def _sentence(rng: random.Random) -> str:
    pick = rng.choice
    clause = f"{pick(_WHO)} {pick(_DID)} the {pick(_HOW)} {pick(_WHAT)} {pick(_WHERE)}"
    form = rng.random()
    if form < 0.35:
        return f"{clause[0].upper()}{clause[1:]}."
    if form < 0.7:
        return f"{pick(_WHEN)}, {clause}."
    return f"{clause[0].upper()}{clause[1:]}, {pick(_LINK)} {pick(_WHO)} {pick(_DID)} the {pick(_WHAT)}."
