"""One contender of the out-of-core benchmark in a process of its own; prints one JSON line.

    python -m tests.benchmarks.out_of_core_contenders NAME --data FOLDER --cache-bytes BYTES [--fanouts 15,10,5]
        [--seeds 1024] [--batches N] [--warmup M] [--topology memory|disk] [--threads T] [--check]

NAME is one of the keys of MODULES; every module has a `main` that reads this command line (`contender.arguments`).
"""

import importlib
import os
import sys

from service.process import THREAD_SETTINGS

MODULES = {
    "stream": "tests.benchmarks.contender_stream",
    "dgl_mmap": "tests.benchmarks.contender_dgl",
    "direct_lru": "tests.benchmarks.contender_lru",
    "sweep": "tests.benchmarks.contender_sweep",
}


def main() -> None:
    """Run the contender that the command line names."""
    if len(sys.argv) < 2 or sys.argv[1] not in MODULES:
        sys.exit(f"name one of the contenders: {', '.join(MODULES)}")
    name = sys.argv.pop(1)
    if "--step" in sys.argv:
        os.environ |= THREAD_SETTINGS  # as commands that train do; freed memory goes back, since the cap counts it
    importlib.import_module(MODULES[name]).main()


if __name__ == "__main__":
    main()
