"""Real `hopstream` processes: run to the end, or killed at a moment that a condition names."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.data import ROOT

LIMIT_SECONDS = 240.0


def hopstream(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def result_of(*arguments: str) -> dict[str, Any]:
    """Run a command with --json; its object. Fails with its error output when the command fails."""
    done = hopstream(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a command in the background, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "service", *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], *, process: "subprocess.Popen[str] | None" = None) -> None:
    """Return when `condition` holds; fails when it never does, or when the process that should see to it has ended."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert process is None or process.poll() is None, f"ended before: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def environment() -> dict[str, str]:
    """The caller's, with the checkout importable from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
