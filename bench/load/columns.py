"""What stands in a result? Four kinds of rows in one table, and their columns. docs/results-format.md says it all.

A column holds null where a row's kind has no such thing, or where nothing was measured: never 0 for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
METADATA_KEY = b"joulegate.result"
"""In the Parquet file's own metadata: the JSON document that is also written beside it."""
Kind = Literal["repeat", "workflow", "window", "call"]
KINDS: tuple[Kind, ...] = ("repeat", "workflow", "window", "call")
"""Rows of a file come in this order, each kind in row groups of its own."""

_W, _C, _R, _N = "workflow", "call", "repeat", "window"
COLUMNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("row", "word", KINDS),
    ("repeat", "int32", KINDS),
    ("workflow", "word", (_W, _C)),
    ("kind", "word", (_W, _C)),
    ("node", "word", (_C,)),
    ("after", "words", (_C,)),
    # times, seconds since the repeat's play began
    ("start_s", "float64", (_N,)),
    ("intended_s", "float64", (_W, _C)),
    ("sent_s", "float64", (_C,)),
    ("first_token_s", "float64", (_C,)),
    ("ended_s", "float64", KINDS),
    ("seconds", "float64", (_W, _C)),
    ("held_s", "float64", (_C,)),
    # what was asked for and what came
    ("status", "int32", (_C,)),
    ("error", "text", (_C,)),
    ("good", "bool", (_W, _C)),
    ("wanted_prompt_tokens", "int64", (_C,)),
    ("wanted_output_tokens", "int64", (_C,)),
    ("prompt_tokens", "int64", (_R, _W, _C)),
    ("cached_tokens", "int64", (_R, _W, _C)),
    ("output_tokens", "int64", (_R, _W, _C)),
    ("engine", "word", (_C,)),
    # promises
    ("class", "word", (_W,)),
    ("isolated_s", "float64", (_W,)),
    ("deadline_s", "float64", (_W,)),
    ("missed", "bool", (_W,)),
    # sums
    ("calls", "int64", (_R, _W)),
    ("failed_calls", "int64", (_R, _W)),
    ("workflows", "int64", (_R,)),
    ("good_workflows", "int64", (_R,)),
    ("missed_workflows", "int64", (_R,)),
    ("shareable_tokens", "int64", (_R,)),
    ("seed", "int64", (_R,)),
    ("started_unix_s", "float64", (_R,)),
    ("arrival_s", "float64", (_R,)),
    ("generating_s", "float64", (_R,)),
    ("complete", "bool", (_R,)),
    # energy
    ("energy_source", "word", KINDS),
    ("gpu_joules", "float64", (_R, _W, _N, _C)),
    ("cpu_joules", "float64", (_R, _N)),
    ("dram_joules", "float64", (_R, _N)),
    ("idle_watts", "float64", (_R,)),
    ("gpu_watts", "float64", (_N,)),
    ("limit_watts", "float64", (_N,)),
    ("sm_clock_mhz", "float64", (_N,)),
    ("throttled", "bool", (_N,)),
    # what the engine counted
    ("busy_s", "float64", (_R, _N)),
    ("steps", "int64", (_R, _N)),
    ("generated_tokens", "int64", (_R, _N)),
    ("prefilled_tokens", "int64", (_R, _N)),
    ("running", "float64", (_N,)),
    ("waiting", "float64", (_N,)),
    ("kv_share", "float64", (_N,)),
)
"""Name, type, and the kinds of rows that have it."""


def names(kind: Kind) -> tuple[str, ...]:
    """The columns that rows of this kind have."""
    return tuple(name for name, _, kinds in COLUMNS if kind in kinds)


def schema() -> pa.Schema:
    """Of the whole table."""
    import pyarrow as pa

    types: dict[str, Any] = {
        "word": pa.dictionary(pa.int32(), pa.string()),
        "words": pa.list_(pa.string()),
        "text": pa.string(),
        "bool": pa.bool_(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float64": pa.float64(),
    }
    return pa.schema([pa.field(name, types[kind]) for name, kind, _ in COLUMNS])
