"""What the order of cold rows on disk changes: bytes of the same planned misses with rows laid out in three ways.

    python -m tests.benchmarks.out_of_core_order --data FOLDER --cache-bytes BYTES --static N --slots C
        --batches K [--fanouts 15,10,5] [--seeds 1024]

    1. trace     steps of three superbatches of K -> rows behind the static prefix, the samples that the stream draws
    2. plan      the misses of the second one, with the look-ahead of the stream
    3. price     misses -> bytes read and written by the faster of direct reads and a pack, for each order

    hotness     hottest first: the order of the store
    community   by label, then hottest first: ROUNDS rounds of label propagation over in-neighbours, whose votes weigh
                one over their out-degree, so that hubs of the whole graph say little (Raghavan et al. 2007, weighted)
    planted     by the community that the generator planted: the best that any community order can do

Runs in a process of its own without a cap: the trace itself takes memory.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sampling.belady import Residency
from sampling.neighbors import NeighborSampler
from sampling.packing import packing_pays
from sampling.read_cost import ReadCost, read_cost
from storage.disk_speed import DiskSpeed, disk_speed
from storage.jit import kernel
from storage.store import Store
from tests.benchmarks.community_graph import COMMUNITY_NODES, CommunityGraph
from tests.benchmarks.contender import BenchStore, Seeds, arguments, fanouts_of

ROUNDS = 4
MOST_VOTERS = 32
"""in-neighbours of a node that have a vote: the last ones of its list, which are the coldest"""


@kernel
def propagate(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], out_degree: NDArray[np.int64], label: NDArray[np.int32]
) -> None:
    """One round in place: every node takes the label with the heaviest vote, of equal ones the smallest."""
    names = np.empty(MOST_VOTERS, dtype=np.int32)
    weights = np.empty(MOST_VOTERS, dtype=np.float64)
    for node in range(label.shape[0]):
        count = 0
        for place in range(max(indptr[node], indptr[node + 1] - MOST_VOTERS), indptr[node + 1]):
            voter = indices[place]
            name, weight = label[voter], 1.0 / out_degree[voter]
            found = 0
            while found < count and names[found] != name:
                found += 1
            if found == count:
                names[count], weights[count] = name, 0.0
                count += 1
            weights[found] += weight
        best = -1
        for number in range(count):
            if best < 0 or (weights[number], -names[number]) > (weights[best], -names[best]):
                best = number
        if best >= 0:
            label[node] = names[best]


def by_label(label: NDArray[Any], *, first: int) -> NDArray[np.int32]:
    """The place of every row when rows from `first` on are laid out by label, in their order where it is the same."""
    place = np.arange(label.shape[0], dtype=np.int32)
    place[first + np.argsort(label[first:], kind="stable")] = np.arange(first, label.shape[0], dtype=np.int32)
    return place


def price(misses: Sequence[NDArray[Any]], *, num_rows: int, row_bytes: int, speed: DiskSpeed) -> dict[str, float]:
    """Bytes read and written for a superbatch's misses in the faster of both ways, and by direct reads, a batch."""
    shape = {"num_rows": num_rows, "row_bytes": row_bytes, "gap_bytes": speed.gap_bytes}
    sweep = read_cost(misses, **shape)
    direct = sum((read_cost([rows], **shape) for rows in misses), start=ReadCost())
    packed_bytes = sum(rows.shape[0] for rows in misses) * row_bytes
    pays = packing_pays(direct, sweep, packed_bytes=packed_bytes, speed=speed)
    num_bytes = sweep.num_bytes + 2 * packed_bytes if pays else direct.num_bytes
    return {"bytes": num_bytes / len(misses), "direct_bytes": direct.num_bytes / len(misses)}


def orders(options: Any, bench: BenchStore, *, first: int) -> dict[str, NDArray[np.int32] | None]:
    """The place of every row in each order; None where it stays."""
    csc = bench.topology("memory").relations[0]
    out_degree = np.bincount(csc.indices, minlength=bench.num_nodes)
    label = np.arange(bench.num_nodes, dtype=np.int32)
    for _ in range(ROUNDS):
        propagate(csc.indptr, csc.indices, out_degree, label)
    graph = CommunityGraph(Path(options.data), num_nodes=bench.num_nodes, num_edges=csc.indices.shape[0])
    number_of = np.empty(bench.num_nodes, dtype=np.int32)
    number_of[graph.user_ids()] = np.arange(bench.num_nodes, dtype=np.int32)
    ids = Store.open(str(graph.store)).node_column("node", "id").to_numpy()
    return {
        "hotness": None,
        "community": by_label(label, first=first),
        "planted": by_label(number_of[ids] // COMMUNITY_NODES, first=first),
    }


def main() -> None:
    """Print one JSON line: bytes a batch in each order."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--static", type=int, required=True, help="rows of the static prefix")
    parser.add_argument("--slots", type=int, required=True, help="rows of the planned region")
    options = parser.parse_args()
    spans = [(first, first + options.batches) for first in range(0, 3 * options.batches, options.batches)]
    bench = BenchStore(options)
    sampler = NeighborSampler(bench.topology("memory"), fanouts=fanouts_of(options), seed=0)
    seeds = Seeds(options, num_nodes=bench.num_nodes)
    batches = []
    for first, last in spans:
        nodes = [sampler.sample(seeds.of(step), epoch=0, step=step).nodes for step in range(first, last)]
        batches.append([rows[rows >= options.static].astype(np.int32) for rows in nodes])
    table = bench.plain(bench.features)
    shape = {"num_rows": table.shape[0], "row_bytes": table.shape[1] * table.itemsize}
    speed = disk_speed(str(Path(options.data) / "scratch"))
    residency = Residency(num_rows=table.shape[0], num_slots=options.slots)
    list(residency.plan(list(batches[0]), list(batches[1])))
    misses = [plan.miss_row for plan in residency.plan(batches[1], batches[2])]
    found = {}
    for name, place in orders(options, bench, first=options.static).items():
        moved = [rows if place is None else place[rows] for rows in misses]
        found[name] = price(moved, speed=speed, **shape)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
