"""The collector waits for a large submission, and never for longer."""

from __future__ import annotations

import asyncio
import gc
import weakref

from proxy.workflows.bulk import Bulk


class Thing:
    """Something to let go of."""


def test_the_collector_waits_until_behind_the_answer() -> None:
    async def main() -> None:
        first, second, late = Bulk(), Bulk(), Bulk()
        first.begin()
        second.begin()
        first.kept = thing = Thing()
        gone = weakref.ref(thing)
        del thing
        second.end()
        await asyncio.sleep(0)
        assert not gc.isenabled() and gone() is not None
        first.end()
        assert not gc.isenabled(), "the answer may wait for this turn's end"
        await asyncio.sleep(0)
        assert gc.isenabled() and gone() is None
        late.end()
        await asyncio.sleep(0)
        late.begin()  # a thread that was begun after its client had gone
        assert gc.isenabled()

    asyncio.run(main())
