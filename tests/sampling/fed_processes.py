"""A feeder and ranks as processes of their own, which print a line of JSON for whatever happens to them.

python -m tests.sampling.fed_processes feeder '{"ranks": [0, 1], "world_size": 2}'
python -m tests.sampling.fed_processes rank '{"address": "...", "rank": 0}'
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from sampling.batch import MiniBatch
from sampling.fed_loader import FedLoader
from sampling.feeder import Feeder
from sampling.shared_memory import FeatureMemory
from sampling.stream import Stream
from tests.data import ROOT
from tests.laws.test_stream import Planned, tables
from tests.processes import environment
from tests.sampling.graphs import two_type_graph

SECONDS = 120.0


@dataclass(frozen=True)
class FeederSpec:
    """What a feeder process serves: the two-type graph of the stream's own tests."""

    ranks: tuple[int, ...]
    world_size: int
    queue_batches: int = 2
    dim: int = 16
    """of the first type's features"""
    wait_seconds: float = 0.0
    """before the stream is open"""


@dataclass(frozen=True)
class RankSpec:
    """What a rank process asks for."""

    address: str
    rank: int
    first: int = 0
    last: int = 22
    work_seconds: float = 0.0
    """with each batch"""


def digest(value: Any) -> str:
    """Of everything that a batch holds: names, types, shapes, bytes."""
    hashed = xxhash.xxh64()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            hashed.update(f"{part.dtype} {tuple(part.shape)}".encode())
            hashed.update(np.ascontiguousarray(part.numpy()).reshape(-1).view(np.uint8).tobytes())
        elif is_dataclass(part):
            for one in fields(part):
                hashed.update(one.name.encode())
                add(getattr(part, one.name))
        elif isinstance(part, tuple):
            hashed.update(str(len(part)).encode())
            for one in part:
                add(one)
        else:
            hashed.update(repr(part).encode())

    add(value)
    return hashed.hexdigest()


def digests(batches: list[MiniBatch]) -> list[str]:
    return [digest(batch) for batch in batches]


def run_feeder(spec: FeederSpec) -> None:
    feeder = Feeder(ranks=spec.ranks, queue_batches=spec.queue_batches)
    say({"address": feeder.address})

    def open_stream(memory: FeatureMemory, opened: ExitStack) -> Stream:
        time.sleep(spec.wait_seconds)
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        given = tables(spec.dim)
        planned = Planned(
            two_type_graph(), given, Path(folder), ranks=spec.ranks, world_size=spec.world_size, memory=memory
        )
        opened.callback(planned.stream.close)
        return planned.stream

    feeder.run(open_stream)
    say({"ended": True, "peak_bytes": feeder.memory.peak_bytes})


def run_rank(spec: RankSpec) -> None:
    loader = FedLoader(spec.address, rank=spec.rank)
    say({"connected": spec.rank})
    for batch in loader.batches(first_step=spec.first, last_step=spec.last):
        time.sleep(spec.work_seconds)
        say({"batch": digest(batch)})
    say(
        {"counters": asdict(loader.counters), "tables": [None if one is None else asdict(one) for one in loader.tables]}
    )
    loader.close()


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


class Speaking:
    """A process of this module, and what it has said so far."""

    def __init__(self, spec: FeederSpec | RankSpec, *, wrap: tuple[str, ...] = ()) -> None:
        role = "feeder" if isinstance(spec, FeederSpec) else "rank"
        self.process = subprocess.Popen(
            [*wrap, sys.executable, "-m", "tests.sampling.fed_processes", role, json.dumps(asdict(spec))],
            cwd=ROOT,
            env={**environment(), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lines: list[dict[str, Any]] = []

    def next(self) -> dict[str, Any]:
        """The next thing that it says; fails when it has ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"ended with {self.process.wait()} after {self.lines}"
        self.lines.append(json.loads(line))
        return self.lines[-1]

    def rest(self) -> list[dict[str, Any]]:
        """All that it says until it ends, what it said before included."""
        output, _ = self.process.communicate(timeout=SECONDS)
        self.lines += [json.loads(line) for line in output.splitlines()]
        return self.lines

    def said(self, key: str) -> list[Any]:
        """What it has said under a key."""
        return [line[key] for line in self.lines if key in line]

    def __enter__(self) -> "Speaking":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def main() -> None:
    role, given = sys.argv[1], json.loads(sys.argv[2])
    try:
        if role == "feeder":
            run_feeder(FeederSpec(**{**given, "ranks": tuple(given["ranks"])}))
        else:
            run_rank(RankSpec(**given))
    except Exception as error:
        say({"error": type(error).__name__, "text": str(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
