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

Plain functions, and few of them: a call of one costs a share of the microseconds that a prompt may take.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from scheduler.workflow.inference import quotes
from scheduler.workflow.inference.hashing import digest_of
from scheduler.workflow.inference.memory import QUOTE_BYTES
from scheduler.workflow.inference.placement import LIKELY, POSSIBLE, PREFIX_BYTES, SURE, WEAK

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from scheduler.workflow.inference.memory import Call, KeyMemory
    from scheduler.workflow.inference.placement import Counters
    from scheduler.workflow.inference.quotes import Quote
    from scheduler.workflow.inference.reading import Prompt
    from scheduler.workflow.inference.sampling import Sieve

    Turn = tuple[Call, float]
    """The call that is gone on from, and how sure that is."""
    Found = tuple[str | None, float, tuple[tuple[str, float], ...], int]
    """The turn, its confidence, whose outputs are quoted, and how many of the first messages are an earlier list."""


def place(call: Call, prompt: Prompt, sieve: Sieve, counters: Counters) -> Found:
    """Where a new call belongs; it and those that it goes on from are marked."""
    key = call.key
    turn, new = (None, 0) if prompt.plain or not key.lists else _extended(prompt, key, counters)
    messages, digests = key.messages, prompt.digests
    quoted: list[tuple[Quote, ...]] = []
    flat: list[Quote] = []
    for number in range(new, len(digests)):
        first = messages.get(digests[number])
        if first is None:
            found = _searched(number, call, prompt, sieve, counters)
        else:  # searched when it was seen first, since what is said later cannot be in it
            found = () if first.quotes is None else first.quotes.get(digests[number], ())
        quoted.append(found)
        if found:
            flat += found
    data: dict[Call, float] = {}
    if flat:
        if prompt.bare:
            turn, flat = _continued(flat, turn, prompt, counters)
        elif "assistant" in prompt.roles:
            turn, answered = _answered_last(quoted, new, turn, prompt, counters)
            if answered:
                flat = [quote for of_message in quoted[answered:] for quote in of_message]
        data = _producers(flat, turn, counters)
    if turn is None:
        if not data:
            return None, 0.0, (), new
        origins = list(data)
    else:
        origins = [turn[0], *data]
        counters.turns += 1
    call.flow = flow = origins[0].flow
    for origin in origins:
        origin.flow = flow
        origin.used = origin.used or call.since
    counters.data_edges += len(data)
    edges = tuple([(origin.id, confidence) for origin, confidence in data.items()])
    return (None, 0.0, edges, new) if turn is None else (turn[0].id, turn[1], edges, new)


# --- turns ---


def _extended(prompt: Prompt, key: KeyMemory, counters: Counters) -> tuple[Turn | None, int]:
    """The longest earlier list that this one goes on from, and the number of the first new message."""
    lists, chains = key.lists, prompt.chains
    for count in range(len(chains) - 1, prompt.instructions, -1):
        same = lists.get(chains[count - 1])
        if same is None or not (candidates := [call for call in same if call.answered]):
            continue
        digest = prompt.digests[count]
        first, text = key.messages.get(digest), key.texts.get(digest)
        if text is not None and (said := [call for call in candidates if text in call.texts]):
            if first is None or first.since > text.since:
                return _one_of(said, (), counters), count + 1
            counters.accidental += 1  # the example that all have in their prompt was once asked for real
        elif prompt.roles[count] != "assistant":
            return ((candidates[0], WEAK) if len(candidates) == 1 else None), count
        elif first is None or first.since > candidates[-1].answered:  # the answer, edited
            return ((candidates[0], POSSIBLE) if len(candidates) == 1 else None), count + 1
    return None, 0


def _answered_last(
    quoted: list[tuple[Quote, ...]], new: int, turn: Turn | None, prompt: Prompt, counters: Counters
) -> tuple[Turn | None, int]:
    """An answer among the new messages: what stands before it is its call's history. How many of them are that?"""
    for number in range(len(quoted) - 1, -1, -1):
        if prompt.roles[new + number] == "assistant":
            whole = len(prompt.data[new + number])
            for quote in quoted[number]:
                if quote.end - quote.start == whole and not quote.escaped:
                    if (one := _one_of(quote.text.said, (), counters)) is not None:
                        turn = one[0], min(one[1], LIKELY)
                    return turn, number + 1
    return turn, 0


def _continued(
    quoted: list[Quote], turn: Turn | None, prompt: Prompt, counters: Counters
) -> tuple[Turn | None, list[Quote]]:
    """The call whose prompt and output this text begins with, and what is quoted behind."""
    data = prompt.data[0]
    for number in range(len(quoted) - 1, -1, -1):
        quote = quoted[number]
        before = [] if quote.escaped else [call for call in quote.text.said if _precedes(call, quote, data)]
        if before:
            return _one_of(before, (), counters), [later for later in quoted if later.start >= quote.end]
    return turn, quoted


def _precedes(call: Call, quote: Quote, data: bytes) -> bool:
    """Was the call's prompt what stands before its output here?"""
    if call.prompt is None:
        return False
    length, digest = call.prompt
    return length <= quote.start and not data[length : quote.start].strip() and digest_of(data[:length]) == digest


# --- data ---


def _searched(number: int, call: Call, prompt: Prompt, sieve: Sieve, counters: Counters) -> tuple[Quote, ...]:
    """The outputs in a message that is seen for the first time."""
    found = quotes.find(prompt.data[number], call.key.windows, sieve, counters)
    if not found:
        return ()
    key, kept = call.key, tuple(found)
    for quote in found:
        if not quote.escaped and _was_there(number, quote, key, prompt):
            kept = tuple([one for one in kept if one is not quote])
            counters.accidental += 1
    if kept:
        if call.quotes is None:
            call.quotes = {}
        call.quotes[prompt.digests[number]] = kept
        call.bytes += QUOTE_BYTES * (1 + len(kept))
    return kept


def _was_there(number: int, quote: Quote, key: KeyMemory, prompt: Prompt) -> bool:
    """Is it in a beginning that was in use before it was said?"""
    prefix = prompt.prefix
    shortest = bisect_left(PREFIX_BYTES, quote.end + (prompt.ends[number - 1] if number else 0))
    if shortest >= len(prefix):
        return False
    first = key.prefixes.get(prefix[shortest])
    return first is not None and first.since < quote.text.since


def _producers(found: list[Quote], turn: Turn | None, counters: Counters) -> dict[Call, float]:
    """Whose outputs these are, in their order."""
    if turn is None and len(found) == 1 and len(said := found[0].text.said) == 1:
        return {said[0]: SURE}
    texts = dict.fromkeys([quote.text for quote in found])
    those = [text.said for text in texts if turn is None or turn[0] not in text.said]
    flows = {said[0].flow for said in those if len(said) == 1}
    if turn is not None:
        flows.add(turn[0].flow)
    producers: dict[Call, float] = {}
    for said in those:
        if said and (one := _one_of(said, flows, counters)) is not None:
            producers[one[0]] = max(one[1], producers.get(one[0], 0.0))
    return producers


def _one_of(said: Sequence[Call], flows: Collection[int], counters: Counters) -> Turn | None:
    """Who of those that said the same is meant, and how sure is that? `flows`: those that are in this workflow."""
    if len(said) == 1:
        return said[0], SURE
    near = [call for call in said if call.flow in flows] or said
    newest = max(near, key=_answered)
    if all(call.flow == newest.flow for call in near):
        return newest, LIKELY
    others = [call for call in said if call is not newest]
    if near is said and all(0 < call.used < newest.answered for call in others):
        return newest, POSSIBLE
    counters.ambiguous += 1
    return None


def _answered(call: Call) -> int:
    return call.answered
