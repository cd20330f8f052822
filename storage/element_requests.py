"""What may be asked of an array at many places: its values, or, of pointers, where lists begin and how long."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storage.element_blocks import hand_out_spans, hand_out_values, serve_spans, serve_values


class Request(Protocol):
    """Places [n] of an array, and what becomes of the elements there."""

    @property
    def at(self) -> NDArray[Any]:
        """Places [n]; negative ones are left out."""

    @property
    def reach(self) -> int:
        """How many elements behind the one at a place are needed too."""

    def serve(self, part: slice, cached: NDArray[Any], *, limit: int) -> int:
        """Answer places `at[part]` below `limit`, all of whose elements are cached; returns their number."""

    def hand_out(self, entries: NDArray[np.int64], block: NDArray[Any]) -> None:
        """Answer the entries of a block, given its elements."""


@dataclass(frozen=True)
class Values:
    """`out[i] = element[at[i]] ^ flip`, all as integers; with flip = -1 and `out` = `at`, places become ~elements."""

    at: NDArray[Any]
    out: NDArray[Any]
    flip: int = 0
    reach: int = 0

    def serve(self, part: slice, cached: NDArray[Any], *, limit: int) -> int:
        """See `Request`."""
        return serve_values(self.at[part], cached, limit, self.flip, self.out[part])

    def hand_out(self, entries: NDArray[np.int64], block: NDArray[Any]) -> None:
        """See `Request`."""
        hand_out_values(entries, block, self.flip, self.out)


@dataclass(frozen=True)
class Spans:
    """`begin[i]` and `degree[i]` of list at[i], from an array of pointers; an empty `begin` is not filled."""

    at: NDArray[Any]
    begin: NDArray[Any]
    degree: NDArray[np.int32]
    reach: int = 1

    def serve(self, part: slice, cached: NDArray[Any], *, limit: int) -> int:
        """See `Request`."""
        begin = self.begin[part] if self.begin.size else self.begin
        return serve_spans(self.at[part], cached, limit, begin, self.degree[part])

    def hand_out(self, entries: NDArray[np.int64], block: NDArray[Any]) -> None:
        """See `Request`."""
        hand_out_spans(entries, block, self.begin, self.degree)
