"""Runs `hopstream` in this process and sends it SIGKILL at the Nth thing that it does to files of a folder.

    python -m tests.killed FOLDER N REPORT ingest --nodes ...

The interpreter announces whatever opens, locks, renames or removes a file, or makes a folder (its audit events).
The ones about FOLDER are counted, over all threads; the Nth is not carried out any more. With N = 0, or when there
are fewer, the command ends by itself and REPORT gets their number and the stages that this process finished.
"""

import itertools
import json
import os
import signal
import sys
from typing import Any

EVENTS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir", "os.truncate", "fcntl.flock"}
DONE = ".done.json"


def watch(folder: str, *, kill_at: int) -> dict[str, Any]:
    """Count from now on; the result is kept up to date."""
    seen: dict[str, Any] = {"events": 0, "finished": []}
    numbers = itertools.count(1)
    inside = os.path.join(os.path.abspath(folder), "")

    def concerns(event: str, arguments: tuple[Any, ...]) -> bool:
        path = arguments[0]
        if event == "fcntl.flock" or (event == "os.scandir" and isinstance(path, int)):
            return True
        if event in {"os.remove", "os.rmdir"} and arguments[-1] != -1:
            return True  # by a name in an open folder, as shutil.rmtree does
        return isinstance(path, str | os.PathLike) and os.path.join(os.path.abspath(path), "").startswith(inside)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not concerns(event, arguments):
            return
        seen["events"] = next(numbers)
        if seen["events"] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "os.rename" and str(arguments[1]).endswith(DONE):
            seen["finished"].append(os.path.basename(arguments[1]).removesuffix(DONE))

    sys.addaudithook(hook)
    return seen


def main() -> None:
    """Run the command of the arguments."""
    folder, kill_at, report, *words = sys.argv[1:]
    from service.cli import main as hopstream

    seen = watch(folder, kill_at=int(kill_at))
    sys.argv = ["hopstream", *words]
    try:
        hopstream()
    finally:
        with open(report, "w", encoding="utf-8") as file:
            json.dump(seen, file)


if __name__ == "__main__":
    main()
