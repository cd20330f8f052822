"""Features that stay in the user's Parquet files: which file and row each node's are in, and reading them.

How `ParquetFeatures.gather` reads n rows:

    1. positions   rows [n] -> rows of the table, from an array of the store, every page checked
    2. group       sorted, and cut at the row groups of the files; runs of pages are planned in each
    3. read        each thread, one unit after another: the row group's blocks from the block cache, by the same
                   compiled reader as any cached file, every page checked by the sums that the block carries

A row group that is not in the cache is decoded once, as a whole, by the rules of ingest, into what a stored
feature file of its rows would be: a header page and rows of fixed stride. Never is a row read from Parquet alone.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from threading import BoundedSemaphore
from typing import Any, Literal

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from storage.block_cache import BlockCache
from storage.block_files import CacheFull, block_file_bytes
from storage.cached_file import CachedFile, identity
from storage.cached_runs import read_cached_runs
from storage.errors import BadInput
from storage.feature_columns import FeatureColumns
from storage.feature_rows import convert_batch
from storage.features import FeatureFile, RowReader
from storage.npy import HEADER_BYTES, damaged, npy_header
from storage.offences import Offences
from storage.pages import PAGE_BYTES
from storage.place import Place
from storage.read_pool import NUM_THREADS, ReadPool
from storage.retries import open_url
from storage.row_runs import MAX_GAP_BYTES, Runs, plan
from storage.schema import FileInfo, InPlaceFeatures
from storage.source_files import changed, describe_file, open_source, refuse_changed, refuse_other_footer
from storage.tables import Table

BATCH_BYTES = 16 << 20
NUM_DECODERS = 2


def describe_in_place(
    table: Table, columns: FeatureColumns, *, nan: Literal["refuse", "zero"], positions: FileInfo
) -> InPlaceFeatures:
    """What a node segment records of features that stay in `table`.

    Args:
        table: the opened node table.
        columns: its feature columns.
        nan: what becomes of NaN and infinite values.
        positions: stored int64 array [num_nodes], row of the table of each dense id of the segment.
    """
    fs, _ = open_url(table.url)
    return InPlaceFeatures(
        files=tuple(describe_file(_absolute(fs, file.path), group_rows=file.group_rows) for file in table.files),
        columns=columns.names,
        is_list=columns.is_list,
        converts=columns.converts,
        dim=columns.dim,
        dtype=columns.dtype,
        nan=nan,
        positions=positions,
    )


def validate_in_place(
    table: Table,
    columns: FeatureColumns,
    *,
    nan: Literal["refuse", "zero"],
    advance: Callable[[int], None],
) -> int:
    """Read all features once, keeping none; returns how many values will become 0. Memory: one batch.

    Raises:
        BadInput: as if they were copied: a null, another width, a value that is not finite or does not fit.
    """
    offences, num_zeroed = Offences(), 0
    for first_row, batch in table.batches(columns.names, max_rows=max(1, BATCH_BYTES // (4 * columns.dim))):
        done = convert_batch(batch, columns=columns, scale=None, nan=nan, offences=offences, first_row=first_row)
        num_zeroed += 0 if done is None else done.num_zeroed
        advance(batch.num_rows)
    offences.refuse(table)
    return num_zeroed


def _absolute(fs: Any, path: str) -> str:
    return os.path.abspath(path) if isinstance(fs, LocalFileSystem) else str(fs.unstrip_protocol(path))


@dataclass(frozen=True)
class _Group:
    """A row group: where it is, and its decoded form as the cache knows it."""

    file: int
    number: int
    first_row: int
    num_rows: int
    blob: CachedFile


class ParquetFeatures(RowReader):
    """Feature rows of one node segment, decoded from Parquet into a block cache; implements `StoredFeatures`.

    Args:
        place: the store, for the positions.
        source: what it records.
        num_rows: nodes of the segment.
        scale: what a step of quantised features is worth, [dim]; None as they are.
        cache: where decoded row groups go.

    Memory: 1 MiB a thread, 48 bytes a row asked for, and two row groups being decoded, each as far as Arrow holds
    its columns at once, with a batch of 16 MiB. Raises DamagedStore when a source file has changed, BadInput when
    the cache cannot hold two of the largest row groups.
    """

    def __init__(
        self,
        place: Place,
        source: InPlaceFeatures,
        *,
        num_rows: int,
        scale: tuple[float, ...] | None = None,
        cache: BlockCache,
    ) -> None:
        super().__init__(num_rows=num_rows, dim=source.dim, dtype=source.dtype)
        self._place = place
        self._source = source
        self._cache = cache
        self._scale = None if scale is None else np.array(scale, dtype=np.float32)
        self._groups = tuple(self._find_groups())
        self._group_first = np.array([group.first_row for group in self._groups], dtype=np.int64)
        largest = max(block_file_bytes(group.blob.num_bytes) for group in self._groups)
        if largest > cache.limit_bytes // 2:
            raise _too_small(cache, f"a row group takes {largest} bytes decoded, the limit is {cache.limit_bytes}")
        # no more row groups at once than the cache holds twice over
        self._pool = ReadPool(
            num_threads=max(1, min(NUM_THREADS, cache.limit_bytes // largest // 2)),
            staging_bytes=self._max_run_pages * PAGE_BYTES,
        )
        self._decoders = BoundedSemaphore(NUM_DECODERS)
        self._whole_files: set[int] = set()
        try:
            self._pool.run(lambda file: refuse_changed(source.files[file]), len(source.files))
            self._positions = FeatureFile(
                place, source.positions, num_rows=num_rows, dim=1, dtype="int64", shape=(num_rows,), direct=False
            )
        except BaseException:
            self._pool.close()
            raise

    def _find_groups(self) -> Iterator[_Group]:
        source, first_row = self._source, 0
        for number, file in enumerate(source.files):
            for group, num_rows in enumerate(file.group_rows):
                if num_rows:
                    key = identity(
                        file.url, file.num_bytes, file.fingerprint, file.footer_xxh64, group, *source.columns,
                        source.dim, source.dtype, source.nan, str(self._scale is not None and self._scale.tobytes()),
                    )  # fmt: skip
                    num_bytes = HEADER_BYTES + num_rows * self._row_bytes
                    read = partial(self._decode, number, group, num_rows)
                    blob = CachedFile(key=key, num_bytes=num_bytes, read=read, whole=True)
                    yield _Group(number, group, first_row, num_rows, blob)
                first_row += num_rows

    def close(self) -> None:
        """End the threads and close the positions."""
        self._pool.close()
        self._positions.close()

    def _read_rows(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> int:
        positions = np.empty((rows.shape[0], 1), dtype=np.int64)
        self._positions.gather(rows, positions)
        units = self._plan(positions[:, 0])
        self._pool.run(lambda unit: self._read(*units[unit], out), len(units))
        return sum(int(runs.num_pages[which].sum()) for _, runs, which in units) * PAGE_BYTES

    def _plan(self, positions: NDArray[np.int64]) -> list[tuple[_Group, Runs, slice]]:
        """What to read of which row group, in units for threads."""
        order = np.argsort(positions)
        ordered = positions[order]
        last = self._groups[-1]
        if ordered[0] < 0 or ordered[-1] >= last.first_row + last.num_rows:
            raise damaged(self._place, self._source.positions.name, f"rows {ordered[0]} to {ordered[-1]}")
        owner = np.searchsorted(self._group_first, ordered, side="right") - 1
        units = list[tuple[_Group, Runs, slice]]()
        for index in np.unique(owner):
            group = self._groups[index]
            mine = slice(*np.searchsorted(owner, [index, index + 1]))
            runs = plan(
                ordered[mine] - group.first_row,
                row_bytes=self._row_bytes,
                max_gap_bytes=MAX_GAP_BYTES,
                max_run_pages=self._max_run_pages,
                num_threads=self._pool.num_threads,
            )
            runs = replace(runs, order=order[mine][runs.order])
            units += [(group, runs, slice(*map(int, runs.cuts[u : u + 2]))) for u in range(runs.cuts.shape[0] - 1)]
        return units

    def _read(self, group: _Group, runs: Runs, which: slice, out: NDArray[np.uint8]) -> None:
        try:
            with self._pool.staging() as staging:
                read_cached_runs(self._cache, group.blob, runs=runs, which=which, staging=staging, out=out, sums=None)
        except CacheFull as error:
            raise _too_small(self._cache, str(error)) from error

    def _decode(self, file: int, group: int, num_rows: int, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        """The whole row group as a feature file; the cache asks for nothing less."""
        source = self._source
        of = source.files[file]
        columns = FeatureColumns(source.columns, source.is_list, source.dim, source.dtype, source.converts)
        offences, done_rows = Offences(), 0
        with self._decoders:
            refuse_changed(of)
            if file not in self._whole_files:
                refuse_other_footer(of)
                self._whole_files.add(file)
            yield np.frombuffer(npy_header(self.dtype, (num_rows, self.dim)), dtype=np.uint8)
            with open_source(of) as parquet:
                for batch in parquet.iter_batches(
                    batch_size=max(1, BATCH_BYTES // (4 * self.dim)),
                    row_groups=[group],
                    columns=list(source.columns),
                    use_threads=False,
                ):
                    done = convert_batch(
                        batch, columns=columns, scale=self._scale, nan=source.nan, offences=offences, first_row=0
                    )
                    if done is None or offences:
                        raise changed(of, f"row group {group} has values that were not there")
                    done_rows += batch.num_rows
                    refuse_changed(of)  # while it was read: the cache would keep what is handed on
                    yield np.ascontiguousarray(done.rows).reshape(-1).view(np.uint8)
            if done_rows != num_rows:
                raise changed(of, f"{done_rows} rows in row group {group} where there were {num_rows}")


def _too_small(cache: BlockCache, found: str) -> BadInput:
    return BadInput(
        f"block cache {cache.folder}",
        found,
        rule="features in place are decoded into a block cache that holds at least two of their row groups",
        remedy="allow more with tiers.disk_cache_bytes, free the disk, write smaller row groups, or ingest with copies",
    )
