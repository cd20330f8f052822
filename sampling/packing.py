"""A superbatch's missed rows, read in one sweep of their table and laid down on local disk in the order of batches.

Rows that many batches miss here and there in a table come from it in one pass, in the table's order, a chunk of
rows at a time; a chunk's rows of one batch are a piece, and the pieces of a batch follow each other in the scratch
file, so the batch itself is read in one go. Pieces begin at pages; what rounding up costs is `align_rows`.

Shapes: K batches, M_k misses of batch k, H chunks. Source: batched packing, DiskGNN (Liu et al., SIGMOD 2025),
section 4.3, here a superbatch at a time, so that the space is bounded and every epoch has samples of its own.
"""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.read_cost import ReadCost
from storage.block_reads import Staging
from storage.disk_speed import DiskSpeed
from storage.features import Features
from storage.jit import kernel
from storage.pages import PAGE_BYTES, as_words
from storage.read_pool import ReadPool
from storage.scratch_file import ScratchFile, new_staging

NUM_BINS = 1 << 14
"""places at which a table may be cut into chunks"""
LEAST_PIECES = 3
"""times the rows of whole pages that a batch's piece of a chunk has, or there is no pack"""
READ_BYTES = 1 << 20
"""of one read of a packed batch"""


@dataclass(frozen=True)
class Layout:
    """Where each missed row of a superbatch lies, in the scratch file and in memory that a batch is read into."""

    rows: list[NDArray[Any]]
    """[K][M_k] ascending"""
    places: list[NDArray[np.int32]]
    """[K][M_k] in the order of the plan's misses: row of the batch's memory that it is read into"""
    begin: NDArray[np.int64]
    """[H + 1, K]: chunk h has rows [begin[h, k], begin[h + 1, k]) of batch k"""
    first_page: NDArray[np.int64]
    """[H + 1, K]: piece (h, k) begins at page first_page[h, k] of the file and ends at first_page[h + 1, k]"""
    align_rows: int
    """rows that fill whole pages"""

    @property
    def num_pages(self) -> int:
        """Pages of the scratch file."""
        return int(self.first_page[-1, -1])

    @property
    def batch_pages(self) -> NDArray[np.int64]:
        """Pages of each batch, [K]."""
        pages: NDArray[np.int64] = self.first_page[-1] - self.first_page[0]
        return pages

    def unpacked(self, padded_places: list[NDArray[np.int32]]) -> tuple[list[NDArray[Any]], list[NDArray[np.int32]]]:
        """Rows and places of batches that are read without a pack, hence without what rounds pieces up."""
        places = []
        for padded in padded_places:
            place = np.empty_like(padded)
            place[np.argsort(padded)] = np.arange(padded.shape[0], dtype=np.int32)
            places.append(place)
        return self.rows, places

    def pages_of(self, first: int, last: int) -> tuple[int, int]:
        """(first page, pages) of batches [first, last)."""
        start = int(self.first_page[0, first])
        return start, int(self.first_page[-1, last - 1]) - start


def align_rows(row_bytes: int) -> int:
    """Rows that fill whole pages."""
    return PAGE_BYTES // math.gcd(PAGE_BYTES, row_bytes)


def padding_rows(num_rows: int, num_batches: int, *, row_bytes: int, chunk_bytes: int) -> int | None:
    """Rows that rounding pieces up to whole pages is expected to add; None where chunks would be little else."""
    rounding = num_batches * align_rows(row_bytes)
    room = _chunk_rows(num_batches, row_bytes=row_bytes, chunk_bytes=chunk_bytes)
    if room < LEAST_PIECES * rounding:
        return None
    return -(-num_rows // room) * rounding // 2


def packing_pays(direct: ReadCost, sweep: ReadCost, *, packed_bytes: float, speed: DiskSpeed) -> bool:
    """Whether reading `sweep` and laying down and reading `packed_bytes` is predicted to be faster than `direct`."""
    return sweep.seconds(speed) + speed.round_trip_seconds(packed_bytes) < direct.seconds(speed)


def _chunk_rows(num_batches: int, *, row_bytes: int, chunk_bytes: int) -> int:
    """Missed rows that a chunk has room for, beside what rounds its pieces up; less than 1 where it has none."""
    return chunk_bytes // row_bytes - num_batches * align_rows(row_bytes)


@kernel
def _places(
    order: NDArray[np.int64], begin: NDArray[np.int64], padded: NDArray[np.int64], place: NDArray[np.int32]
) -> None:
    """`place[order[j]]` = j counted with the padding of the pieces before it; begin [H + 1], padded [H]."""
    behind = 0
    for chunk in range(padded.shape[0]):
        for number in range(begin[chunk], begin[chunk + 1]):
            place[order[number]] = np.int32(behind + number - begin[chunk])
        behind += padded[chunk]


def lay_out(miss_rows: list[NDArray[Any]], *, num_rows: int, row_bytes: int, chunk_bytes: int) -> Layout:
    """Lay out the misses of K batches, in chunks that take about `chunk_bytes` of memory; `miss_rows` is emptied."""
    num_batches = len(miss_rows)
    align = align_rows(row_bytes)
    chunk_rows = max(1, _chunk_rows(num_batches, row_bytes=row_bytes, chunk_bytes=chunk_bytes))
    shift = max(0, (max(1, num_rows) - 1).bit_length() - NUM_BINS.bit_length() + 1)
    bins = np.zeros((num_rows >> shift) + 1, dtype=np.int64)
    for rows in miss_rows:
        bins += np.bincount(rows >> shift, minlength=bins.size)
    cuts = np.append(np.flatnonzero(np.diff((np.cumsum(bins) - 1) // chunk_rows)) + 1, bins.size) << shift
    begin = np.zeros((cuts.size + 1, num_batches), dtype=np.int64)
    padded = np.zeros((cuts.size, num_batches), dtype=np.int64)
    ordered, places = [], []
    for batch in range(num_batches):
        order = np.argsort(miss_rows[batch])
        rows = miss_rows[batch][order]
        miss_rows[batch] = np.empty(0, dtype=rows.dtype)
        begin[1:, batch] = np.searchsorted(rows, cuts)
        padded[:, batch] = -(-np.diff(begin[:, batch]) // align) * align
        place = np.empty(rows.shape[0], dtype=np.int32)
        _places(order, np.ascontiguousarray(begin[:, batch]), np.ascontiguousarray(padded[:, batch]), place)
        ordered.append(rows)
        places.append(place)
    pages = padded * row_bytes // PAGE_BYTES
    first_page = np.zeros_like(begin)
    first_page[1:] = np.cumsum(pages, axis=0)
    first_page += np.cumsum(np.append(0, pages.sum(axis=0)))[:num_batches]
    return Layout(ordered, places, begin, first_page, align)


class Pack:
    """The packed misses of one superbatch; the rows of `layout` are let go once they are packed.

    Raises what reading the table raises, and ScratchFull when the disk has no room.
    """

    def __init__(self, below: Features, layout: Layout, *, folder: str, pool: ReadPool) -> None:
        self.layout = layout
        self._row_bytes = below.dim * below.dtype.itemsize
        self._pool = pool
        self._file = ScratchFile(folder, num_pages=layout.num_pages)
        try:
            self._fill(below)
        except BaseException:
            self._file.close()
            raise
        layout.rows.clear()

    @property
    def num_bytes(self) -> int:
        """Written, and to be read once."""
        return self.layout.num_pages * PAGE_BYTES

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()

    def fetch(self, first: int, last: int, landing: NDArray[np.uint8]) -> None:
        """Read batches [first, last) into `landing`, memory of a `Staging`; batch after batch, as `place` says."""
        first_page, num_pages = self.layout.pages_of(first, last)
        part = READ_BYTES // PAGE_BYTES

        def read(unit: int) -> None:
            start = unit * part
            data = landing[start * PAGE_BYTES : (start + part) * PAGE_BYTES]
            self._file.read(data, as_words(data), first_page=first_page + start, num_pages=min(part, num_pages - start))

        self._pool.run(read, -(-num_pages // part))

    def _fill(self, below: Features) -> None:
        num_chunks = self.layout.begin.shape[0] - 1
        sizes = self.layout.first_page[1:] - self.layout.first_page[:-1]
        most = int(sizes.sum(axis=1).max(initial=0))
        buffers = [new_staging(max(1, most)) for _ in range(min(2, num_chunks))]
        writing: list[Future[None] | None] = [None, None]
        with ThreadPoolExecutor(1, thread_name_prefix="hopstream-pack") as writer:
            for chunk in range(num_chunks):
                turn = chunk % 2
                before = writing[turn]
                if before is not None:
                    before.result()
                self._read_chunk(below, chunk, buffers[turn])
                writing[turn] = writer.submit(self._write_chunk, chunk, buffers[turn])
            for last in writing:
                if last is not None:
                    last.result()

    def _read_chunk(self, below: Features, chunk: int, buffer: Staging) -> None:
        layout = self.layout
        num_rows = int((layout.first_page[chunk + 1] - layout.first_page[chunk]).sum()) * PAGE_BYTES // self._row_bytes
        rows = np.empty(num_rows, dtype=np.int64)
        at = 0
        for batch, ordered in enumerate(layout.rows):
            at = _put_piece(
                ordered, layout.begin[chunk, batch], layout.begin[chunk + 1, batch], layout.align_rows, at, rows
            )
        if num_rows:
            out = buffer.data[: num_rows * self._row_bytes].view(below.dtype).reshape(num_rows, below.dim)
            below.gather(rows, out)

    def _write_chunk(self, chunk: int, buffer: Staging) -> None:
        first = self.layout.first_page[chunk]
        sizes = self.layout.first_page[chunk + 1] - first
        starts = np.append(0, np.cumsum(sizes))
        cuts = np.searchsorted(starts, np.linspace(0, starts[-1], self._pool.num_threads + 1)).tolist()

        def write(unit: int) -> None:
            begin, end = cuts[unit], cuts[unit + 1]
            self._file.write_pieces(buffer.data, starts[begin : end + 1], first[begin:end])

        self._pool.run(write, self._pool.num_threads)


@kernel
def _put_piece(rows: NDArray[Any], begin: int, end: int, align_rows: int, at: int, out: NDArray[np.int64]) -> int:
    """Put a piece's rows behind those of `out`, filled up to whole pages with its last row, which is read once."""
    for number in range(begin, end):
        out[at] = rows[number]
        at += 1
    for _ in range((begin - end) % align_rows):
        out[at] = out[at - 1]
        at += 1
    return at
