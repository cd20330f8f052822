"""The block cache on disk: what it returns, what it keeps, and who may share it."""

import gc
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.arrays import read_array, write_array
from storage.block_cache import BlockCache
from storage.block_files import BlockName, CacheFull, open_block, write_block
from storage.cached_file import CachedFile, identity
from storage.errors import BadInput, DamagedStore
from storage.features import FeatureFile
from storage.open_blocks import OpenBlocks
from storage.pages import PAGE_BYTES, page_sums
from storage.place import Place
from tests.data import ROOT

BLOCK = 4 * PAGE_BYTES
CONTENT = np.random.default_rng(3).integers(0, 256, 10 * BLOCK + 5000, dtype=np.uint8)


class Slow:
    """A file whose reads are noted in a log that processes share; a whole one is read from its start to its end."""

    def __init__(self, log: Path, *, whole: bool = False) -> None:
        self.log = log
        self.whole = whole
        self.file = CachedFile(key=identity("slow", 1), num_bytes=CONTENT.shape[0], read=self._read, whole=whole)

    def _read(self, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
        with self.log.open("a") as log:
            log.write(f"{start} {stop}\n")
        if self.whole:
            start, stop = 0, CONTENT.size
        for first in range(start, stop, 7000):
            yield CONTENT[first : min(first + 7000, stop)]

    @property
    def reads(self) -> list[tuple[int, int]]:
        """(start, stop) of every read so far, by whatever process."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(int(start), int(stop)) for start, stop in map(str.split, lines)]


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    """A slow file."""
    return Slow(tmp_path / "log")


def roomy(tmp_path: Path) -> BlockCache:
    return BlockCache(str(tmp_path / "cache"), limit_bytes=1 << 20, block_bytes=BLOCK)


def content(cache: BlockCache, file: CachedFile, start: int, stop: int) -> bytes:
    data = np.zeros(stop - start, dtype=np.uint8)
    sums = cache.copy(file, data, start=start)
    assert sums.tolist() == page_sums(CONTENT)[start // PAGE_BYTES : -(-stop // PAGE_BYTES)].tolist()
    return data.tobytes()


def taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("blocks/*/*"))


def test_blocks_hold_the_bytes_of_the_file_and_are_fetched_once(tmp_path: Path, slow: Slow) -> None:
    cache = roomy(tmp_path)
    for start, stop in ((0, CONTENT.size), (BLOCK - PAGE_BYTES, BLOCK + 1), (10 * BLOCK, CONTENT.size)):
        assert content(cache, slow.file, start, stop) == CONTENT[start:stop].tobytes()
    assert slow.reads == [(0, CONTENT.size)]
    again = roomy(tmp_path)
    assert content(again, slow.file, 0, CONTENT.size) == CONTENT.tobytes()
    assert len(slow.reads) == 1
    assert (again.counters.requests, again.counters.hits, again.counters.bytes) == (11, 11, 0)
    assert cache.counters.bytes == CONTENT.size
    assert cache.counters.seconds > 0
    for one in (cache, again):
        one.close()


def test_missing_neighbours_are_joined_up_to_a_quarter_of_the_limit(tmp_path: Path, slow: Slow) -> None:
    cache = BlockCache(str(tmp_path / "cache"), limit_bytes=12 * BLOCK, block_bytes=BLOCK)
    with cache.block(slow.file, 1):
        pass
    content(cache, slow.file, 0, CONTENT.size)
    assert slow.reads[:3] == [(BLOCK, 2 * BLOCK), (0, BLOCK), (2 * BLOCK, 5 * BLOCK)]


def test_another_content_or_block_size_is_another_block(tmp_path: Path, slow: Slow) -> None:
    cache = roomy(tmp_path)
    content(cache, slow.file, 0, PAGE_BYTES)
    other = CachedFile(key=identity("slow", 2), num_bytes=CONTENT.size, read=slow.file.read)
    content(cache, other, 0, PAGE_BYTES)
    coarse = BlockCache(cache.folder, limit_bytes=1 << 20, block_bytes=2 * BLOCK)
    assert content(coarse, slow.file, 0, 2 * BLOCK) == CONTENT[: 2 * BLOCK].tobytes()
    assert len(slow.reads) == 3


def test_the_limit_holds_and_what_was_used_longest_ago_goes_first(tmp_path: Path, slow: Slow) -> None:
    cache = BlockCache(str(tmp_path / "cache"), limit_bytes=5 * BLOCK, block_bytes=BLOCK)
    paths = {}
    for number in range(4):
        with cache.block(slow.file, number) as block:
            (paths[number],) = (path for path in (tmp_path / "cache" / "blocks").rglob(str(number)))
            assert os.path.samestat(os.fstat(block.descriptor), paths[number].stat())
    for number, age in ((0, 10), (1, 30), (2, 20), (3, 5)):
        os.utime(paths[number], (1e9 - age, 1e9 - age))
    for number in (4, 5):
        with cache.block(slow.file, number):
            assert taken(tmp_path / "cache") <= 5 * BLOCK
    assert cache.counters.evicted == 2
    assert [number for number, path in paths.items() if path.exists()] == [0, 3]


def test_a_use_is_noted_so_that_a_block_in_use_outlives_others(tmp_path: Path, slow: Slow) -> None:
    cache = roomy(tmp_path)
    content(cache, slow.file, 0, BLOCK)
    (path,) = (tmp_path / "cache" / "blocks").rglob("0")
    os.utime(path, (1, 1))
    content(roomy(tmp_path), slow.file, 0, PAGE_BYTES)
    assert path.stat().st_mtime > 1


def test_a_block_opened_again_within_a_minute_is_not_noted_again(tmp_path: Path, slow: Slow) -> None:
    cache = BlockCache(str(tmp_path / "cache"), limit_bytes=12 * BLOCK, block_bytes=BLOCK)
    for number in range(8):  # more than stay open
        with cache.block(slow.file, number):
            pass
    (path,) = (tmp_path / "cache" / "blocks").rglob("0")
    os.utime(path, (1, 1))
    content(cache, slow.file, 0, PAGE_BYTES)
    assert path.stat().st_mtime == 1


def test_a_use_that_cannot_be_noted_lets_the_block_go_all_the_same(
    tmp_path: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    content(roomy(tmp_path), slow.file, 0, BLOCK)

    def refuse(descriptor: int) -> None:
        raise PermissionError("another user's")

    cache = roomy(tmp_path)
    monkeypatch.setattr(os, "utime", refuse)
    with pytest.raises(PermissionError), cache.block(slow.file, 0) as block:
        pass
    cache.distrust(slow.file, range(1))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(block.descriptor)


def test_a_block_that_turns_out_to_be_evicted_is_closed_and_forgotten(tmp_path: Path) -> None:
    name, path = BlockName("key", 0), str(tmp_path / "key" / "0")
    inode = write_block(path, name, CONTENT[:BLOCK])
    blocks = OpenBlocks(most_idle=5)
    block = open_block(path, name, BLOCK, known_inode=None)
    assert block is not None
    held = blocks.put(name, block)
    assert blocks.inode(name) == inode
    os.unlink(path)
    blocks.let_go(name, held)
    assert blocks.inode(name) is None
    assert blocks.take(name) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(block.descriptor)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_cache_that_is_dropped_closes_its_blocks(tmp_path: Path, slow: Slow) -> None:
    gc.collect()
    before = open_descriptors()
    cache = roomy(tmp_path)
    content(cache, slow.file, 0, CONTENT.size)
    assert open_descriptors() > before
    del cache
    gc.collect()
    assert open_descriptors() == before


def test_a_pickled_cache_is_one_of_the_same_folder_with_nothing_open(tmp_path: Path, slow: Slow) -> None:
    cache = roomy(tmp_path)
    content(cache, slow.file, 0, CONTENT.size)
    again = pickle.loads(pickle.dumps(cache))
    assert (again.folder, again.limit_bytes, again.block_bytes) == (cache.folder, cache.limit_bytes, cache.block_bytes)
    assert again.counters.requests == 0
    assert content(again, slow.file, 0, CONTENT.size) == CONTENT.tobytes()
    assert again.counters.hits == 11


def test_a_block_that_was_just_written_is_not_read_back(tmp_path: Path) -> None:
    def characters_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    cache = BlockCache(str(tmp_path / "cache"), limit_bytes=8 << 20)
    data = np.zeros(cache.block_bytes, dtype=np.uint8)
    file = CachedFile(key=identity("zeros"), num_bytes=data.shape[0], read=lambda _start, _stop: iter([data]))
    before = characters_read()
    with cache.block(file, 0):
        pass
    assert characters_read() - before < data.shape[0]


def test_an_evicted_block_stays_readable_where_it_is_open(tmp_path: Path, slow: Slow) -> None:
    reader = roomy(tmp_path)
    small = BlockCache(reader.folder, limit_bytes=1 << 16, block_bytes=BLOCK)
    with reader.block(slow.file, 0) as block:
        for number in range(10):
            with small.block(slow.file, number):
                pass
        assert not list((tmp_path / "cache" / "blocks").rglob("0"))
        assert os.pread(block.descriptor, BLOCK, 0) == CONTENT[:BLOCK].tobytes()
    assert small.counters.evicted > 0


@pytest.mark.parametrize("harm", ["first byte", "last page", "sums", "seal", "cut", "longer", "another's"])
def test_a_damaged_block_is_fetched_again_and_counted(tmp_path: Path, slow: Slow, harm: str) -> None:
    content(roomy(tmp_path), slow.file, 0, 2 * BLOCK)
    (path,) = (tmp_path / "cache" / "blocks").rglob("0")
    (other,) = (tmp_path / "cache" / "blocks").rglob("1")
    data = bytearray(path.read_bytes())
    places = {"first byte": 0, "last page": BLOCK - 1, "sums": BLOCK + 3, "seal": len(data) - 1}
    if harm in places:
        data[places[harm]] ^= 1
    path.write_bytes(
        {"cut": bytes(data[:-1]), "longer": bytes(data) + b"x", "another's": other.read_bytes()}.get(harm, bytes(data))
    )
    cache = roomy(tmp_path)
    assert content(cache, slow.file, 0, BLOCK) == CONTENT[:BLOCK].tobytes()
    assert cache.counters.refetched == 1
    assert slow.reads[1:] == [(0, BLOCK)]


@pytest.mark.parametrize("whole", [False, True])
def test_threads_that_want_the_same_block_fetch_it_once(tmp_path: Path, whole: bool) -> None:
    slow = Slow(tmp_path / "log", whole=whole)
    cache = roomy(tmp_path)

    def read(number: int) -> bytes:
        start = number % 3 * BLOCK
        return content(cache, slow.file, start, start + BLOCK)

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(read, range(60)))
    assert found == [CONTENT[number % 3 * BLOCK :][:BLOCK].tobytes() for number in range(60)]
    wanted = [(0, CONTENT.size)] if whole else [(number * BLOCK, (number + 1) * BLOCK) for number in range(3)]
    assert sorted(slow.reads) == wanted


@pytest.mark.parametrize("number", [0, 4, 10])
def test_a_block_that_is_gone_from_a_whole_file_is_made_again_with_all_of_it(tmp_path: Path, number: int) -> None:
    slow = Slow(tmp_path / "log", whole=True)
    content(roomy(tmp_path), slow.file, 0, CONTENT.size)
    (path,) = (tmp_path / "cache" / "blocks").rglob(str(number))
    path.unlink()
    assert content(roomy(tmp_path), slow.file, 0, CONTENT.size) == CONTENT.tobytes()
    assert slow.reads == [(0, CONTENT.size)] * 2


CHILD = """
import sys
from pathlib import Path
from tests.storage.test_block_cache import CONTENT, Slow, content, roomy
folder = Path(sys.argv[1])
assert content(roomy(folder), Slow(folder / "log").file, 0, CONTENT.size) == CONTENT.tobytes()
"""


def child(folder: Path, code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_processes_that_share_a_folder_fetch_every_block_once(tmp_path: Path, slow: Slow) -> None:
    children = [child(tmp_path, CHILD) for _ in range(3)]
    for process in children:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    covered = sorted(slow.reads)
    assert [start for start, _ in covered] == [0, *(stop for _, stop in covered[:-1])]
    assert covered[-1][1] == CONTENT.size


BUSY = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from storage.block_cache import BlockCache
from storage.cached_file import CachedFile, identity
from storage.pages import PAGE_BYTES
from tests.storage.test_block_cache import BLOCK, CONTENT, Slow, content
folder = Path(sys.argv[1])
files = [Slow(folder / "log", whole=whole).file for whole in (False, True)]
whole = CachedFile(key=identity("whole"), num_bytes=CONTENT.size, read=files[1].read, whole=True)
cache = BlockCache(str(folder / "cache"), limit_bytes=14 * BLOCK, block_bytes=BLOCK)

def work(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        start = int(rng.integers(CONTENT.size // PAGE_BYTES)) * PAGE_BYTES
        stop = int(rng.integers(start + 1, min(start + 3 * BLOCK, CONTENT.size)))
        found = content(cache, whole if rng.random() < 0.3 else files[0], start, stop)
        assert found == CONTENT[start:stop].tobytes()

with ThreadPoolExecutor(6) as pool:
    list(pool.map(work, range(6)))
print(cache.counters.evicted)
"""


def test_many_threads_of_several_processes_in_a_small_cache_never_get_wrong_bytes(tmp_path: Path) -> None:
    children = [child(tmp_path, BUSY) for _ in range(2)]
    for process in children:
        found, errors = process.communicate()
        assert process.returncode == 0, errors
        assert int(found) > 0
    assert taken(tmp_path / "cache") <= 14 * BLOCK
    assert list((tmp_path / "cache" / "reserved").iterdir()) == []
    assert list((tmp_path / "cache").rglob("*.partial")) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.storage.test_block_cache import CONTENT, Slow, roomy
from storage.cached_file import CachedFile
folder = Path(sys.argv[1])
slow = Slow(folder / "log")
def die(start, stop):
    yield CONTENT[start:start + 20000]
    os.kill(os.getpid(), signal.SIGKILL)
cache = roomy(folder)
file = CachedFile(key=slow.file.key, num_bytes=slow.file.num_bytes, read=die)
with cache.block(file, 0, last=10):
    pass
"""


def test_what_a_killed_process_left_is_cleared_and_does_not_count_for_ever(tmp_path: Path, slow: Slow) -> None:
    process = child(tmp_path, KILLED)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert list((tmp_path / "cache" / "reserved").iterdir()) != []
    cache = BlockCache(str(tmp_path / "cache"), limit_bytes=6 * BLOCK, block_bytes=BLOCK)
    assert content(cache, slow.file, 0, CONTENT.size) == CONTENT.tobytes()
    assert list((tmp_path / "cache" / "reserved").iterdir()) == []
    assert taken(tmp_path / "cache") > 3 * BLOCK


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from storage.block_cache import BlockCache
from storage.features import FeatureFile
from storage.arrays import write_array
from storage.place import Place
cache = BlockCache(str(Path(sys.argv[1]) / "cache"), limit_bytes=1 << 20, block_bytes=1 << 16)
place = Place("memory://full", block_cache=cache)
table = np.arange(80000, dtype=np.float32).reshape(-1, 8)
info = write_array(place, "features.npy", table)
features = FeatureFile(place, info, num_rows=table.shape[0], dim=8, dtype="float32")
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
rows = np.arange(0, 10000, 7)
out = np.empty((rows.shape[0], 8), dtype=np.float32)
features.gather(rows, out)
assert (out == table[rows]).all()
print(cache.counters.uncached)
"""


def test_a_disk_without_room_means_direct_reads(tmp_path: Path) -> None:
    process = child(tmp_path, FULL)
    found, errors = process.communicate()
    assert process.returncode == 0, errors
    assert int(found) > 0


def test_more_at_once_than_the_limit_is_refused(tmp_path: Path) -> None:
    slow = Slow(tmp_path / "log", whole=True)
    cache = BlockCache(str(tmp_path / "cache"), limit_bytes=1 << 16)
    assert cache.block_bytes == (1 << 16) // 8
    with pytest.raises(CacheFull, match="needed at once"), cache.block(slow.file, 0):
        pass
    assert cache.counters.uncached == 1
    assert slow.reads == []


def test_a_limit_or_folder_that_cannot_serve_is_a_clear_error(tmp_path: Path, slow: Slow) -> None:
    with pytest.raises(BadInput, match=r"limit of 1000 bytes.*at least 64 KiB"):
        BlockCache(str(tmp_path), limit_bytes=1000)
    (tmp_path / "file").write_bytes(b"")
    cache = BlockCache(str(tmp_path / "file"), limit_bytes=1 << 20)
    with pytest.raises(BadInput, match=r"file.*can be written; name another with tiers.disk_cache_folder"):
        content(cache, slow.file, 0, BLOCK)


def test_a_feature_file_elsewhere_is_read_through_blocks(tmp_path: Path) -> None:
    cache = BlockCache(str(tmp_path), limit_bytes=1 << 18)
    place = Place("memory://cached-features", block_cache=cache)
    table = np.random.default_rng(5).integers(0, 256, (20_000, 37), dtype=np.uint8)
    info = write_array(place, "features.npy", table)
    features = FeatureFile(place, info, num_rows=20_000, dim=37, dtype="uint8")
    for _ in range(3):
        rows = np.random.default_rng(6).integers(0, 20_000, 5000)
        out = np.empty((5000, 37), dtype=np.uint8)
        features.gather(rows, out)
        assert out.tobytes() == table[rows].tobytes()
    assert cache.counters.evicted > 0
    assert taken(tmp_path) <= 1 << 18
    np.testing.assert_array_equal(read_array(place, info), table)
    features.close()


def test_a_page_that_changes_in_an_open_block_is_fetched_again(tmp_path: Path) -> None:
    cache = BlockCache(str(tmp_path), limit_bytes=1 << 21)
    place = Place("memory://changing-features", block_cache=cache)
    table = np.random.default_rng(5).integers(0, 256, (5000, 100), dtype=np.uint8)
    info = write_array(place, "features.npy", table)
    features = FeatureFile(place, info, num_rows=5000, dim=100, dtype="uint8")
    rows, out = np.arange(5000), np.empty_like(table)
    features.gather(rows, out)
    for path in tmp_path.glob("blocks/*/*"):
        with path.open("r+b") as file:
            file.seek(60_000)
            file.write(b"damage")
    features.gather(rows, out)
    np.testing.assert_array_equal(out, table)
    assert cache.counters.refetched >= 1
    np.testing.assert_array_equal(read_array(place, info), table)


def test_damage_of_the_file_itself_is_never_kept(tmp_path: Path) -> None:
    cache = BlockCache(str(tmp_path), limit_bytes=1 << 21)
    place = Place("memory://harmed-features", block_cache=cache)
    info = write_array(place, "features.npy", np.zeros((5000, 100), dtype=np.uint8))
    data = bytearray(place.read_bytes("features.npy"))
    data[9000] ^= 1
    place.write_bytes("features.npy", bytes(data))
    with pytest.raises(DamagedStore, match=r"features\.npy: page 2 has changed"):
        read_array(place, info)
    assert taken(tmp_path) == 0
