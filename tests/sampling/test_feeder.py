"""One feeder for several ranks: each gets the batches of the plain loader, whatever the others do."""

import gc
import socket
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from numpy.typing import NDArray

from sampling.fed_loader import FedLoader
from sampling.feeder import Feeder
from sampling.feeder_messages import FeedingFailed, hello
from sampling.shared_memory import FeatureMemory
from sampling.stream import Stream
from storage.errors import BadInput, DamagedStore
from tests.laws.test_stream import LAST, Planned, tables
from tests.sampling.fed_processes import FeederSpec, RankSpec, Speaking, digest
from tests.sampling.fed_threads import Feeding, connected, expected, side_by_side
from tests.sampling.graphs import two_type_graph
from tests.sampling.tables import ArrayTable

pytestmark = pytest.mark.soak
"""real processes, a minute together"""


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_get_the_batches_of_the_plain_loader(world_size: int) -> None:
    ranks = tuple(range(world_size))
    with Speaking(FeederSpec(ranks=ranks, world_size=world_size)) as feeder, ExitStack() as running:
        address = feeder.next()["address"]
        processes = [running.enter_context(Speaking(RankSpec(address=address, rank=rank))) for rank in ranks]
        for rank, process in zip(ranks, processes, strict=True):
            process.rest()
            assert process.said("error") == []
            assert process.said("batch") == expected(rank, world_size)
            (counters,) = process.said("counters")
            assert counters["serve"]["items"] == LAST
            (by_table,) = process.said("tables")
            assert by_table[0]["requests"] > 0
        feeder.rest()
        assert feeder.said("ended") == [True]
        assert feeder.process.returncode == 0


def test_the_feeder_of_one_of_several_hosts_serves_the_ranks_of_its_own(tmp_path: Path) -> None:
    feeding = Feeding(tmp_path, ranks=(2, 3), world_size=4)
    with connected(feeding, 2, 3) as loaders:
        streams = [loader.batches(first_step=0, last_step=LAST) for loader in loaders]
        seen: list[list[str]] = [[], []]
        side_by_side(*(partial(seen[n].extend, map(digest, streams[n])) for n in (0, 1)))
        assert seen == [expected(2, 4), expected(3, 4)]
    assert feeding.end() is None


def test_a_slow_rank_neither_loses_nor_reorders_batches_and_the_others_wait_for_it_only_when_its_queue_is_full(
    tmp_path: Path,
) -> None:
    feeding = Feeding(tmp_path, queue_batches=3)
    with connected(feeding, 0, 1) as (quick, slow):
        ahead = quick.batches(first_step=0, last_step=LAST)
        behind = slow.batches(first_step=0, last_step=LAST)
        begun: list[str] = []
        seen: list[str] = []
        side_by_side(
            lambda: begun.append(digest(next(behind))),
            lambda: seen.extend(digest(next(ahead)) for _ in range(3)),  # all that the slow rank has room for
        )
        rest: list[str] = []
        waiting = Thread(target=lambda: rest.extend(map(digest, ahead)))
        waiting.start()
        time.sleep(0.5)
        assert rest == []
        assert feeding.planned is not None
        assert feeding.planned.stream.counters.serve.items <= 3 + 1 + 2 + 1
        begun += map(digest, behind)
        waiting.join(60)
        assert seen + rest == expected(0, 2)
        assert begun == expected(1, 2)
    assert feeding.end() is None


def test_features_are_served_into_shared_memory_and_a_batch_stays_until_the_next_is_asked_for(tmp_path: Path) -> None:
    feeding = Feeding(tmp_path, ranks=(0,), world_size=1)
    with connected(feeding, 0) as (loader,):
        wanted = expected(0, 1)
        for number, batch in enumerate(loader.batches(first_step=0, last_step=LAST)):
            time.sleep(0.02)  # time for the feeder to overwrite it
            assert digest(batch) == wanted[number]
            assert all(table is not None and table.is_contiguous() for table in batch.features)
        assert loader.counters.wait_seconds > 0
    assert feeding.end() is None
    # few batches of memory were enough for all of them: features and structure of each, in ranges of 64 KiB
    gc.collect()
    assert feeding.feeder.memory.peak_bytes <= (2 + 2 + 3) * 3 * (64 << 10)


def test_steps_may_be_asked_for_several_times(tmp_path: Path) -> None:
    feeding = Feeding(tmp_path, ranks=(0,), world_size=1)
    with connected(feeding, 0) as (loader,):
        wanted = expected(0, 1)
        for first, last in ((5, 9), (0, 4), (7, 7), (20, LAST)):
            assert [digest(one) for one in loader.batches(first_step=first, last_step=last)] == wanted[first:last]
    assert feeding.end() is None


def test_the_feeder_ends_when_all_ranks_are_done_and_serves_those_that_are_not(tmp_path: Path) -> None:
    feeding = Feeding(tmp_path)
    with connected(feeding, 0, 1) as (early, late):
        both = [early.batches(first_step=0, last_step=LAST), late.batches(first_step=0, last_step=LAST)]
        seen: list[str] = []
        side_by_side(lambda: next(both[0]), lambda: seen.append(digest(next(both[1]))))
        both[0].close()
        seen += map(digest, both[1])
        assert seen == expected(1, 2)
    assert feeding.end() is None


def test_an_error_of_the_stream_is_raised_at_every_rank_behind_the_batches_before_it(tmp_path: Path) -> None:
    class Broken(ArrayTable):
        def gather(self, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
            if self.num_asked > 400:
                raise DamagedStore("features", "a bad page", rule="pages match", remedy="restore it")
            super().gather(rows, out)

    given = tables()
    feeding = Feeding(tmp_path, ranks=(0,), world_size=1, given=[Broken(given[0].table), given[1]])
    seen: list[str] = []
    with connected(feeding, 0) as (loader,):
        with pytest.raises(DamagedStore, match="a bad page: pages match; restore it"):
            seen.extend(digest(batch) for batch in loader.batches(first_step=0, last_step=LAST))
        assert 0 < len(seen) < LAST
        assert seen == expected(0, 1)[: len(seen)]
    assert isinstance(feeding.end(), DamagedStore)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (BadInput("tiers", "10 bytes", rule="it is enough", remedy="give more"), BadInput, "10 bytes"),
        (OSError("no such disk"), FeedingFailed, "feeder of this host has failed: OSError: no such disk"),
    ],
)
def test_every_rank_is_told_why_the_stream_could_not_be_opened(
    tmp_path: Path, error: Exception, kind: type[Exception], text: str
) -> None:
    feeding = Feeding(tmp_path, error=error)
    told: list[Exception] = []

    def connect(rank: int) -> None:
        try:
            FedLoader(feeding.feeder.address, rank=rank)
        except Exception as found:
            told.append(found)

    side_by_side(partial(connect, 0), partial(connect, 1))
    assert [type(one) for one in told] == [kind, kind]
    assert all(text in str(one) for one in told)
    if kind is FeedingFailed:
        assert "Traceback" in told[0].__notes__[0]
    assert feeding.end() is error


def test_strangers_are_sent_away_and_change_nothing(tmp_path: Path) -> None:
    feeding = Feeding(tmp_path, ranks=(0,), world_size=1)
    name, _, token = feeding.feeder.address.partition(":")
    for said in (b"{}", b"[" * 100_000, hello(rank=0, token="guess"), hello(rank=5, token=token)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.settimeout(60)
            stranger.connect(f"\0{name}")
            stranger.send(said)
            assert stranger.recv(100) == b""
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    silent.connect(f"\0{name}")
    with pytest.raises(FeedingFailed, match="does not serve rank 7"):
        FedLoader(feeding.feeder.address, rank=7)
    with connected(feeding, 0) as (loader,):
        with pytest.raises(FeedingFailed, match="has ended"):
            FedLoader(feeding.feeder.address, rank=0)  # all ranks are there: nobody listens any more
        assert [digest(batch) for batch in loader.batches(first_step=0, last_step=LAST)] == expected(0, 1)
    silent.close()
    assert feeding.end() is None


def test_a_rank_that_does_not_come_and_ranks_that_ask_for_different_steps_end_the_feeder(tmp_path: Path) -> None:
    feeding = Feeding(tmp_path, connect_seconds=0.3)
    with pytest.raises(FeedingFailed, match=r"ranks \[1\] of this host did not ask"):
        FedLoader(feeding.feeder.address, rank=0)
    assert isinstance(feeding.end(), FeedingFailed)
    feeding = Feeding(tmp_path)
    with connected(feeding, 0, 1) as loaders:
        told = []

        def ask(number: int) -> None:
            try:
                next(loaders[number].batches(first_step=number, last_step=9))
            except FeedingFailed as error:
                told.append(str(error))

        side_by_side(partial(ask, 0), partial(ask, 1))
        assert told == ["ranks of one host ask for different steps: [(0, 9), (1, 9)]"] * 2
    assert isinstance(feeding.end(), FeedingFailed)


def test_the_stream_may_serve_into_memory_of_its_own(tmp_path: Path) -> None:
    feeder = Feeder(ranks=(0,), queue_batches=2)

    def open_stream(memory: FeatureMemory, opened: ExitStack) -> Stream:
        planned = Planned(two_type_graph(), tables(), tmp_path)
        opened.callback(planned.stream.close)
        return planned.stream

    running = Thread(target=feeder.run, args=(open_stream,))
    running.start()
    loader = FedLoader(feeder.address, rank=0)
    assert [digest(batch) for batch in loader.batches(first_step=0, last_step=LAST)] == expected(0, 1)
    loader.close()
    running.join(60)
    assert not running.is_alive()
