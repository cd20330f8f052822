"""The one way hot loops are compiled: numba, without the GIL, cached on disk."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
from numba import types

memcpy: Any = types.ExternalFunction("memcpy", types.voidptr(types.uintp, types.uintp, types.uintp))
"""of the C library, for kernels: several times as fast as a loop over the words of a row"""

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile `function` with numba (`nogil`, cached); it keeps its Python signature for type checkers."""
    return cast(F, numba.njit(nogil=True, cache=True, error_model="numpy")(function))
