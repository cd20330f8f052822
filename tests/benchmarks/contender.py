"""What the contenders of the out-of-core benchmark share: a command line, the seeds, the clock, and one line of JSON.

A contender is a generator of `Served`: it samples the seeds of step 0, 1, 2, ... and hands out each batch's nodes with
their feature rows. `run` drives it past the warm-up and times the rest. Groups of batches that share work, such as one
sweep over the file, are timed whole: the clock starts and stops where a group ends.
"""

import argparse
import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from sampling.seeds import SeedOrder
from storage.arrays import read_array
from storage.features import FeatureFile
from storage.graph import RelationCSC, Topology
from storage.npy import HEADER_BYTES, parse_header
from storage.schema import EdgeSegment, FileInfo, NodeSegment
from storage.store import Store
from tests.benchmarks.disk_io import disk_bytes

CHECKED_BATCHES = 3
NO_MEMORY = 137
"""exit code of a contender that the cap left too little memory, as of a killed one"""


@dataclass(frozen=True)
class Served:
    """One batch as a training step would get it."""

    nodes: NDArray[Any]
    """[N] int32 or int64, seeds first"""
    features: NDArray[Any]
    """[N, dim] float16"""
    ends_group: bool = True
    """the last of the batches that share work"""


def arguments(description: str) -> argparse.ArgumentParser:
    """The command line that the harness gives to every contender."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help="folder that community_graph.py filled")
    parser.add_argument("--fanouts", default="15,10,5", help="from the seeds outward")
    parser.add_argument("--seeds", type=int, default=1024, help="seeds a batch")
    parser.add_argument("--batches", type=int, default=8, help="batches to time")
    parser.add_argument("--warmup", type=int, default=2, help="batches before the clock starts")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop early after this long on the clock")
    parser.add_argument("--cache-bytes", type=int, required=True, help="memory for feature rows")
    parser.add_argument("--topology-bytes", type=int, default=0, help="memory for adjacency, where it is on disk")
    parser.add_argument("--topology", choices=("memory", "disk"), default="memory")
    parser.add_argument("--threads", type=int, default=0, help="0: the contender's default")
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare batches with the plain array; the time is then not the contender's",
    )
    return parser


def fanouts_of(options: argparse.Namespace) -> tuple[int, ...]:
    """`--fanouts` as numbers."""
    return tuple(int(word) for word in options.fanouts.split(","))


class Seeds:
    """The seeds of every step: any number of steps, over as many epochs as they take."""

    def __init__(self, options: argparse.Namespace, *, num_nodes: int) -> None:
        self._order = SeedOrder(None, num_nodes=num_nodes, seeds_per_step=options.seeds, seed=0)

    def of(self, step: int) -> NDArray[np.int64]:
        """int64 [seeds]; fewer in the last step of an epoch."""
        epoch, step = divmod(step, self._order.steps_per_epoch)
        return self._order.global_batch(epoch=epoch, step=step)


class BenchStore:
    """The store of the benchmark graph: one type, one relation, one segment of each."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._store = Store.open(os.path.join(options.data, "store"))
        self.num_nodes = self._store.node_types[0].num_nodes
        self.edges: EdgeSegment = self._store.relations[0].segments[0]
        self._nodes: NodeSegment = self._store.node_types[0].segments[0]

    @property
    def features(self) -> FileInfo:
        """The feature file."""
        assert self._nodes.features is not None
        return self._nodes.features

    def path(self, info: FileInfo) -> str:
        """Where a file is."""
        path = self._store.place.local(info.name)
        assert path is not None
        return path

    def plain(self, info: FileInfo) -> NDArray[Any]:
        """A file's array, mapped for random access."""
        with open(self.path(info), "rb") as file:
            shape, dtype = parse_header(file.read(HEADER_BYTES))
        return map_randomly(Path(self.path(info)), dtype=dtype, shape=shape, offset=HEADER_BYTES)

    def feature_file(self, *, num_threads: int) -> FeatureFile:
        """The feature file behind parallel direct reads."""
        shape = self.plain(self.features).shape
        return FeatureFile(
            self._store.place,
            self.features,
            num_rows=shape[0],
            dim=shape[1],
            dtype=np.float16,
            num_threads=num_threads,
        )

    def topology(self, kind: str) -> Topology:
        """Adjacency read into memory, or mapped with the page cache for a cache; no out-degrees."""
        relation = self._store.relations[0].relation
        infos = (self.edges.indptr, self.edges.indices)
        arrays = [read_array(self._store.place, i) if kind == "memory" else self.plain(i) for i in infos]
        csc = RelationCSC(
            relation=relation,
            source_type=0,
            target_type=0,
            indptr=arrays[0],
            indices=arrays[1],
            out_degree=np.empty(0, dtype=np.int32),
            weight=None,
            timestamp=None,
        )
        return Topology(("node",), self._store.type_offsets, (csc,))


def map_randomly(path: Path, *, dtype: Any, shape: tuple[int, ...], offset: int, advise: bool = True) -> NDArray[Any]:
    """A file mapped into memory (private, never written to), by default with MADV_RANDOM."""
    mapped = np.memmap(path, mode="c", dtype=dtype, shape=shape, offset=offset)
    if advise:
        advise_random(mapped)
    return np.asarray(mapped)


def advise_random(mapped: NDArray[Any]) -> None:
    """MADV_RANDOM on a numpy map, or on an array that is a view of one: no read-ahead."""
    found: Any = mapped
    while not isinstance(found, mmap.mmap):
        found = getattr(found, "_mmap", None) or found.base
    found.madvise(mmap.MADV_RANDOM)


def read_bytes() -> int:
    """Bytes that this process and its children have had read from disks."""
    tree = (psutil.Process(), *psutil.Process().children(recursive=True))
    return sum(disk_bytes("read_bytes", pid=process.pid) for process in tree)


def run(
    name: str,
    options: argparse.Namespace,
    served: Iterator[Served],
    *,
    plain: Callable[[], NDArray[Any]],
    more: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Time the contender and print its JSON line; `plain` maps the true array, `more` adds keys at the end."""
    began = time.perf_counter()
    measured: dict[str, Any] = {}
    batches = rows = checked = 0
    clock, bytes_before = 0.0, 0
    is_warm = False
    for number, batch in enumerate(served):
        seconds = time.perf_counter() - clock
        batches, rows = batches + is_warm, rows + batch.nodes.shape[0] * is_warm
        enough = is_warm and (batches >= options.batches or seconds > options.seconds)
        if options.check and (number < CHECKED_BATCHES or enough):
            same = np.array_equal(plain()[batch.nodes].view(np.uint16), batch.features.view(np.uint16))
            assert same, f"batch {number} of {name} differs from the plain array"
            checked += 1
        if not batch.ends_group:
            continue
        if enough:
            measured["seconds_per_batch"] = seconds / batches
            measured["read_bytes"] = read_bytes() - bytes_before
            break
        if not is_warm and number + 1 >= options.warmup:
            is_warm, bytes_before, clock = True, read_bytes(), time.perf_counter()
            measured["ready_seconds"] = clock - began
    line = {
        "contender": name,
        **measured,
        "batches": batches,
        "rows": rows,
        "rows_per_batch": rows / max(1, batches),
        "read_bytes_per_batch": measured.get("read_bytes", 0) / max(1, batches),
        "checked_batches": checked,
        "threads": options.threads,
        **more(),
    }
    print(json.dumps(line), flush=True)


def end_without_memory(error: BaseException) -> None:
    """Leave as a process does that the cap has killed."""
    print(f"no memory: {error}", file=sys.stderr)
    os._exit(NO_MEMORY)
