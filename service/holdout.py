"""Hold edges out for link prediction: one edge table in, three out, none of whose pairs is in two of them.

    <out>/train.parquet   to be ingested: what is held out is then in no block, because it is not in the store
    <out>/val.parquet     to choose by
    <out>/test.parquet    to report
    <out>/holdout.json    shares, seed and counts; written last

Where a pair goes is a hash of its two ids and the seed, so it depends on nothing else in the table: duplicates of a
pair, and with `undirected` its reverse, go together, wherever they stand. The table is read once, in batches.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sampling.keys import UNIT, fold, subkey
from storage import columns
from storage.errors import BadInput
from storage.jit import kernel
from storage.lookup import hash_ids
from storage.offences import Offences
from storage.place import Place
from storage.progress import Progress
from storage.schema import IdType, Relation
from storage.tables import Table, open_table

PARTS = ("train", "val", "test")
REPORT_NAME = "holdout.json"
BATCH_ROWS = 1 << 18
"""rows read at once"""
GROUP_ROWS = 1 << 20
"""rows of a written row group"""
HOLDOUT_TAG = 0x401D
"""keeps these keys apart from other uses of the same seed"""


@dataclass(frozen=True)
class HoldoutReport:
    """What went where; counts are rows of the tables, duplicates included."""

    out: str
    relation: str
    undirected: bool
    """whether a pair and its reverse are one: asked for, and the relation joins nodes of one type"""
    seed: int
    val_share: float
    """of distinct pairs, in expectation"""
    test_share: float
    num_edges: int
    train_edges: int
    val_edges: int
    test_edges: int
    self_loops: int
    """edges from a node to itself, all of them in the training table"""

    def to_json(self) -> dict[str, Any]:
        """The same as a dictionary."""
        return asdict(self)


def hold_out(
    url: str,
    *,
    relation: Relation,
    undirected: bool,
    val_share: float,
    test_share: float,
    seed: int,
    out: str,
    progress: Progress,
) -> HoldoutReport:
    """Split the edge table at `url` into three in folder `out`; each pair is drawn for itself.

    Args:
        url: file, folder or glob with columns src and dst, and weight and timestamp where there are any; other
            columns are none of ingest's, and are not written.
        relation: says whether both ends are of one type: then self-loops are known, and `undirected` has a meaning.
        undirected: (a, b) and (b, a) are one pair.
        val_share, test_share: probability that a pair is held out; the rest trains.

    Memory: a batch and three row groups. Raises BadInput for shares that leave nothing to train on, ids that are
    missing, a table inside `out`, and a share for which no edge was drawn.
    """
    check_shares(val_share, test_share)
    table = open_table(url, required=("src", "dst"), optional=("weight", "timestamp"))
    place = Place(out)
    refuse_input_inside(table, place)
    same_type = relation.source == relation.target
    symmetric = undirected and same_type
    kinds = [columns.id_type(table, column) for column in ("src", "dst")]
    key = subkey(np.uint64(HOLDOUT_TAG), seed)
    counts = np.zeros(len(PARTS), dtype=np.int64)
    num_loops = 0
    place.remove(REPORT_NAME)
    progress.stage("hold out", total=table.num_rows, unit="edges")
    # files of one table may differ in what they say beside names and types
    schema = pa.schema([pa.field(field.name, field.type) for field in table.schema])
    with three_writers(place, schema) as writers:
        for first_row, read in table.batches(schema.names, max_rows=BATCH_ROWS):
            batch = pa.RecordBatch.from_arrays([read.column(name) for name in schema.names], schema=schema)
            source, target = (
                pair_hashes(table, batch, column, kind=kind, first_row=first_row)
                for column, kind in zip(("src", "dst"), kinds, strict=True)
            )
            part = np.empty(batch.num_rows, dtype=np.uint8)
            num_loops += draw_parts(source, target, key, same_type, symmetric, val_share, test_share, part)
            counts += np.bincount(part, minlength=len(PARTS))
            for number, writer in enumerate(writers):
                writer.add(batch.filter(pa.array(part == number)))
            progress.advance(batch.num_rows)
        for name, share, count in zip(PARTS, (1.0, val_share, test_share), counts, strict=True):
            if share and not count:
                raise BadInput(
                    table.url,
                    f"{table.num_rows} edges, none of them drawn for {name}",
                    rule="every part with a share gets an edge",
                    remedy="raise the share, or change the seed",
                )
    report = HoldoutReport(
        out=out,
        relation=str(relation),
        undirected=symmetric,
        seed=seed,
        val_share=val_share,
        test_share=test_share,
        num_edges=table.num_rows,
        train_edges=int(counts[0]),
        val_edges=int(counts[1]),
        test_edges=int(counts[2]),
        self_loops=num_loops,
    )
    place.write_bytes(REPORT_NAME, json.dumps(report.to_json(), indent=1).encode())
    return report


@kernel
def draw_parts(
    source: NDArray[np.uint64],
    target: NDArray[np.uint64],
    key: np.uint64,
    same_type: bool,
    symmetric: bool,
    val_share: float,
    test_share: float,
    part: NDArray[np.uint8],
) -> int:
    """`part[e]` = 0 train, 1 val or 2 test for the edge between the hashed ids; returns the number of self-loops.

    A self-loop is nothing to predict, so it trains.
    """
    num_loops = 0
    for edge in range(source.shape[0]):
        a, b = source[edge], target[edge]
        if same_type and a == b:
            num_loops += 1
            part[edge] = 0
            continue
        if symmetric and a > b:
            a, b = b, a
        chance = np.float64(fold(fold(key, a), b) >> np.uint64(11)) * UNIT
        part[edge] = 2 if chance < test_share else 1 if chance < test_share + val_share else 0
    return num_loops


def check_shares(val_share: float, test_share: float) -> None:
    """BadInput unless both are shares, test gets some, and training keeps some."""
    if not (0.0 <= val_share < 1.0 and 0.0 < test_share < 1.0 and val_share + test_share < 1.0):
        raise BadInput(
            "--val, --test",
            f"{val_share}, {test_share}",
            rule="shares of held-out pairs: 0 <= val, 0 < test, and both together below 1",
            remedy="for example --val 0.05 --test 0.10",
        )


def refuse_input_inside(table: Table, place: Place) -> None:
    """BadInput where a file of the table lies in the folder written: a second run would read the first one's result."""
    root = place.path("").rstrip("/") + "/"
    for file in table.files:
        if type(table.fs) is type(place.fs) and file.path.startswith(root):
            raise BadInput(
                "--out",
                f"{place.url} holds {file.name}",
                rule="held-out tables go to a folder of their own",
                remedy="name another folder",
            )


def pair_hashes(
    table: Table, batch: pa.RecordBatch, column: str, *, kind: IdType, first_row: int
) -> NDArray[np.uint64]:
    """Hashes [n] of one end of every edge; BadInput for a missing id."""
    values = batch.column(column)
    offences = Offences()
    columns.refuse_nulls(offences, pa.chunked_array([values]), name=column, first_row=first_row)
    offences.refuse(table)
    return hash_ids(columns.ids(values, kind=kind))


class PartTable:
    """One of the tables written: rows wait until they fill a row group."""

    def __init__(self, parquet: pq.ParquetWriter) -> None:
        self._parquet = parquet
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        self._waiting.append(batch)
        self._num_waiting += batch.num_rows
        if self._num_waiting >= GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one row group."""
        if self._num_waiting:
            self._parquet.write_table(pa.Table.from_batches(self._waiting), row_group_size=self._num_waiting)
        self._waiting, self._num_waiting = [], 0


@contextmanager
def three_writers(place: Place, schema: pa.Schema) -> Iterator[list[PartTable]]:
    """The three tables; they appear when the block ends without an exception."""
    with ExitStack() as opened:
        tables = []
        for name in PARTS:
            file = opened.enter_context(place.open_write(f"{name}.parquet"))
            tables.append(PartTable(opened.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))))
        yield tables
        for table in tables:
            table.flush()
