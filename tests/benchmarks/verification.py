"""What checking every page costs: gathers with and without the check, pair by pair, and a whole store verified.

    python -m tests.benchmarks.verification [--small] [--json] [--save]

`*_cost_share_*` is the share of a checked gather's time that the check takes, `warm` with the file in the page cache,
`direct` past it (O_DIRECT). Sequential gathers ask for consecutive rows, 16 MiB at a time; random ones for single
rows of the whole table. The unchecked kernel exists in this file only.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numba import types
from numpy.typing import NDArray

from storage.block_reads import OK, SHORT, Staging
from storage.features import FeatureFile
from storage.ingest import IngestSettings, ingest
from storage.jit import kernel
from storage.pages import PAGE_BYTES, check_pages, page_sums
from storage.row_runs import Runs, copy_rows
from storage.store import Store
from storage.verify import verify
from tests.benchmarks.record import arguments, report, say

DIM = 128
ROW_BYTES = 2 * DIM
CHUNK_ROWS = (16 << 20) // ROW_BYTES
PAIRS = 7
BUFFER_BYTES = 64 << 20

_pread: Any = types.ExternalFunction("pread", types.intp(types.int32, types.uintp, types.uintp, types.int64))


@kernel
def read_unchecked(
    descriptor: int,
    data: NDArray[np.uint8],
    file_bytes: int,
    first_page: NDArray[np.int64],
    num_pages: NDArray[np.int64],
    first_row: NDArray[np.int64],
    rows: NDArray[np.int64],
    order: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> int:
    """`storage.row_runs.read_unit` without the check."""
    for run in range(first_page.shape[0]):
        start = first_page[run] * PAGE_BYTES
        num_bytes = min(num_pages[run] * PAGE_BYTES, file_bytes - start)
        done = 0
        while done < num_bytes:
            room = num_pages[run] * PAGE_BYTES - done
            got = _pread(descriptor, data.ctypes.data + np.uintp(done), room, start + done)
            if got <= 0:
                return SHORT
            done += got
        served = slice(first_row[run], first_row[run + 1])
        copy_rows(data, start, rows[served], order[served], out)
    return OK


class UncheckedFile(FeatureFile):
    """A FeatureFile that believes the disk."""

    def _read_runs(self, runs: Runs, which: slice, staging: Staging, out: NDArray[np.uint8]) -> None:
        file = self._file
        status = read_unchecked(
            file.descriptor,
            staging.data,
            file.info.num_bytes,
            runs.first_page[which],
            runs.num_pages[which],
            runs.first_row[which.start : which.stop + 1],
            runs.rows,
            runs.order,
            out,
        )
        assert status == OK


def write_store(folder: Path, num_rows: int) -> Store:
    """A table of float16 rows and a ring of edges."""
    rng = np.random.default_rng(0)
    writer = None
    for start in range(0, num_rows, CHUNK_ROWS):
        ids = np.arange(start, min(start + CHUNK_ROWS, num_rows))
        values = pa.array(rng.standard_normal((len(ids), DIM), dtype=np.float32).astype(np.float16).reshape(-1))
        table = pa.table({"id": ids, "features": pa.FixedSizeListArray.from_arrays(values, DIM)})
        writer = writer or pq.ParquetWriter(folder / "nodes.parquet", table.schema, compression="none")
        writer.write_table(table)
    assert writer is not None
    writer.close()
    ring = np.arange(num_rows)
    pq.write_table(pa.table({"src": ring, "dst": np.roll(ring, 1)}), folder / "edges.parquet")
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")}, edges={"node:to:node": str(folder / "edges.parquet")}
    )
    ingest(settings, out=str(folder / "store"))
    return Store.open(str(folder / "store"))


def opened(kind: type[FeatureFile], store: Store, *, direct: bool) -> FeatureFile:
    """The store's features through a reader of `kind`."""
    segment = store.node_types[0].segments[0]
    assert segment.features is not None
    return kind(store.place, segment.features, num_rows=segment.num_nodes, dim=DIM, dtype=np.float16, direct=direct)


def sequential(file: FeatureFile, num_rows: int) -> float:
    """Seconds to gather the first rows of the table in order."""
    out = np.empty((CHUNK_ROWS, DIM), dtype=np.float16)
    began = time.perf_counter()
    for start in range(0, num_rows, CHUNK_ROWS):
        rows = np.arange(start, min(start + CHUNK_ROWS, num_rows))
        file.gather(rows, out[: len(rows)])
    return time.perf_counter() - began


def random_rows(rows: NDArray[np.int64]) -> Callable[[FeatureFile], float]:
    """Seconds to gather these rows, a mini-batch's worth at a time."""
    out = np.empty((len(rows), DIM), dtype=np.float16)

    def measure(file: FeatureFile) -> float:
        began = time.perf_counter()
        for part in range(0, len(rows), 10_000):
            file.gather(rows[part : part + 10_000], out[part : part + 10_000])
        return time.perf_counter() - began

    return measure


def gather_figures(store: Store, num_rows: int, num_random: int, options: Any) -> dict[str, float]:
    """Costs of the check in every way of gathering, each the median of pairs measured one after the other."""
    rows = np.random.default_rng(1).integers(0, num_rows, num_random)
    ways: dict[str, Callable[[FeatureFile], float]] = {
        "sequential": lambda file: sequential(file, num_rows),
        "random": random_rows(rows),
    }
    figures: dict[str, float] = {}
    for direct in (False, True):
        files = {kind: opened(kind, store, direct=direct) for kind in (FeatureFile, UncheckedFile)}
        for name, measure in ways.items():
            which = f"{name}_{'direct' if direct else 'warm'}"
            pairs = []
            for file in files.values():
                measure(file)  # compile, and fill the page cache
            for number in range(PAIRS):
                order = list(files)[:: 1 if number % 2 else -1]
                spent = {kind: measure(files[kind]) for kind in order}
                pairs.append((spent[FeatureFile], spent[UncheckedFile]))
            shares = [1 - unchecked / checked for checked, unchecked in pairs]
            figures[f"verify_cost_share_{which}"] = statistics.median(shares)
            checked = statistics.median(pair[0] for pair in pairs)
            if name == "sequential":
                figures[f"gather_gb_per_second_{which}"] = num_rows * ROW_BYTES / checked / 1e9
            else:
                figures[f"gather_rows_per_second_{which}"] = num_random / checked
            say(f"{which}: the check takes {statistics.median(shares):.1%} of {checked:.3f} s", options)
        for file in files.values():
            file.close()
    figures["verify_cost_share_sequential"] = figures["verify_cost_share_sequential_direct"]
    return figures


def kernel_figures() -> dict[str, float]:
    """Bytes a second that one thread checks in memory, beside the xxhash package over the same pages."""
    buffer = np.random.default_rng(2).integers(0, 256, BUFFER_BYTES, dtype=np.uint8)
    words, sums = buffer.view(np.uint64), page_sums(buffer)
    view = buffer.data
    rates: dict[str, list[float]] = {"verify": [], "xxhash_package": []}
    for _ in range(PAIRS):
        began = time.perf_counter()
        assert check_pages(words, buffer, BUFFER_BYTES, sums, 0) < 0
        between = time.perf_counter()
        for start in range(0, BUFFER_BYTES, PAGE_BYTES):
            xxhash.xxh64_intdigest(view[start : start + PAGE_BYTES])
        ended = time.perf_counter()
        rates["verify"].append(BUFFER_BYTES / (between - began) / 1e9)
        rates["xxhash_package"].append(BUFFER_BYTES / (ended - between) / 1e9)
    return {f"{name}_gb_per_second": statistics.median(values) for name, values in rates.items()}


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__ or "", small="128 MiB of features instead of 2 GiB").parse_args()
    num_rows, num_random = (1 << 19, 20_000) if options.small else (1 << 23, 100_000)
    with tempfile.TemporaryDirectory(dir=".") as name:
        say("writing the store", options)
        store = write_store(Path(name), num_rows)
        figures = kernel_figures() | gather_figures(store, num_rows, num_random, options)
        found = verify(store.place.url)
        assert found.is_whole
        figures["verify_store_gb_per_second"] = found.num_bytes / found.seconds / 1e9
    config = {
        "num_rows": num_rows,
        "row_bytes": ROW_BYTES,
        "random_rows": num_random,
        "chunk_rows": CHUNK_ROWS,
        "pairs": PAIRS,
    }
    report("verification", figures, config, options)


if __name__ == "__main__":
    main()
