"""Words to features: signed feature hashing of the parts of identifiers and docstring words.

Shapes: N documents (the words of one node each), D = FEATURE_DIM.
"""

import functools
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

FEATURE_DIM = 128

# `parseHTTPResponse_v2` -> parse HTTP Response v: runs of capitals, capitalised or small words, other scripts
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_a-zA-Z]+")
_WORDS = re.compile(r"\w+")
_SIGN_BIT = FEATURE_DIM
_TOKEN_BITS = 40
_LOG_SCALE = 1 << 10


def docstring_words(docstring: str) -> list[str]:
    """The words of a docstring, in order, repeated as often as they stand there."""
    return _WORDS.findall(docstring)


def split_identifier(word: str) -> list[str]:
    """Lower-case parts of an identifier, split at ``_``, digits and camelCase."""
    return [part.lower() for part in _PARTS.findall(word)]


def hash_words(documents: Sequence[Iterable[str]]) -> NDArray[np.float16]:
    """One row of features per document.

    A part t that stands in the document c_t times adds log(1 + c_t) to the column its hash names, with the
    sign its hash names; the row is then scaled to length 1. A document without words gives zeros. Sums are
    taken in whole numbers, so the result does not depend on the order of the words. Source: Weinberger et al.
    2009, "Feature hashing for large scale multitask learning", section 2.

    Returns:
        float16 [N, D]
    """
    tokens: list[int] = []
    num_tokens = np.zeros(len(documents), np.int64)
    for row, document in enumerate(documents):
        before = len(tokens)
        for word in document:
            tokens.extend(_tokens(word))
        num_tokens[row] = len(tokens) - before
    rows = np.repeat(np.arange(len(documents), dtype=np.int64), num_tokens)
    keys, counts = np.unique(rows << _TOKEN_BITS | np.array(tokens, np.int64), return_counts=True)
    cells = (keys >> _TOKEN_BITS) * FEATURE_DIM + (keys & (FEATURE_DIM - 1))
    amounts = _scaled_logs(int(counts.max(initial=0)))[counts]
    signed = np.where(keys & _SIGN_BIT, -amounts, amounts)
    sums_ND = np.bincount(cells, weights=signed, minlength=len(documents) * FEATURE_DIM).reshape(-1, FEATURE_DIM)
    lengths_N1 = np.sqrt(np.square(sums_ND).sum(axis=1, keepdims=True))
    features_ND: NDArray[np.float16] = (sums_ND / np.maximum(lengths_N1, 1)).astype(np.float16)
    return features_ND


@functools.lru_cache(maxsize=1 << 20)  # most words come again, in the same file and in others
def _tokens(word: str) -> tuple[int, ...]:
    """Per part, the low bits of its hash: column, sign, and enough more to tell parts apart when counted."""
    return tuple(xxhash.xxh64_intdigest(part.encode()) & ((1 << _TOKEN_BITS) - 1) for part in split_identifier(word))


def _scaled_logs(largest: int) -> NDArray[np.int64]:
    """Scale times log(1 + c), rounded, for c = 0 .. largest."""
    return np.array([round(_LOG_SCALE * math.log1p(count)) for count in range(largest + 1)], np.int64)
