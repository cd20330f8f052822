"""Seconds a batch of training data larger than memory: the stream beside DGL over maps, an LRU cache, and sweeps.

    python -m tests.benchmarks.out_of_core [--small] [--data FOLDER] [--contenders A,B] [--cases 1,2] [--json] [--save]

A generated graph (`community_graph.py`): 20 M nodes, 300 M edges, 128 float16 features, 26 GB of files in `--data`,
written once and kept. Every contender is a process of its own (`out_of_core_contenders.py`) under a memory cgroup of
0.75 GiB and the cache, its page cache included, which is dropped before it starts.

| case | fan-out | seeds | cache |
| 1 | 15,10,5 | 1024 | the topology and an eighth of the features |
| 2 | 15,10,5 | 1024 | an eighth of both |
| 3 | 10,5 | 256 | as case 1 |

Each contender is tried for a few batches in every way that its list names (in case 1 for case 2 too, which has the same
batches), then measured in the fastest: 128 batches after warm-up, fewer where they take longer than `--seconds`. One
that the cap kills is tried again with caps that grow by a quarter GiB, and reported with the first that works.
`step_over_longer_stage`: seconds of a step of GraphSAGE-256 fed by the stream, over those of the longer of both alone,
all three under 1.5 GiB and the cache; the median of three turns, and the lowest and the highest. What another order of
cold rows on disk would change is `out_of_core_order.py`.
"""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.community_graph import FEATURE_DIM, CommunityGraph
from tests.benchmarks.out_of_core_runs import (
    CASES,
    CONTENDERS,
    DATA_PATH_BYTES,
    GIB,
    SMALL_STREAM,
    Bench,
    Case,
    Contender,
    Outcome,
)
from tests.benchmarks.record import arguments, report

STEP_BYTES = GIB * 3 // 2
STEP_REPEATS = 3
"""of the runs with a step: on a busy machine one of them alone tells little"""


def figures_of(outcomes: dict[tuple[int, str], Outcome]) -> dict[str, float]:
    """Seconds a batch, caps and speed-ups of what was run."""
    figures: dict[str, float] = {}
    for (number, name), found in outcomes.items():
        ours = outcomes.get((number, "stream"))
        if ours is not None and name != "stream":
            speedup = found.line["seconds_per_batch"] / ours.line["seconds_per_batch"]
            figures[f"case{number}_speedup_over_{name}"] = speedup
    for (number, name), found in outcomes.items():
        prefix = f"case{number}_{name}"
        figures[f"{prefix}_seconds_per_batch"] = found.line["seconds_per_batch"]
        figures[f"{prefix}_batches"] = found.line["batches"]
        figures[f"{prefix}_read_mb_per_batch"] = found.line["read_bytes_per_batch"] / 1e6
        figures[f"{prefix}_cap_gib"] = found.cap_bytes / GIB
        figures[f"{prefix}_peak_gib"] = found.peak_bytes / GIB
    return figures


def stream_figures(bench: Bench, case: Case, line: dict[str, Any]) -> dict[str, float]:
    """How the stream's reads and writes compare with its plan and with the least that the trace allows."""
    superbatches = ",".join(f"{first}-{last}" for first, last in line["superbatches"])
    floor = int(bench.uncapped("out_of_core_floor", case, "--superbatches", superbatches)) + 2 * line["packed_bytes"]
    return {
        "disk_bytes_over_plan": line["disk_bytes_read"] / max(1, line["disk_bytes_planned"]),
        "disk_bytes_over_floor": line["disk_bytes_read"] / max(1, floor),
        "case1_stream_hit_rate": 1 - line["misses"] / line["requests"],
        "case1_stream_batches_per_superbatch": line["batches_per_superbatch"],
    }


def order_figures(bench: Bench, case: Case, line: dict[str, Any]) -> dict[str, float]:
    """Disk bytes with cold rows by community over those with cold rows by hotness, as the store has them."""
    table = line["split"]["tables"][0]
    rows = ("--static", str(table["num_static"]), "--slots", str(table["num_slots"]))
    batches = str(line["batches_per_superbatch"])
    orders = json.loads(bench.uncapped("out_of_core_order", case, *rows, "--batches", batches))
    figures = {}
    for name in ("community", "planted"):
        for kind in ("bytes", "direct_bytes"):
            over = orders[name][kind] / max(1, orders["hotness"][kind])
            figures[f"case{case.number}_{name}_order_{kind}_over_hotness"] = over
    return figures


def step_figures(bench: Bench, stream: Contender, case: Case) -> dict[str, float]:
    """Data alone, compute alone and both, in turn, each under the memory of both: medians, and of the ratios too."""
    modes = {"none": ("--step", "none", "--for-step"), "only": ("--step", "only"), "train": ("--step", "train")}
    runs: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(1 if bench.options.small else STEP_REPEATS):
        for name, words in modes.items():
            line = bench.best(stream, case, own_bytes=STEP_BYTES, extra=words).line
            runs[name].append(line["seconds_per_batch"])
    over = [train / max(none, only) for none, only, train in zip(*runs.values(), strict=True)]
    return {
        "step_over_longer_stage": median(over),
        "step_over_longer_stage_lowest": min(over),
        "step_over_longer_stage_highest": max(over),
        "step_seconds": median(runs["train"]),
        "step_data_alone_seconds": median(runs["none"]),
        "step_compute_alone_seconds": median(runs["only"]),
    }


def main() -> None:
    """Measure and report."""
    parser = arguments(
        __doc__ or "", small="400 k nodes, 6 M edges, an eighth of the seeds, one way for each contender"
    )
    default = os.path.join(tempfile.gettempdir(), "hopstream-bench-out-of-core")
    parser.add_argument("--data", default=default, help=f"folder for tables, arrays and store, kept; default {default}")
    parser.add_argument("--contenders", default=",".join(contender.name for contender in CONTENDERS))
    parser.add_argument("--cases", default="1,2,3")
    parser.add_argument("--seconds", type=float, default=60, help="stop a slow contender after this long on the clock")
    options = parser.parse_args()
    chosen = options.contenders.split(",")
    numbers = [int(word) for word in options.cases.split(",")]
    contenders = [contender for contender in CONTENDERS if contender.name in chosen]
    cases = [case for case in CASES if case.number in numbers]
    size = (400_000, 6_000_000) if options.small else (20_000_000, 300_000_000)
    if options.small:
        contenders = [replace(one, ways=(SMALL_STREAM,)) if one.name == "stream" else one for one in contenders]
        cases = [Case(c.number, c.fanouts, c.seeds // 8, c.topology, batches=24) for c in cases]
    folder = Path(options.data) / "small" if options.small else Path(options.data)
    bench = Bench(options, CommunityGraph(folder, num_nodes=size[0], num_edges=size[1]))
    outcomes = {(case.number, one.name): bench.best(one, case) for case in cases for one in contenders}
    figures = figures_of(outcomes)
    ours = outcomes.get((1, "stream"))
    if ours is not None:
        figures |= stream_figures(bench, cases[0], ours.line) | step_figures(bench, contenders[0], cases[0])
    for case in cases:
        if case.topology == "memory" and (case.number, "stream") in outcomes:
            figures |= order_figures(bench, case, outcomes[case.number, "stream"].line)
    config = {
        "num_nodes": size[0],
        "num_edges": size[1],
        "feature_dim": FEATURE_DIM,
        "topology_bytes": bench.topology_bytes,
        "feature_bytes": bench.feature_bytes,
        "data_path_bytes": DATA_PATH_BYTES,
        "step_bytes": STEP_BYTES,
        "cases": {case.number: [case.fanouts, case.seeds, case.topology] for case in cases},
        "ways": {f"case{number}_{name}": " ".join(found.way) for (number, name), found in outcomes.items()},
    }
    report("out_of_core", figures, config, options)
    if options.small and options.data == default:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
