"""One contender of the ingest benchmark, in a process of its own: edges in dense ids, sorted by (dst, src), on disk.

    python -m tests.benchmarks.ingest_contenders hopstream|duckdb EDGES.parquet NUM_NODES OUT MEMORY_BYTES THREADS

Prints the seconds from the first read to the last fsync as JSON; imports and start-up are outside. hopstream writes the
CSC of the store, DuckDB a Parquet file.
"""

import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from service.process import prepare_process


def hopstream(edges: str, num_nodes: int, out: str, memory_bytes: int, threads: int) -> float:
    """The edge stages of an ingest, with ids that are rows and the order of input."""
    import numpy as np

    from storage.place import Place
    from storage.schema import Relation
    from storage.segments import write_edge_segment
    from storage.stages.budget import Budget
    from storage.stages.crew import Crew
    from storage.stages.degrees import count_degrees
    from storage.stages.edge_sort import sorted_ranges
    from storage.stages.edge_spill import EDGES_OF_THE_TABLES, open_edge_table, spill_edges
    from storage.stages.edge_view import EdgeView
    from storage.stages.executor import LocalExecutor
    from storage.stages.id_map import IdMap
    from storage.stages.runs import map_array

    began = time.perf_counter()
    relation = Relation("node", "to", "node")
    budget = Budget.checked(memory_bytes=memory_bytes, num_workers=threads, num_nodes=num_nodes)
    crew = Crew(budget=budget, executor=LocalExecutor(threads), advance=lambda _: None)
    ids = IdMap(node_type="node", kind="int64", num_nodes=num_nodes, ids_are_rows=True, index_bits=1, folder="")
    with tempfile.TemporaryDirectory(dir=out) as work:
        folders = {name: f"{work}/{name}" for name in ("spill", "degrees")}
        for folder in folders.values():
            os.mkdir(folder)
        laps = [time.perf_counter()]
        read = spill_edges(
            folders["spill"], table=open_edge_table(edges), relation=relation, sources=ids, targets=ids,
            dangling="refuse", partition=("as-is",), known=EDGES_OF_THE_TABLES, crew=crew,
        )  # fmt: skip
        laps.append(time.perf_counter())
        spill, runs = read.spill, read.partitions[0]
        view = EdgeView(relation, None, spill, "as-is")
        degrees = count_degrees(folders["degrees"], view=runs, num_sources=num_nodes, num_targets=num_nodes, crew=crew)
        laps.append(time.perf_counter())
        out_degree = map_array(degrees.out_degree, np.uint32)
        write_edge_segment(
            Place(out),
            relation=relation,
            segment=0,
            num_edges=spill.num_edges,
            num_sources=num_nodes,
            num_targets=num_nodes,
            ranges=sorted_ranges(runs, view, crew=crew),
            out_degree=[out_degree],
            has_weight=False,
            has_timestamp=False,
        )
        laps.append(time.perf_counter())
    print([round(b - a, 2) for a, b in pairwise(laps)], file=sys.stderr)
    return time.perf_counter() - began


def duckdb(edges: str, num_nodes: int, out: str, memory_bytes: int, threads: int) -> float:
    """DuckDB's external sort into one Parquet file."""
    import duckdb as engine

    del num_nodes
    path = f"{out}/sorted.parquet"
    with tempfile.TemporaryDirectory(dir=out) as work:
        database = engine.connect(
            config={"memory_limit": f"{memory_bytes}B", "threads": threads, "temp_directory": work}
        )
        began = time.perf_counter()
        database.execute(
            f"COPY (SELECT src, dst FROM read_parquet('{edges}') ORDER BY dst, src) TO '{path}' (FORMAT parquet)"
        )
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return time.perf_counter() - began


if __name__ == "__main__":
    name, edges, num_nodes, out, memory_bytes, threads = sys.argv[1:]
    Path(out).mkdir(parents=True)
    prepare_process()
    run = {"hopstream": hopstream, "duckdb": duckdb}[name]
    print(json.dumps(run(edges, int(num_nodes), out, int(memory_bytes), int(threads))))
