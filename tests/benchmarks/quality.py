"""What pretraining is worth: the shipped recipe on Cora's public split, beside the three baselines.

    python -m tests.benchmarks.quality [--small] [--json] [--save]

Runs the `hopstream` commands as a user would, one process each. Accuracies are means over seeds in percent on the
test nodes; the recipe's settings were chosen on the validation nodes. Cora is looked for in the folder that
HOPSTREAM_DATA names, else in ../shared/data; without it there are no figures.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.record import arguments, report, say

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "service" / "recipes" / "cora_graphmae.yaml"
NUM_SEEDS = 5
BASELINES = ("random_init", "raw", "sgc")


def hopstream(*words: str) -> Any:
    """The JSON that one `hopstream` command prints; its message and exit code where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "service", *words, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    if done.returncode:
        sys.exit(f"hopstream {words[0]} ended with {done.returncode}")  # its own message stands above
    return json.loads(done.stdout)


def measure_seed(seed: int, *, folder: Path, store: Path) -> tuple[float, dict[str, dict[str, Any]]]:
    """Seconds of pretrain, embed and evaluate together, and the probes by the name of their rows."""
    overrides = [f"run.seed={seed}", f"run.name=cora-{seed}", f"run.storage={folder / 'runs'}", f"data.store={store}"]
    began = time.monotonic()
    hopstream("pretrain", str(RECIPE), *overrides)
    hopstream("embed", str(RECIPE), *overrides)
    evaluation = hopstream("evaluate", str(RECIPE), *overrides)
    seconds = time.monotonic() - began
    return seconds, {result["rows"]: result for result in evaluation["node_types"][0]["results"]}


def measure(data: Path, *, num_seeds: int, options: argparse.Namespace) -> dict[str, float]:
    """Figures over the first `num_seeds` seeds."""
    accuracies: dict[str, list[float]] = {}
    validations: list[float] = []
    seconds: list[float] = []
    with tempfile.TemporaryDirectory(prefix="hopstream-quality-") as folder:
        store = Path(folder) / "cora"
        tables = ["--nodes", str(data / "nodes.parquet"), "--edges", str(data / "edges.parquet")]
        hopstream("ingest", *tables, "--undirected", "--out", str(store))
        for seed in range(num_seeds):
            taken, probes = measure_seed(seed, folder=Path(folder), store=store)
            seconds.append(taken)
            validations.append(probes["trained"]["val_accuracy"])
            for rows, result in probes.items():
                accuracies.setdefault(rows, []).append(result["accuracy"])
            scores = ", ".join(f"{rows} {values[-1]:.1f}" for rows, values in accuracies.items())
            say(f"seed {seed}: {scores}; {taken:.0f} s", options)
    trained = statistics.fmean(accuracies["trained"])
    figures = {"cora.graphmae.probe": trained}
    figures |= {f"cora.{rows}.probe": statistics.fmean(accuracies[rows]) for rows in BASELINES}
    figures["cora.graphmae.minus_random_init"] = trained - figures["cora.random_init.probe"]
    figures["cora.graphmae.seconds_per_seed"] = max(seconds)
    figures["cora.graphmae.deviation"] = statistics.stdev(accuracies["trained"]) if num_seeds > 1 else 0.0
    figures["cora.graphmae.validation"] = statistics.fmean(validations)
    return figures


def main() -> None:
    """Measure and report."""
    options = arguments(__doc__ or "", small="one seed instead of five").parse_args()
    num_seeds = 1 if options.small else NUM_SEEDS
    data = Path(os.environ.get("HOPSTREAM_DATA", ROOT.parent / "shared" / "data")) / "cora"
    figures: dict[str, float] = {}
    if data.is_dir():
        figures = measure(data, num_seeds=num_seeds, options=options)
    else:
        print(
            f"skipped: Cora is not at {data}; set HOPSTREAM_DATA to the folder that holds it",
            file=sys.stderr,
        )
        options.save = False  # a skip must not overwrite measured figures
    report("quality", figures, {"recipe": RECIPE.name, "seeds": list(range(num_seeds))}, options)


if __name__ == "__main__":
    main()
