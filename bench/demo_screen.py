"""What does the demo show while it works? One line that is written anew on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time

WIDTH_MAX = 100
BAR = 16
PLAIN_SECONDS = 10.0


class Screen:
    """Standard output."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self._styled = self.terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"
        self._open = False
        self._plain_at = 0.0
        # Signs that the terminal's encoding lacks are no reason to end.
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")

    def say(self, text: str = "", *, hang: int = 2, bold: bool = False) -> None:
        """A line that stays; too long ones are broken at blanks and go on `hang` columns from the left."""
        width = min(WIDTH_MAX, shutil.get_terminal_size((WIDTH_MAX, 24)).columns)
        wrapped = textwrap.wrap(
            text, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False
        )
        for line in wrapped or [""]:
            self.raw(line, bold=bold)

    def raw(self, text: str, *, bold: bool = False) -> None:
        """A line as it is: a table's, or one to be copied. It takes the place of a progress line."""
        if self._open:
            sys.stdout.write("\r\x1b[K")
            self._open = False
        print(f"\x1b[1m{text}\x1b[0m" if bold and self._styled else text, flush=True)

    def progress(self, name: str, share: float, news: str) -> None:
        """How far it is; written over on a terminal, every ten seconds elsewhere."""
        if self.terminal:
            full = round(BAR * share)
            line = f"  {name}  {'█' * full}{'░' * (BAR - full)} {share:4.0%}  {news}"
            columns = shutil.get_terminal_size((WIDTH_MAX, 24)).columns
            sys.stdout.write(f"\r{line[: columns - 1]}\x1b[K")
            sys.stdout.flush()
            self._open = True
        elif time.monotonic() >= self._plain_at:
            self._plain_at = time.monotonic() + PLAIN_SECONDS
            print(f"  {name}  {share:4.0%}  {news}", flush=True)

    def settle(self, name: str, news: str) -> None:
        """The last word of a progress line; it stays."""
        self._plain_at = 0.0
        self.progress(name, 1.0, news)
        self._plain_at = 0.0
        if self._open:
            self._open = False
            print(flush=True)
