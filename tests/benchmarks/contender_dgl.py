"""`dgl_mmap`: DGL's own DataLoader and NeighborSampler over memory-mapped files, as users of DGL write it.

    python -m tests.benchmarks.out_of_core_contenders dgl_mmap --data FOLDER --cache-bytes 0 [...]

Made fair: int32 ids throughout, and MADV_RANDOM on every map, without which the kernel reads ahead megabytes for every
row. The page cache, inside the cap, is its cache. DGL takes the arrays as they are, without a copy; it looks at all
indices once for their largest, which is before the warm-up. `--topology memory` reads them into memory instead. The
sampler is not the fused one: that of dgl 1.1.3 drops most neighbours of int32 graphs from its second batch on.
`--threads` are those of torch, which gather (each waits for its own page faults), `--workers` processes that sample.
"""

import argparse
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.contender import Seeds, Served, advise_random, arguments, end_without_memory, fanouts_of, run


def batches(options: argparse.Namespace, features_NF: NDArray[Any]) -> Iterator[Served]:
    """Batches in step order."""
    os.environ.setdefault("DGLBACKEND", "pytorch")
    warnings.filterwarnings("ignore")  # of dgl 1.1.3, about newer versions of what it depends on
    import dgl
    import torch

    torch.set_num_threads(options.threads)
    indptr, indices = (_topology(options, name) for name in ("indptr", "indices"))
    no_edge_ids = torch.empty(0, dtype=torch.int32)
    graph = dgl.graph(("csc", (torch.from_numpy(indptr), torch.from_numpy(indices), no_edge_ids)))
    graph = graph.formats("csc")
    if options.topology == "disk":
        advise_random(indptr)
        advise_random(indices)
    features = torch.from_numpy(features_NF)
    seeds = Seeds(options, num_nodes=features.shape[0])
    num_steps = options.warmup + options.batches
    order = np.concatenate([seeds.of(step) for step in range(num_steps)]).astype(np.int32)
    loader = dgl.dataloading.DataLoader(
        graph,
        torch.from_numpy(order),
        dgl.dataloading.NeighborSampler(list(reversed(fanouts_of(options))), fused=False),
        batch_size=options.seeds,
        shuffle=False,
        num_workers=options.workers,
    )
    for input_nodes, _, _ in loader:
        rows = torch.index_select(features, 0, input_nodes)
        yield Served(nodes=input_nodes.numpy(), features=rows.numpy())


def _topology(options: argparse.Namespace, name: str) -> NDArray[Any]:
    path = Path(options.data) / f"{name}.npy"
    found: NDArray[Any] = np.load(path, mmap_mode=None if options.topology == "memory" else "c")
    return found


def main() -> None:
    """Run it."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--workers", type=int, default=0, help="processes that sample")
    options = parser.parse_args()
    options.threads = options.threads or 2
    path = Path(options.data) / "features.npy"
    features_NF = np.load(path, mmap_mode="c")
    advise_random(features_NF)
    try:
        run("dgl_mmap", options, batches(options, features_NF), plain=lambda: features_NF)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        end_without_memory(error)
