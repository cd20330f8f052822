"""The shape of every `.npy` file of a store, and the files of page sums that lie beside all stored files.

A header is padded to one page, so that rows begin at byte 4096 and direct reads stay aligned; `np.load` reads
such files. Page sums are themselves such an array: its data is vouched for by `FileInfo.sums_xxh64`, and its
header can only have one form, so no byte of it can change unnoticed.
"""

import io
from typing import Any

import numpy as np
import xxhash
from numpy.lib import format as npy_format
from numpy.typing import DTypeLike, NDArray

from storage.errors import DamagedStore
from storage.pages import PAGE_BYTES
from storage.place import Place
from storage.schema import FileInfo

HEADER_BYTES = PAGE_BYTES
_SUMS_DTYPE = np.dtype("<u4")


def npy_header(dtype: DTypeLike, shape: tuple[int, ...]) -> bytes:
    """A version 1.0 `.npy` header of exactly 4096 bytes for a C-ordered array."""
    descr = npy_format.dtype_to_descr(np.dtype(dtype).newbyteorder("<"))
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {tuple(map(int, shape))!r}, }}"
    start = npy_format.magic(1, 0) + (HEADER_BYTES - 10).to_bytes(2, "little")
    header = start + text.encode("latin1").ljust(HEADER_BYTES - 11) + b"\n"
    assert len(header) == HEADER_BYTES
    return header


def parse_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a (verified) header that `npy_header` wrote."""
    file = io.BytesIO(header)
    npy_format.read_magic(file)
    shape, _, dtype = npy_format.read_array_header_1_0(file)
    return shape, dtype


def damaged(place: Place, name: str, found: str) -> DamagedStore:
    """The error for file `name` of a store in which `found` was found."""
    return DamagedStore(
        place.full(name),
        found,
        rule="stored files keep the bytes they were written with",
        remedy="restore the file from a copy or ingest again",
    )


def write_sums(place: Place, name: str, *, num_bytes: int, sums: NDArray[np.uint32]) -> FileInfo:
    """Write the page sums of file `name` beside it and return what the generation records of both."""
    data = sums.astype(_SUMS_DTYPE, copy=False).tobytes()
    info = FileInfo(name=name, num_bytes=num_bytes, num_pages=sums.shape[0], sums_xxh64=xxhash.xxh64_hexdigest(data))
    with place.open_write(info.sums_name) as file:
        file.write(npy_header(_SUMS_DTYPE, sums.shape))
        file.write(data)
    return info


def read_sums(place: Place, info: FileInfo) -> NDArray[np.uint32]:
    """Page sums, uint32 [num_pages], of a stored file; 4 bytes a page, 0.1 % of the file.

    Raises DamagedStore when they are missing or not those that were written.
    """
    name = info.sums_name
    try:
        raw = place.read_bytes(name)
    except FileNotFoundError:
        raise damaged(place, name, "missing file") from None
    header = npy_header(_SUMS_DTYPE, (info.num_pages,))
    if len(raw) != HEADER_BYTES + info.num_pages * _SUMS_DTYPE.itemsize:
        raise damaged(place, name, f"{len(raw)} bytes where {info.num_pages} page sums were written")
    if raw[:HEADER_BYTES] != header:
        raise damaged(place, name, "page 0 has changed")
    if xxhash.xxh64_hexdigest(memoryview(raw)[HEADER_BYTES:]) != info.sums_xxh64:
        raise damaged(place, name, "its data (pages 1 and later) has changed")
    return np.frombuffer(bytearray(raw), dtype=_SUMS_DTYPE, offset=HEADER_BYTES)
