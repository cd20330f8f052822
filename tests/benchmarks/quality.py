"""What pretraining is worth: the shipped recipes on small graphs, beside the three baselines, in one table.

    python -m tests.benchmarks.quality [--small] [--all] [--rows FILE] [--json] [--save]

Runs the `hopstream` commands as a user would, one process each. A row is one graph, objective and seed: pretrain, embed
and evaluate by `service/recipes/<graph>_<objective>.yaml`. Rows are kept in `--rows` as they are done; one whose recipe
has not changed since is not done again, so a run that was cut short goes on where it was.

| figure | what it is |
| cora.graphmae.probe | accuracy of the linear probe on the test nodes in percent, mean over seeds |
| cora.graphmae.deviation, .validation, .seconds | deviation over seeds, validation accuracy, longest row |
| cora.graphmae.raw, .sgc, .random_init | the same probe on the baselines, in the same rows |

Cora and CiteSeer are probed on their public split, Photo on 3 random splits (10/10/80) a seed. Settings were chosen on
validation nodes. Graphs are looked for in the folder that HOPSTREAM_DATA names, else in ../shared/data.
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

import xxhash

from tests.benchmarks.record import RESULTS, arguments, report, say, versions

ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "service" / "recipes"
BASELINES = ("raw", "sgc", "random_init")
NUM_SEEDS = {"cora": 5, "citeseer": 3, "photo": 3}
DEFAULT = (
    ("cora", "graphmae"),
    ("cora", "bgrl"),
    ("cora", "decorr"),
    ("citeseer", "graphmae"),
    ("photo", "bgrl"),
)
MORE = (("cora", "infonce"), ("cora", "edgemask"))
OWN_SPLITS = (
    "evaluation.split=random",
    "evaluation.num_splits=3",
    "evaluation.train_fraction=0.1",
    "evaluation.val_fraction=0.1",
    "evaluation.max_test_rows=100000",
)
"""of a graph without a public split"""

Row = dict[str, Any]


def hopstream(*words: str) -> Any:
    """The JSON that one `hopstream` command prints; ends the program with its exit code where it fails."""
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


class Rows:
    """The rows that are done, in a file that is written after each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, graph: str, objective: str, seed: int) -> Row | None:
        """A row of the recipe as it is now."""
        row = self._rows.get(f"{graph}.{objective}.{seed}")
        return row if row is not None and row["recipe_xxh64"] == recipe_hash(graph, objective) else None

    def put(self, graph: str, objective: str, seed: int, row: Row) -> None:
        """Keep a row."""
        self._rows[f"{graph}.{objective}.{seed}"] = row
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(dict(sorted(self._rows.items())), indent=1) + "\n")


def recipe_of(graph: str, objective: str) -> Path:
    """The run file."""
    return RECIPES / f"{graph}_{objective}.yaml"


def recipe_hash(graph: str, objective: str) -> str:
    """Of its bytes."""
    return xxhash.xxh64_hexdigest(recipe_of(graph, objective).read_bytes())


def measure_row(graph: str, objective: str, seed: int, *, folder: Path) -> Row:
    """Pretrain, embed and evaluate; scores in percent."""
    recipe = str(recipe_of(graph, objective))
    overrides = [
        f"run.seed={seed}",
        f"run.name={graph}-{objective}-{seed}",
        f"run.storage={folder / 'runs'}",
        f"data.store={folder / graph}",
        *(OWN_SPLITS if graph == "photo" else ()),
    ]
    began = time.monotonic()
    hopstream("pretrain", recipe, *overrides)
    hopstream("embed", recipe, *overrides)
    evaluation = hopstream("evaluate", recipe, *overrides)
    found = {result["rows"]: result for result in evaluation["node_types"][0]["results"]}
    return {
        "probe": found["trained"]["accuracy"],
        "validation": found["trained"]["val_accuracy"],
        **{name: found[name]["accuracy"] for name in BASELINES},
        "seconds": time.monotonic() - began,
        "recipe_xxh64": recipe_hash(graph, objective),
        "torch": versions()["torch"],
    }


def ingest(graph: str, *, data: Path, out: Path) -> None:
    """The graph's store, once a run of this program."""
    if not out.exists():
        tables = ["--nodes", str(data / graph / "nodes.parquet"), "--edges", str(data / graph / "edges.parquet")]
        hopstream("ingest", *tables, "--undirected", "--out", str(out))


def figures_of(graph: str, objective: str, rows: list[Row]) -> dict[str, float]:
    """Means over seeds."""
    prefix = f"{graph}.{objective}"
    figures = {f"{prefix}.{name}": statistics.fmean(row[name] for row in rows) for name in ("probe", *BASELINES)}
    figures[f"{prefix}.validation"] = statistics.fmean(row["validation"] for row in rows)
    figures[f"{prefix}.deviation"] = statistics.stdev(row["probe"] for row in rows) if len(rows) > 1 else 0.0
    figures[f"{prefix}.seconds"] = max(row["seconds"] for row in rows)
    return figures


def measure(data: Path, options: argparse.Namespace) -> dict[str, float]:
    """Figures of every recipe asked for."""
    figures: dict[str, float] = {}
    recipes = DEFAULT + (MORE if options.all else ())
    kept = Rows(options.rows)
    with tempfile.TemporaryDirectory(prefix="hopstream-quality-") as name:
        folder = Path(name)
        for graph, objective in recipes[:1] if options.small else recipes:
            rows = []
            for seed in range(1 if options.small else NUM_SEEDS[graph]):
                row = kept.get(graph, objective, seed)
                if row is None:
                    ingest(graph, data=data, out=folder / graph)
                    row = measure_row(graph, objective, seed, folder=folder)
                    kept.put(graph, objective, seed, row)
                rows.append(row)
                scores = ", ".join(f"{key} {row[key]:.1f}" for key in ("probe", "validation", *BASELINES, "seconds"))
                say(f"{graph} {objective} {seed}: {scores}", options)
            figures |= figures_of(graph, objective, rows)
    return figures


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "", small="one row of one recipe")
    parser.add_argument("--all", action="store_true", help="every recipe, not only those of the default table")
    parser.add_argument(
        "--rows", type=Path, default=RESULTS / "quality_rows.json", help="where rows are kept; default %(default)s"
    )
    options = parser.parse_args()
    data = Path(os.environ.get("HOPSTREAM_DATA", ROOT.parent / "shared" / "data"))
    figures: dict[str, float] = {}
    if data.is_dir():
        figures = measure(data, options)
    else:
        print(f"skipped: no graphs at {data}; set HOPSTREAM_DATA to the folder that holds them", file=sys.stderr)
        options.save = False  # a skip must not overwrite measured figures
    report("quality", figures, {"seeds": NUM_SEEDS}, options)


if __name__ == "__main__":
    main()
