"""Faults under the stream: a disk that fills, files that change, samples that wait by the thousand."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from sampling.batch import MiniBatch
from sampling.drawn import Drawn
from sampling.kept import Shelf
from sampling.open_stream import StreamSettings, open_stream
from sampling.planned_table import Packing
from sampling.sample_space import SampleSpace
from sampling.seeds import SeedOrder
from sampling.sources import ThreadSource
from service.machine_memory import anonymous_bytes
from storage.errors import BadInput, DamagedStore
from storage.scratch_file import ScratchFull
from storage.store import Store
from tests.data import small_store
from tests.laws.test_order import assert_same
from tests.laws.test_stream import LAST, Planned, plain, tables
from tests.sampling.graphs import two_type_graph
from tests.storage.damage import files_no_longer_than, flipped_byte, shortened


def test_without_room_for_packs_rows_are_read_directly_and_batches_are_the_same(tmp_path: Path) -> None:
    graph, given = two_type_graph(), tables()
    Planned(graph, given, tmp_path, packing="always").all()  # compiled kernels are files, too
    planned = Planned(graph, given, tmp_path, packing="always")
    with files_no_longer_than(4096):
        found = planned.all()
    for (mine,), theirs in zip(found, plain(graph, given), strict=True):
        assert_same(mine, theirs)
    for table in planned.tables:
        assert table.counters.packed_superbatches == 0
        assert table.counters.unpacked_superbatches == table.counters.direct_superbatches > 0
    assert list(tmp_path.iterdir()) == []


def test_without_room_for_waiting_batches_one_line_names_the_folder_and_another_one_helps(tmp_path: Path) -> None:
    graph, given = two_type_graph(), tables()
    Planned(graph, given, tmp_path / "full", packing="never", kept_bytes=0).all()
    full = Planned(graph, given, tmp_path / "full", packing="never", kept_bytes=0)
    with files_no_longer_than(4096), pytest.raises(ScratchFull, match=r"full: no room .* tiers\.scratch_folder"):
        full.all()
    other = Planned(graph, given, tmp_path / "other", packing="never", kept_bytes=0)
    for (mine,), theirs in zip(other.all(), plain(graph, given), strict=True):
        assert_same(mine, theirs)


def test_packs_that_find_no_room_need_none_beside_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sampling.sample_space.FILE_PAGES", 1)
    graph, given = two_type_graph(), tables()
    Planned(graph, given, tmp_path, packing="always", kept_bytes=0).all()
    planned = Planned(graph, given, tmp_path, packing="always", kept_bytes=0)
    with files_no_longer_than(3 * 4096):  # bundles are smaller, packs are not
        found = planned.all()
    for (mine,), theirs in zip(found, plain(graph, given), strict=True):
        assert_same(mine, theirs)
    assert planned.space.spilled_bytes > 0
    assert sum(table.counters.unpacked_superbatches for table in planned.tables) > 0


@pytest.mark.parametrize("packing", ["always", "never"])
def test_what_was_sampled_before_sampling_failed_is_served_first(tmp_path: Path, packing: Packing) -> None:
    class Breaks(ThreadSource):
        def samples(self, first_step: int, last_step: int) -> Iterator[list[Drawn]]:
            for number, drawn in enumerate(super().samples(first_step, last_step)):
                if number == 14:
                    raise BadInput("topology", "a bad page", rule="pages match", remedy="restore it")
                yield drawn

    graph, given = two_type_graph(), tables()
    planned = Planned(graph, given, tmp_path, superbatch=6, packing=packing, source=Breaks)
    served: list[MiniBatch] = []
    batches = planned.stream.batches(first_step=0, last_step=LAST)
    with pytest.raises(BadInput, match="a bad page"):
        served.extend(batch for (batch,) in batches)
    planned.stream.close()
    assert len(served) == 12  # the superbatches before the one that failed
    for mine, theirs in zip(served, plain(graph, given), strict=False):
        assert_same(mine, theirs)


def test_thousands_of_waiting_arrays_take_a_file_or_two_and_come_back_as_they_were(tmp_path: Path) -> None:
    space = SampleSpace(memory_bytes=0, folder=str(tmp_path), bundle_bytes=1)
    shelf = Shelf(space)
    arrays = [np.random.default_rng(number).integers(0, 255, 1 + 7 * number % 9000, np.uint8) for number in range(3000)]
    before = len(os.listdir("/proc/self/fd"))
    kept = [shelf.keep([array, array[::-1]]) for array in arrays]
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    for array, waiting in zip(arrays, kept, strict=True):
        forward, backward = waiting.take()
        assert np.array_equal(forward, array)
        assert np.array_equal(backward, array[::-1])
    del kept, waiting, shelf, space
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("how", ["flipped", "shortened"])
@pytest.mark.parametrize("topology", ["memory", "disk"])
def test_a_feature_file_that_changes_under_the_stream_is_named_with_its_page(
    tmp_path: Path, how: str, topology: str
) -> None:
    store = Store.open(str(small_store(tmp_path)))
    info = store.node_types[0].segments[0].features
    assert info is not None
    path = Path(store.place.local(info.name) or "")
    with ExitStack() as opened:
        found = open_stream(
            store,
            order=SeedOrder(None, num_nodes=int(store.type_offsets[-1]), seeds_per_step=4, seed=0),
            fanouts=(2,),
            seed=0,
            settings=StreamSettings(
                memory_bytes=anonymous_bytes() + (2 << 30),
                process_bytes=anonymous_bytes(),
                step_bytes=lambda _: 0,
                scratch_folder=str(tmp_path / "scratch"),
                topology="memory" if topology == "memory" else "disk",
                cache_bytes=0,
                topology_cache_bytes=0 if topology == "disk" else None,
            ),
            opened=opened,
        )
        at = path.stat().st_size - 1  # of the coldest row
        harm = flipped_byte(path, at) if how == "flipped" else shortened(path, num_bytes=at)
        with harm, pytest.raises(DamagedStore, match=rf"page {at // 4096}\b") as error:
            for _ in found.stream.batches(first_step=0, last_step=found.stream.order.steps_per_epoch):
                pass
        assert str(path) in str(error.value)
