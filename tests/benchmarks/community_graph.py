"""The graph of the out-of-core benchmark as Parquet: skewed, with planted communities, written once and kept.

Node n of the graph has a weight from a Pareto-1.2 distribution and lies in community n // 2000; the user knows it under
a shuffled id. Every other edge has both ends drawn by weight from all nodes; the others pick a community, each as often
as any other, and draw both ends by weight inside it. A draw is a hash of the edge's number, so neither threads nor
parts change the graph.

    1. alias_table   weight [n] -> one packed entry a node: a draw by weight costs one look-up (Walker 1977, Vose 1991)
    2. draw_edges    edge number -> src, dst, a part of a million edges at a time, in two threads
    3. draw_features user id, column -> float16, +-[0.5, 1)
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sampling.keys import draw, fold, subkey
from storage.ingest import IngestSettings, ingest
from storage.jit import kernel
from tests.benchmarks.community_arrays import write_csc, write_feature_array

FEATURE_DIM = 128
COMMUNITY_NODES = 2000
EDGES_PER_PART = 1 << 20
NODES_PER_PART = 1 << 18
NUM_THREADS = 2
PARETO_SHAPE = 1.2


@dataclass(frozen=True)
class CommunityGraph:
    """A size of the graph and the folder that its files are kept in."""

    folder: Path
    num_nodes: int
    num_edges: int
    seed: int = 0

    @property
    def nodes(self) -> Path:
        """The user's node table."""
        return self.folder / "nodes.parquet"

    @property
    def edges(self) -> Path:
        """The user's edge table."""
        return self.folder / "edges.parquet"

    @property
    def store(self) -> Path:
        """The store that `hopstream ingest` makes of both."""
        return self.folder / "store"

    def write(self) -> None:
        """Write whatever is not there yet: both tables, the store, and the arrays of a user of DGL."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.edges.exists():
            self._write_edges()
        if not self.nodes.exists():
            self._write_nodes()
        if not (self.store / "manifest.json").exists():
            settings = IngestSettings(nodes={"node": str(self.nodes)}, edges={"node:to:node": str(self.edges)})
            ingest(settings, out=str(self.store))
        write_feature_array(self.nodes, self.folder / "features.npy", num_nodes=self.num_nodes, dim=FEATURE_DIM)
        write_csc(self.edges, self.folder, num_nodes=self.num_nodes, num_edges=self.num_edges)

    def user_ids(self) -> NDArray[np.int32]:
        """The id that the user knows each node of the generator by."""
        return self._drawn()[1]

    def _drawn(self) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Weights and user ids of all nodes."""
        rng = np.random.default_rng(self.seed)
        weight = rng.pareto(PARETO_SHAPE, self.num_nodes) + 1
        return weight, rng.permutation(self.num_nodes).astype(np.int32)

    def _write_edges(self) -> None:
        """src, dst int64: user ids. Memory: 28 bytes a node."""
        weight, user_id = self._drawn()
        everywhere = np.empty(self.num_nodes, dtype=np.uint64)
        inside = np.empty(self.num_nodes, dtype=np.uint64)
        alias_table(weight, everywhere)
        for first in range(0, self.num_nodes, COMMUNITY_NODES):
            alias_table(weight[first : first + COMMUNITY_NODES], inside[first : first + COMMUNITY_NODES])
        del weight
        key = subkey(np.uint64(0), self.seed, 1)
        schema = pa.schema([("src", pa.int64()), ("dst", pa.int64())])

        def part(first: int) -> pa.Table:
            count = min(EDGES_PER_PART, self.num_edges - first)
            src, dst = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
            draw_edges(key, first, everywhere, inside, COMMUNITY_NODES, user_id, src, dst)
            return pa.table([src, dst], schema=schema)

        _write_parts(self.edges, schema, part, range(0, self.num_edges, EDGES_PER_PART))

    def _write_nodes(self) -> None:
        """Ids 0 to num_nodes - 1 in order, and features."""
        key = subkey(np.uint64(0), self.seed, 2)
        schema = pa.schema([("id", pa.int64()), ("features", pa.list_(pa.float16(), FEATURE_DIM))])

        def part(first: int) -> pa.Table:
            ids = np.arange(first, min(first + NODES_PER_PART, self.num_nodes))
            bits = np.empty(ids.shape[0] * FEATURE_DIM, dtype=np.uint16)
            draw_features(key, first * FEATURE_DIM, bits)
            features = pa.FixedSizeListArray.from_arrays(pa.array(bits.view(np.float16)), FEATURE_DIM)
            return pa.table([pa.array(ids), features], schema=schema)

        _write_parts(self.nodes, schema, part, range(0, self.num_nodes, NODES_PER_PART))


def _write_parts(path: Path, schema: pa.Schema, part: Callable[[int], pa.Table], firsts: range) -> None:
    """Write the parts in order, a row group each; as many as there are threads are made ahead."""
    partial = path.with_suffix(".partial")
    with (
        ThreadPoolExecutor(NUM_THREADS) as threads,
        pq.ParquetWriter(partial, schema, compression="none", use_dictionary=False) as writer,
    ):
        for table in _ahead(threads, part, firsts):
            writer.write_table(table, row_group_size=table.num_rows)
    partial.rename(path)


def _ahead(threads: ThreadPoolExecutor, part: Callable[[int], pa.Table], firsts: range) -> Iterator[pa.Table]:
    flying: deque[Future[pa.Table]] = deque()
    for first in firsts:
        flying.append(threads.submit(part, first))
        if len(flying) > NUM_THREADS:
            yield flying.popleft().result()
    while flying:
        yield flying.popleft().result()


@kernel
def alias_table(weight: NDArray[np.float64], table: NDArray[np.uint64]) -> None:
    """Entry i: in its upper 32 bits how likely slot i is to mean i, in its lower 32 bits what it means otherwise."""
    size = weight.shape[0]
    scaled = weight * (size / weight.sum())
    small = np.empty(size, dtype=np.int32)
    large = np.empty(size, dtype=np.int32)
    num_small = 0
    num_large = 0
    for slot in range(size):
        if scaled[slot] < 1.0:
            small[num_small] = slot
            num_small += 1
        else:
            large[num_large] = slot
            num_large += 1
    while num_small and num_large:
        num_small -= 1
        less = small[num_small]
        more = large[num_large - 1]
        table[less] = (np.uint64(scaled[less] * 4294967296.0) << np.uint64(32)) | np.uint64(more)
        scaled[more] -= 1.0 - scaled[less]
        if scaled[more] < 1.0:
            num_large -= 1
            small[num_small] = more
            num_small += 1
    for left in range(num_large):
        table[large[left]] = (np.uint64(0xFFFFFFFF) << np.uint64(32)) | np.uint64(large[left])
    for left in range(num_small):
        table[small[left]] = (np.uint64(0xFFFFFFFF) << np.uint64(32)) | np.uint64(small[left])


@kernel
def pick(table: NDArray[np.uint64], first: int, size: int, word: np.uint64) -> int:
    """A node of [first, first + size) by weight, from random 64 bits: half for the slot, half for what it means."""
    slot = np.int64(((word >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32))
    entry = table[first + slot]
    if (word & np.uint64(0xFFFFFFFF)) < (entry >> np.uint64(32)):
        return int(first + slot)
    return int(first + np.int64(entry & np.uint64(0xFFFFFFFF)))


@kernel
def draw_edges(
    key: np.uint64,
    first: int,
    everywhere: NDArray[np.uint64],
    inside: NDArray[np.uint64],
    community_nodes: int,
    user_id: NDArray[np.int32],
    src: NDArray[np.int64],
    dst: NDArray[np.int64],
) -> None:
    """Edges [first, first + len(src)): even ones from all nodes, odd ones inside a community."""
    num_nodes = everywhere.shape[0]
    num_communities = -(-num_nodes // community_nodes)
    for place in range(src.shape[0]):
        edge = first + place
        edge_key = fold(key, edge)
        low = 0
        high = num_nodes
        table = everywhere
        if edge & 1:
            word = draw(edge_key, 2) >> np.uint64(32)
            low = int((word * np.uint64(num_communities)) >> np.uint64(32)) * community_nodes
            high = min(low + community_nodes, num_nodes)
            table = inside
        src[place] = user_id[pick(table, low, high - low, draw(edge_key, 0))]
        dst[place] = user_id[pick(table, low, high - low, draw(edge_key, 1))]


@kernel
def draw_features(key: np.uint64, first: int, bits: NDArray[np.uint16]) -> None:
    """Values [first, first + len(bits)) of the table as bits of float16; both are multiples of 4."""
    for place in range(0, bits.shape[0], 4):
        word = draw(key, (first + place) // 4)
        for lane in range(4):
            half = np.uint16((word >> np.uint64(16 * lane)) & np.uint64(0x83FF))
            bits[place + lane] = half | np.uint16(0x3800)
