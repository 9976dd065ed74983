"""Which earlier calls does a prompt go on from, and whose outputs does it quote?

The rules, precision first:
- *Turn*: the new list of messages begins with the whole list of an answered call and goes on with its answer. Lists
  of instructions alone begin nothing. Equal lists are retries or branches, never turns of each other; all that extend
  the same answer are turns of it. An answer behind a history that was edited is a turn as well: the last message of
  an assistant that is, whole, a call's output. A bare text is a turn of the call whose prompt and output it begins
  with.
- *Data*: an output stands in a message that is new since that turn. The longest counts, not what it quotes itself.
- What was in use before it was said for the first time is an accident: an example in a prompt, a text given to all.
- What several calls have said is the one's that is in this workflow already; else the last one's if the others had
  been used before it was said, as in runs one after the other; else nobody's.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from scheduler.workflow.inference import quotes
from scheduler.workflow.inference.hashing import digest_of
from scheduler.workflow.inference.memory import QUOTE_BYTES
from scheduler.workflow.inference.placement import LIKELY, POSSIBLE, PREFIX_BYTES, SURE, WEAK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.workflow.inference.memory import Call
    from scheduler.workflow.inference.placement import Counters
    from scheduler.workflow.inference.quotes import Quote
    from scheduler.workflow.inference.reading import Prompt
    from scheduler.workflow.inference.sampling import Sieve


class Place:
    """The search for one call's place: made, asked once, thrown away."""

    __slots__ = ("_call", "_counters", "_flows", "_key", "_prompt", "_sieve", "_turn")

    def __init__(self, call: Call, prompt: Prompt, sieve: Sieve, counters: Counters) -> None:
        self._call, self._key = call, call.key
        self._prompt, self._sieve, self._counters = prompt, sieve, counters
        self._turn: tuple[Call, float] | None = None
        self._flows: set[int] = set()

    def find(self) -> tuple[str | None, float, tuple[tuple[str, float], ...]]:
        """The turn, its confidence, and whose outputs are quoted; the call and those it goes on from are marked."""
        new = self._extended()
        quoted = [self._quotes(number) for number in range(new, len(self._prompt.data))]
        data: dict[Call, float] = {}
        if any(quoted):
            quoted = [self._continued(quoted[0])] if self._prompt.bare else quoted[self._answered_last(new, quoted) :]
            data = self._producers([quote for of_message in quoted for quote in of_message])
        turn, call = self._turn, self._call
        origins = list(data) if turn is None else [turn[0], *data]
        if origins:
            call.flow = origins[0].flow
        for origin in origins:
            origin.flow = call.flow
            origin.used = origin.used or call.since
        edges = tuple([(origin.id, confidence) for origin, confidence in data.items()])
        self._counters.data_edges += len(edges)
        if turn is None:
            return None, 0.0, edges
        self._counters.turns += 1
        return turn[0].id, turn[1], edges

    # --- turns ---

    def _extended(self) -> int:
        """Finds the longest earlier list that this one goes on from; returns the number of the first new message."""
        prompt, key = self._prompt, self._key
        if not key.lists or prompt.plain:
            return 0
        for count in range(len(prompt.data) - 1, prompt.instructions, -1):
            same = key.lists.get(prompt.chains[count - 1])
            if same is None or not (candidates := [call for call in same if call.answered]):
                continue
            digest = prompt.digests[count]
            first, text = key.messages.get(digest), key.texts.get(digest)
            if text is not None and (said := [call for call in candidates if text in call.texts]):
                if first is None or first.since > text.since:
                    self._turn = self._one_of(said)
                    return count + 1
                self._counters.accidental += 1  # the example that all have in their prompt was once asked for real
            elif prompt.roles[count] != "assistant":
                if len(candidates) == 1:
                    self._turn = candidates[0], WEAK
                return count
            elif first is None or first.since > candidates[-1].answered:  # the answer, edited
                if len(candidates) == 1:
                    self._turn = candidates[0], POSSIBLE
                return count + 1
        return 0

    def _answered_last(self, new: int, quoted: list[tuple[Quote, ...]]) -> int:
        """An answer among the new messages: what stands before it is its call's history. How many of them are that?"""
        prompt = self._prompt
        for number in range(len(quoted) - 1, -1, -1):
            if prompt.roles[new + number] == "assistant":
                whole = len(prompt.data[new + number])
                for quote in quoted[number]:
                    if quote.end - quote.start == whole and not quote.escaped:
                        if (one := self._one_of(quote.text.said)) is not None:
                            self._turn = one[0], min(one[1], LIKELY)
                        return number + 1
        return 0

    def _continued(self, quoted: tuple[Quote, ...]) -> tuple[Quote, ...]:
        """Finds the call whose prompt and output this text begins with; returns what is quoted behind."""
        data = self._prompt.data[0]
        for number in range(len(quoted) - 1, -1, -1):
            quote = quoted[number]
            before = [] if quote.escaped else [call for call in quote.text.said if self._precedes(call, quote, data)]
            if before:
                self._turn = self._one_of(before)
                return tuple([later for later in quoted if later.start >= quote.end])
        return quoted

    @staticmethod
    def _precedes(call: Call, quote: Quote, data: bytes) -> bool:
        """Was the call's prompt what stands before its output here?"""
        if call.prompt is None:
            return False
        length, digest = call.prompt
        return length <= quote.start and not data[length : quote.start].strip() and digest_of(data[:length]) == digest

    # --- data ---

    def _quotes(self, number: int) -> tuple[Quote, ...]:
        """The outputs in this message; searched for when it is seen first, since what is said later cannot be in it."""
        key, prompt = self._key, self._prompt
        digest = prompt.digests[number]
        if (first := key.messages.get(digest)) is not None:
            return first.quotes.get(digest, ()) if first.quotes is not None else ()
        found = quotes.find(prompt.data[number], key.windows, self._sieve, self._counters)
        if not found:
            return ()
        kept = tuple([quote for quote in found if not self._was_there(number, quote)])
        self._counters.accidental += len(found) - len(kept)
        call = self._call
        if kept:
            if call.quotes is None:
                call.quotes = {}
            call.quotes[digest] = kept
            call.bytes += QUOTE_BYTES * (1 + len(kept))
        return kept

    def _was_there(self, number: int, quote: Quote) -> bool:
        """Is it in a beginning that was in use before it was said?"""
        if quote.escaped:
            return False
        prefix = self._prompt.prefix
        shortest = bisect_left(PREFIX_BYTES, self._prompt.lead_end(number, quote.end))
        if shortest >= len(prefix):
            return False
        first = self._key.prefixes.get(prefix[shortest])
        return first is not None and first.since < quote.text.since

    def _producers(self, found: list[Quote]) -> dict[Call, float]:
        """Whose outputs these are, in their order."""
        turn = self._turn
        if turn is not None:
            self._flows.add(turn[0].flow)
        texts = dict.fromkeys([quote.text for quote in found])
        those = [text.said for text in texts if turn is None or turn[0] not in text.said]
        self._flows.update([said[0].flow for said in those if len(said) == 1])
        producers: dict[Call, float] = {}
        for said in those:
            if said and (one := self._one_of(said)) is not None:
                producers[one[0]] = max(one[1], producers.get(one[0], 0.0))
        return producers

    def _one_of(self, said: Sequence[Call]) -> tuple[Call, float] | None:
        """Who of those that said the same is meant, and how sure is that?"""
        if len(said) == 1:
            return said[0], SURE
        near = [call for call in said if call.flow in self._flows] or said
        newest = max(near, key=_answered)
        if all(call.flow == newest.flow for call in near):
            return newest, LIKELY
        others = [call for call in said if call is not newest]
        if near is said and all(0 < call.used < newest.answered for call in others):
            return newest, POSSIBLE
        self._counters.ambiguous += 1
        return None


def _answered(call: Call) -> int:
    return call.answered
