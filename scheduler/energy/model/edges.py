"""What did the last window's end cut off? It is missing there and stands in the next window: that is known by then."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


class Edge(NamedTuple):
    """The end of a window that was learned from: how much of (busy seconds, joules) it gave to that window which
    belongs to the work of the next. A prefill that is under way, the counter's 100 ms.

    The residual of a window is its end's less its beginning's, and what belongs to neither: a moving average. Of that
    the filter's state holds the last end, so that a window is told what the one before it says of it, and prices learn
    of many windows together what they can never learn of one: the sum.
    """

    mean: Floats
    """(2,)."""
    covariance: Floats
    """(2, 2)."""
    cross: Floats
    """(SIZE, 2): with the coefficients in units of the prior."""
