"""Our own contender: the planned stream, with what it planned, read and wrote.

With `--step train` every batch goes through a step of GraphSAGE-256; `--step only` repeats that step on one batch that
stays in memory. Superbatches are timed whole.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch

from sampling.batch import MiniBatch
from sampling.open_stream import OpenStream, StreamSettings, open_stream
from sampling.seeds import SeedOrder
from service.machine_memory import anonymous_bytes
from storage.store import Store
from tests.benchmarks.contender import BenchStore, Served, arguments, fanouts_of, run
from tests.benchmarks.disk_io import disk_bytes

GIB = 1 << 30
SLACK_BYTES = 40 << 20
"""file pages of libraries, which count against the cap too"""
HIDDEN_DIM = 256
STEP_BYTES = 800 << 20


def open_bench(options: argparse.Namespace, opened: ExitStack) -> OpenStream:
    """The stream as the case asks for it."""
    store = Store.open(os.path.join(options.data, "store"))
    own_gib = options.own_gib or (0.75 if options.step == "none" and not options.for_step else 1.5)
    return open_stream(
        store,
        order=SeedOrder(None, num_nodes=int(store.type_offsets[-1]), seeds_per_step=options.seeds, seed=0),
        fanouts=fanouts_of(options),
        seed=0,
        settings=StreamSettings(
            memory_bytes=int(own_gib * GIB) - SLACK_BYTES + options.cache_bytes + options.topology_bytes,
            process_bytes=anonymous_bytes(),
            step_bytes=lambda _: STEP_BYTES if own_gib > 1 else 0,
            scratch_folder=os.path.join(options.data, "scratch"),
            topology=options.topology,
            cache_bytes=options.cache_bytes,
            topology_cache_bytes=options.topology_bytes if options.topology == "disk" else None,
            num_threads=options.threads or 1,
            batches_per_superbatch=options.superbatch,
            packing=options.packing,
        ),
        opened=opened,
    )


def sage_step(found: OpenStream, store: Store) -> Callable[[MiniBatch], None]:
    """One step of a three-layer GraphSAGE: forward, backward, Adam."""
    from service.encoders import EncoderConfig, Nodes, make_encoder
    from service.schema import GraphSchema

    encoder = make_encoder(
        EncoderConfig(name="sage", num_layers=3, hidden_dim=HIDDEN_DIM), schema=GraphSchema.from_store(store)
    )
    optimizer = torch.optim.Adam(encoder.parameters())

    def step(batch: MiniBatch) -> None:
        h = encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree)
        out = encoder(h, list(reversed(batch.hops)), Nodes.of(batch))
        loss = out[: batch.num_seeds].square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


class Ledger:
    """What the stream has planned and the kernel has counted, at the ends of superbatches."""

    def __init__(self, found: OpenStream, warmup: int) -> None:
        self._found = found
        self._began = disk_bytes("read_bytes", "write_bytes")
        self._warmup = warmup
        self.warm: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.superbatches: list[tuple[int, int]] = []

    def close_superbatch(self, first: int, last: int) -> None:
        """One more superbatch has been served."""
        stream = self._found.stream
        table = stream.tables[0]
        assert table is not None
        counters = table.counters
        now = {
            "disk_bytes_read": disk_bytes("read_bytes", "write_bytes") - self._began,
            "disk_bytes_planned": counters.planned_read_bytes
            + counters.planned_sweep_bytes
            + 2 * (counters.packed_bytes + stream.space.spilled_bytes),
            "packed_bytes": counters.packed_bytes,
            "requests": counters.requests,
            "misses": counters.misses,
        }
        if last <= self._warmup or not self.warm:
            self.warm = now
        else:
            self.superbatches.append((first, last))
        self.last = now

    def result(self) -> dict[str, Any]:
        """From the end of the warm-up to the end."""
        spent = {name: self.last[name] - self.warm[name] for name in self.last}
        return {**spent, "superbatches": self.superbatches}


def main() -> None:
    """Run it."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--own-gib", type=float, default=0.0, help="memory beside the caches; by default the case's")
    parser.add_argument("--step", choices=("none", "train", "only"), default="none")
    parser.add_argument("--for-step", action="store_true", help="the memory of a step, also where there is none")
    parser.add_argument("--superbatch", type=int, default=None, help="batches of a superbatch; by default from memory")
    parser.add_argument("--packing", choices=("auto", "always", "never"), default="auto")
    options = parser.parse_args()
    bench = BenchStore(options)
    with ExitStack() as opened:
        found = open_bench(options, opened)
        stream = found.stream
        sizes = list(stream.superbatches(0, 1 << 20))
        # whole superbatches are timed, the first ones, which are smaller, are not
        full = next(number for number, (first, last) in enumerate(sizes) if last - first == sizes[20][1] - sizes[20][0])
        options.warmup = max(options.warmup, sizes[full][1])
        ends = {last - 1: (first, last) for first, last in sizes}
        ledger = Ledger(found, options.warmup)
        store = Store.open(os.path.join(options.data, "store"))
        step = None if options.step == "none" else sage_step(found, store)

        def served() -> Iterator[Served]:
            for number, (batch,) in enumerate(stream.batches(first_step=0, last_step=1 << 20)):
                features = batch.features[0]
                assert features is not None
                if step is not None:
                    step(batch)
                if number in ends:
                    ledger.close_superbatch(*ends[number])
                while options.step == "only":
                    assert step is not None
                    yield Served(nodes=batch.node_id.numpy(), features=features.numpy())
                    step(batch)
                yield Served(nodes=batch.node_id.numpy(), features=features.numpy(), ends_group=number in ends)

        def more() -> dict[str, Any]:
            return {
                **({} if options.step == "only" else ledger.result()),
                "batches_per_superbatch": options.superbatch or found.split.batches_per_superbatch,
                "split": json.loads(json.dumps(asdict(found.split))),
                "stages": {
                    name: asdict(getattr(stream.counters, name)) for name in ("sample", "plan", "pack", "read", "serve")
                },
                "wait_seconds": stream.counters.wait_seconds,
                "anonymous_bytes": anonymous_bytes(),
            }

        run("stream", options, served(), plain=lambda: bench.plain(bench.features), more=more)


if __name__ == "__main__":
    main()
