"""What is kept of calls, of one key and of all: bounded, counted, oldest out first."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from scheduler.workflow.inference.hashing import digest_of
from scheduler.workflow.inference.sampling import SHORTEST, STEP, Sieve, keys_of, window_hashes

if TYPE_CHECKING:
    from scheduler.workflow.inference.quotes import Quote

OWNERS_MAX = 8
"""Outputs that may share a window, and calls that may share an output or a list of messages; newest kept."""
TEXTS_MAX = 16
"""Texts kept of one call's answer."""
HEAD_BYTES: Final = 16
INDEXED_BYTES_MAX = 256 * 1024
"""A longer output is known as a whole message, and not searched for within others."""

# Bytes that an object costs: measured on CPython 3.11, 64 bits, and rounded up. A slot of a dict is 30 to 60 bytes,
# by how full it is, and an integer of 128 bits 48.
_SLOT = 60
CALL_BYTES = 640
"""A call's record, its id and its places in the tables by age."""
TABLED_BYTES = _SLOT + 64
"""A message, a list or a prefix of a call, by its hash."""
TEXT_BYTES = 420
WINDOWS_BYTES = STEP * (_SLOT + 32 + 8) + 64
QUOTE_BYTES = 200
"""A quote that was found in a message, or the entry that holds a message's."""
KEY_BYTES = 1400
"""A key's tables before anything is in them."""


class Text:
    """An output that one call or several have given, word for word, without the white space around it."""

    __slots__ = ("base", "digest", "head", "keys", "length", "said", "since")

    def __init__(self, data: bytes, digest: bytes, since: int) -> None:
        self.digest = digest
        self.length = len(data)
        self.head = data[:HEAD_BYTES]
        self.since = since
        """When it was said first, as the memory counts its events."""
        self.said: list[Call] = []
        self.base = 0
        self.keys: list[int] = []
        """Of the windows that it is indexed by; none for one too short to be found within others."""

    def occurrences(self, data: bytes, position: int) -> tuple[int, list[int]]:
        """Where in `data` it stands, if the window at `position` is one of those that it is indexed by; and how many
        places were compared in full, more than one in a text that repeats itself."""
        tried, found = 0, []
        last = position - self.base
        if last >= 0:
            end, start = last + HEAD_BYTES, last - STEP if last >= STEP else -1
            while (start := data.find(self.head, start + 1, end)) >= 0:
                tried += 1
                if digest_of(data[start : start + self.length]) == self.digest:
                    found.append(start)
        return tried, found


class Call:
    """A call that was asked, and perhaps answered."""

    __slots__ = (
        "answered",
        "arrived_at",
        "bytes",
        "chain",
        "flow",
        "id",
        "key",
        "messages",
        "prefixes",
        "prompt",
        "quotes",
        "since",
        "texts",
        "used",
    )

    def __init__(self, call_id: str, key: KeyMemory, since: int, arrived_at: float) -> None:
        self.id = call_id
        self.key = key
        self.since = since
        """When it arrived, as the memory counts its events: these are never equal, as times may be."""
        self.arrived_at = arrived_at
        self.answered = 0
        """When, counted likewise; 0 = not yet."""
        self.used = 0
        """When another call went on from it or quoted it for the first time; 0 = not yet."""
        self.flow = since
        """Equal for calls that were found to belong together. A call found later may have another: it is a hint."""
        self.chain: int | None = None
        """Its whole list of messages, if others may extend it."""
        self.prompt: tuple[int, bytes] | None = None
        """Length in bytes and digest of a bare text."""
        self.messages: list[bytes] = []
        self.prefixes: list[int] = []
        """Hashes that it was the first to bring."""
        self.quotes: dict[bytes, tuple[Quote, ...]] | None = None
        """What was found in those messages."""
        self.texts: list[Text] = []
        self.bytes = CALL_BYTES


class KeyMemory:
    """All that one key has said and heard. Nothing in it refers to another key's."""

    __slots__ = ("bytes", "calls", "lists", "messages", "name", "prefixes", "texts", "windows")

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: OrderedDict[str, Call] = OrderedDict()
        """By age."""
        self.lists: dict[int, list[Call]] = {}
        self.messages: dict[bytes, Call] = {}
        self.prefixes: dict[int, Call] = {}
        """By hash: the call that brought it first."""
        self.texts: dict[bytes, Text] = {}
        self.windows: dict[int, Text | list[Text]] = {}
        self.bytes = KEY_BYTES


class Memory:
    """The memories of all keys within one bound. Fair: who keeps the most gives up its oldest."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.sieve = Sieve(1 << (max_bytes // 128).bit_length() - 1)
        self.bytes = self.sieve.bytes
        self.calls: OrderedDict[str, Call] = OrderedDict()
        self.keys: dict[str, KeyMemory] = {}
        self._by_size: dict[int, dict[KeyMemory, None]] = {}
        """Keys by the power of two that their bytes reach: which is the largest, without asking all."""
        self._events = 0

    def count(self) -> int:
        """The number of the event that happens now."""
        self._events += 1
        return self._events

    def open(self, call_id: str, key_name: str, now: float) -> Call:
        """A new call's record. Its tables are filled by who reads its prompt; then it is charged."""
        key = self.keys.get(key_name)
        if key is None:
            key = self.keys[key_name] = KeyMemory(key_name)
            self.bytes += KEY_BYTES
            self._by_size.setdefault(KEY_BYTES.bit_length(), {})[key] = None
        self._events += 1
        call = Call(call_id, key, self._events, now)
        self.calls[call_id] = key.calls[call_id] = call
        return call

    def charge(self, key: KeyMemory, amount: int) -> None:
        """So many bytes more, or less."""
        before = key.bytes.bit_length()
        key.bytes += amount
        self.bytes += amount
        after = key.bytes.bit_length()
        if after != before:
            self._leave(key, before)
            self._by_size.setdefault(after, {})[key] = None

    def _leave(self, key: KeyMemory, size: int) -> None:
        of_size = self._by_size[size]
        del of_size[key]
        if not of_size:
            del self._by_size[size]

    # --- outputs ---

    def say(self, call: Call, data: bytes) -> None:
        """`data`, stripped, is what the call answered or a part of it."""
        key, digest = call.key, digest_of(data)
        text = key.texts.get(digest)
        if text is None:
            text = key.texts[digest] = Text(data, digest, self._events)
            amount = TEXT_BYTES
            if SHORTEST <= len(data) <= INDEXED_BYTES_MAX:
                self._index(key, text, data)
                amount += WINDOWS_BYTES
            self.charge(key, amount)
        if text in call.texts:
            return
        call.texts.append(text)
        text.said.append(call)
        if len(text.said) > OWNERS_MAX:
            del text.said[0]

    def _index(self, key: KeyMemory, text: Text, data: bytes) -> None:
        """By a stretch of it whose windows few others have: first the middle, since beginnings are often phrases."""
        room, windows = len(data) - SHORTEST, key.windows
        for base in dict.fromkeys((room // 2, room // 4, room * 3 // 4, room, 0)):
            hashed = window_hashes(data, base)
            keys = keys_of(hashed)
            if windows.keys().isdisjoint(keys):
                windows.update(dict.fromkeys(keys, text))
                break
        else:
            base = self._share(windows, text, data, room)
            hashed = window_hashes(data, base)
            keys = keys_of(hashed)
        text.base, text.keys = base, keys
        self.sieve.add(hashed)

    @staticmethod
    def _share(windows: dict[int, Text | list[Text]], text: Text, data: bytes, room: int) -> int:
        """Every stretch has windows that others have as well: where the fewest do."""

        def owners(key: int) -> int:
            found = windows.get(key)
            return 0 if found is None else 1 if isinstance(found, Text) else len(found)

        bases = {room // 2, room // 4, room * 3 // 4, room, 0}
        base = min(sorted(bases), key=lambda base: max(map(owners, keys_of(window_hashes(data, base)))))
        for key in set(keys_of(window_hashes(data, base))):
            found = windows.get(key)
            if found is None:
                windows[key] = text
            elif isinstance(found, Text):
                windows[key] = [found, text]
            else:
                found.append(text)
                if len(found) > OWNERS_MAX:
                    del found[0]
        return base

    def _unindex(self, key: KeyMemory, text: Text) -> None:
        windows = key.windows
        self.sieve.remove(text.keys)
        for one in set(text.keys):
            owners = windows.get(one)
            if owners is text:
                del windows[one]
            elif isinstance(owners, list) and text in owners:
                owners.remove(text)
                if not owners:
                    del windows[one]

    # --- forgetting ---

    def shrink(self) -> int:
        """Forget calls until all fits; returns how many."""
        forgotten = 0
        while self.bytes > self.max_bytes and self.calls:
            largest = self._by_size[max(self._by_size)]
            key = max(_first(largest), key=lambda one: one.bytes)
            self.forget(next(iter(key.calls.values())))
            forgotten += 1
        return forgotten

    def forget(self, call: Call) -> None:
        """Take a call out of all tables."""
        key = call.key
        del self.calls[call.id], key.calls[call.id]
        if call.chain is not None and (same := key.lists.get(call.chain)) is not None and call in same:
            same.remove(call)
            if not same:
                del key.lists[call.chain]
        for digest in call.messages:
            del key.messages[digest]
        for prefix in call.prefixes:
            del key.prefixes[prefix]
        amount = call.bytes
        for text in call.texts:
            if call in text.said:
                text.said.remove(call)
                if not text.said:
                    amount += self._drop(key, text)
        self.charge(key, -amount)
        if not key.calls:
            self._leave(key, key.bytes.bit_length())
            self.bytes -= key.bytes
            del self.keys[key.name]

    def _drop(self, key: KeyMemory, text: Text) -> int:
        """Nobody is left who said it; returns the bytes that it took."""
        del key.texts[text.digest]
        if not text.keys:
            return TEXT_BYTES
        self._unindex(key, text)
        return TEXT_BYTES + WINDOWS_BYTES


def _first(keys: dict[KeyMemory, None], count: int = 16) -> list[KeyMemory]:
    """Some of them: all of one size class are alike within a factor of two."""
    return [key for key, _ in zip(keys, range(count), strict=False)]
