"""What every benchmark prints: one JSON object with figures, settings, machine and versions."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "dgl", "ray", "numpy", "numba", "pyarrow", "scikit-learn")
RESULTS = Path(__file__).parent / "results"


def arguments(description: str, *, small: str) -> argparse.ArgumentParser:
    """The flags that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--small", action="store_true", help=small)
    parser.add_argument("--save", action="store_true", help="also write it to tests/benchmarks/results/")
    return parser


def report(name: str, figures: dict[str, float], config: dict[str, Any], options: argparse.Namespace) -> None:
    """Print (and with --save keep) the result of a benchmark."""
    result = {
        "benchmark": name,
        "figures": figures,
        "config": config,
        "machine": machine(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        suffix = "-small" if options.small else ""
        (RESULTS / f"{name}{suffix}.json").write_text(json.dumps(result, indent=2) + "\n")
    if options.json:
        print(json.dumps(result))
        return
    for key, value in figures.items():
        print(f"{key:<40} {value:,.4g}")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "system": platform.system(),
        "processor": model,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def versions() -> dict[str, str]:
    """Python and the packages that decide speed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def say(message: str, options: argparse.Namespace) -> None:
    """A line about what goes on, on the error stream, unless `--json` asked for quiet."""
    if not options.json:
        print(message, file=sys.stderr)
