"""Features left in Parquet: the rows that come out, what is decoded when, and sources that change."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import storage.in_place
from storage.arrays import write_array
from storage.block_cache import BlockCache
from storage.errors import BadInput, DamagedStore
from storage.feature_columns import find_feature_columns
from storage.feature_rows import convert_batch
from storage.in_place import ParquetFeatures, describe_in_place, validate_in_place
from storage.place import Place
from storage.schema import Dtype, InPlaceFeatures
from storage.tables import Table, open_table
from tests.data import ROOT
from tests.s3_server import S3Server, s3

__all__ = ["s3"]

NUM_ROWS = 5000
DIM = 24
FILES = ((0, 2000), (2000, 2000), (2000, NUM_ROWS))
"""rows of each file; one has none"""
RNG = np.random.default_rng(31)
VALUES = RNG.standard_normal((NUM_ROWS, DIM), dtype=np.float32)
POSITIONS = RNG.permutation(NUM_ROWS)
"""row of the table of each dense id"""


def write_source(folder: Path, values: NDArray[Any], *, fixed: bool = True) -> None:
    """The rows in several files of several row groups."""
    folder.mkdir(parents=True)
    for number, (first, last) in enumerate(FILES):
        flat = pa.array(values[first:last].reshape(-1))
        if fixed:
            features = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        else:
            features = pa.ListArray.from_arrays(np.arange(last - first + 1, dtype=np.int32) * values.shape[1], flat)
        rows = pa.table({"id": np.arange(first, last), "features": features})
        pq.write_table(rows, folder / f"{number}.parquet", row_group_size=700)


def opened(url: str, *names: str) -> Table:
    return open_table(url, required=("id",), optional=("features", *names))


def described(
    place: Place,
    table: Table,
    *,
    dtype: Dtype | None = None,
    named: tuple[str, ...] | None = None,
    nan: Literal["refuse", "zero"] = "refuse",
) -> InPlaceFeatures:
    """What a segment of all rows, in the order of POSITIONS, would record."""
    columns = find_feature_columns(table, named=named, dtype=dtype)
    assert columns is not None
    positions = write_array(place, "nodes/node/positions.0.npy", POSITIONS)
    return describe_in_place(table, columns, nan=nan, positions=positions)


def roomy(tmp_path: Path) -> BlockCache:
    return BlockCache(str(tmp_path / "cache"), limit_bytes=64 << 20, block_bytes=1 << 14)


def gathered(place: Place, source: InPlaceFeatures, cache: BlockCache, rows: NDArray[np.int64]) -> NDArray[Any]:
    features = ParquetFeatures(place, source, num_rows=NUM_ROWS, cache=cache)
    try:
        out = np.empty((rows.shape[0], features.dim), dtype=features.dtype)
        features.gather(rows, out)
        assert features.counters.requests == rows.shape[0]
        return out
    finally:
        features.close()


@pytest.fixture
def source(tmp_path: Path) -> tuple[Place, InPlaceFeatures]:
    """A place with positions, and the features beside it."""
    write_source(tmp_path / "nodes", VALUES)
    place = Place(str(tmp_path / "store"))
    return place, described(place, opened(str(tmp_path / "nodes")))


def test_rows_come_out_as_the_table_has_them(tmp_path: Path, source: tuple[Place, InPlaceFeatures]) -> None:
    place, in_place = source
    cache = roomy(tmp_path)
    for rows in (RNG.permutation(NUM_ROWS), RNG.integers(0, NUM_ROWS, 300), np.array([4, 4, 0]), np.empty(0, int)):
        assert gathered(place, in_place, cache, rows).tobytes() == VALUES[POSITIONS[rows]].tobytes()
    assert cache.counters.refetched == 0


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("fixed", [True, False])
def test_conversion_follows_the_rules_of_ingest(tmp_path: Path, dtype: Dtype, fixed: bool) -> None:
    write_source(tmp_path / "nodes", VALUES.astype(np.float64), fixed=fixed)
    place = Place(str(tmp_path / "store"))
    in_place = described(place, opened(str(tmp_path / "nodes")), dtype=dtype)
    found = gathered(place, in_place, roomy(tmp_path), np.arange(NUM_ROWS))
    assert found.tobytes() == VALUES.astype(np.float64)[POSITIONS].astype(dtype).tobytes()


def test_named_columns_and_zeroed_values_are_served(tmp_path: Path) -> None:
    values = VALUES[:, :3].copy()
    values[::7, 1] = np.nan
    table = pa.table({"id": np.arange(NUM_ROWS), "c": values[:, 0], "a": values[:, 1], "b": values[:, 2]})
    pq.write_table(table, tmp_path / "nodes.parquet", row_group_size=999)
    place = Place(str(tmp_path / "store"))
    opened_table = opened(str(tmp_path / "nodes.parquet"), "a", "b", "c")
    in_place = described(place, opened_table, named=("c", "a", "b"), nan="zero")
    found = gathered(place, in_place, roomy(tmp_path), np.arange(NUM_ROWS))
    assert found.tobytes() == np.nan_to_num(values)[POSITIONS].tobytes()
    columns = find_feature_columns(opened_table, named=("c", "a", "b"), dtype=None)
    assert columns is not None
    seen = list[int]()
    assert validate_in_place(opened_table, columns, nan="zero", advance=seen.append) == len(values[::7])
    assert sum(seen) == NUM_ROWS
    with pytest.raises(BadInput, match=r"column a, row 0 .*nan.*features must be finite"):
        validate_in_place(opened_table, columns, nan="refuse", advance=seen.append)


def test_a_row_group_is_decoded_once_and_outlives_the_reader(
    tmp_path: Path, source: tuple[Place, InPlaceFeatures]
) -> None:
    place, in_place = source
    first = roomy(tmp_path)
    gathered(place, in_place, first, np.arange(NUM_ROWS))
    groups = [rows for file in in_place.files for rows in file.group_rows]
    assert first.counters.bytes == sum(4096 + rows * DIM * 4 for rows in groups)
    second = roomy(tmp_path)
    gathered(place, in_place, second, np.arange(NUM_ROWS))
    assert second.counters.bytes == 0
    assert second.counters.hits == second.counters.requests


def test_only_row_groups_that_are_needed_are_decoded(tmp_path: Path, source: tuple[Place, InPlaceFeatures]) -> None:
    place, in_place = source
    cache = roomy(tmp_path)
    (row,) = np.flatnonzero(POSITIONS == 4321)
    gathered(place, in_place, cache, np.array([row]))
    assert cache.counters.bytes == 4096 + 700 * DIM * 4


def test_a_cache_smaller_than_the_features_serves_them_all(
    tmp_path: Path, source: tuple[Place, InPlaceFeatures]
) -> None:
    place, in_place = source
    cache = BlockCache(str(tmp_path / "cache"), limit_bytes=160_000, block_bytes=1 << 14)
    for _ in range(2):
        rows = RNG.permutation(NUM_ROWS)
        assert gathered(place, in_place, cache, rows).tobytes() == VALUES[POSITIONS[rows]].tobytes()
    assert cache.counters.evicted > 0
    taken = sum(path.stat().st_size for path in (tmp_path / "cache").glob("blocks/*/*"))
    assert taken <= 160_000 < VALUES.nbytes


def test_a_cache_that_cannot_hold_two_row_groups_is_refused(
    tmp_path: Path, source: tuple[Place, InPlaceFeatures]
) -> None:
    with pytest.raises(BadInput, match=r"a row group takes \d+ bytes decoded.*tiers.disk_cache_bytes"):
        ParquetFeatures(*source, num_rows=NUM_ROWS, cache=BlockCache(str(tmp_path), limit_bytes=1 << 16))


def test_a_row_group_of_which_blocks_were_evicted_is_decoded_again(
    tmp_path: Path, source: tuple[Place, InPlaceFeatures]
) -> None:
    rows = np.arange(NUM_ROWS)
    gathered(*source, roomy(tmp_path), rows)
    for path in (tmp_path / "cache").glob("blocks/*/0"):
        path.unlink()
    assert gathered(*source, roomy(tmp_path), rows).tobytes() == VALUES[POSITIONS].tobytes()


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from storage import block_cache
from storage.errors import BadInput
from storage.place import Place
from storage.schema import InPlaceFeatures
from tests.storage.test_in_place import NUM_ROWS, gathered, roomy
folder = Path(sys.argv[1])
source = InPlaceFeatures.model_validate_json((folder / "source.json").read_text())
write_block = block_cache.write_block
def write_less(path, name, data):
    # room was reserved; from the second block of each row group on the disk has none
    if name.number == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    return write_block(path, name, data)
block_cache.write_block = write_less
try:
    gathered(Place(str(folder / "store")), source, roomy(folder), np.arange(NUM_ROWS))
except BadInput as error:
    print(error)
"""


def test_a_disk_that_fills_while_row_groups_are_decoded_is_a_clear_error(
    tmp_path: Path, source: tuple[Place, InPlaceFeatures]
) -> None:
    (tmp_path / "source.json").write_text(source[1].model_dump_json())
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "free the disk" in done.stdout


def test_damage_in_a_decoded_row_group_is_decoded_again(tmp_path: Path, source: tuple[Place, InPlaceFeatures]) -> None:
    place, in_place = source
    cache = roomy(tmp_path)
    features = ParquetFeatures(place, in_place, num_rows=NUM_ROWS, cache=cache)
    rows, out = np.arange(NUM_ROWS), np.empty_like(VALUES)
    features.gather(rows, out)
    for path in (tmp_path / "cache").glob("blocks/*/1"):
        with path.open("r+b") as file:
            file.seek(5000)
            file.write(b"damage")
    out[:] = 0
    features.gather(rows, out)
    features.close()
    assert out.tobytes() == VALUES[POSITIONS].tobytes()
    assert cache.counters.refetched >= 1


@pytest.mark.parametrize("change", ["gone", "longer", "touched"])
def test_a_source_that_changed_is_refused_by_name(
    tmp_path: Path, source: tuple[Place, InPlaceFeatures], change: str
) -> None:
    path = tmp_path / "nodes" / "2.parquet"
    if change == "gone":
        path.unlink()
    elif change == "longer":
        path.write_bytes(path.read_bytes() + b"x")
    else:
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(DamagedStore, match=r"2\.parquet: .*keep the bytes that were ingested; .*ingest again"):
        ParquetFeatures(*source, num_rows=NUM_ROWS, cache=roomy(tmp_path))


def test_a_source_replaced_after_it_was_opened_is_refused(
    tmp_path: Path, source: tuple[Place, InPlaceFeatures]
) -> None:
    place, in_place = source
    cache = roomy(tmp_path)
    features = ParquetFeatures(place, in_place, num_rows=NUM_ROWS, cache=cache)
    out = np.empty((1, DIM), dtype=np.float32)
    features.gather(np.flatnonzero(POSITIONS == 2001), out)
    shutil.move(tmp_path / "nodes", tmp_path / "kept")
    write_source(tmp_path / "nodes", VALUES + 1)
    with pytest.raises(DamagedStore, match=r"2\.parquet: .*keep the bytes that were ingested"):
        features.gather(np.flatnonzero(POSITIONS == 4001), out)
    features.close()
    shutil.rmtree(tmp_path / "nodes")
    shutil.move(tmp_path / "kept", tmp_path / "nodes")
    rows = np.arange(NUM_ROWS)
    assert gathered(place, in_place, cache, rows).tobytes() == VALUES[POSITIONS].tobytes()


def test_nothing_of_a_source_replaced_while_it_is_read_is_kept(
    tmp_path: Path, source: tuple[Place, InPlaceFeatures], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, in_place = source
    monkeypatch.setattr(storage.in_place, "BATCH_BYTES", 4 * DIM * 200)
    kept = tmp_path / "kept"

    def convert_late(*args: Any, **kwargs: Any) -> Any:
        if not kept.exists():
            shutil.copytree(tmp_path / "nodes", kept)
            for path in kept.iterdir():  # written over, so that an open file has other bytes
                (tmp_path / "nodes" / path.name).write_bytes(path.read_bytes())
        return convert_batch(*args, **kwargs)

    monkeypatch.setattr(storage.in_place, "convert_batch", convert_late)
    with pytest.raises(DamagedStore, match=r"\.parquet: .*keep the bytes that were ingested"):
        gathered(place, in_place, roomy(tmp_path), np.flatnonzero(POSITIONS == 4001))
    held = [path.stat().st_size for path in (tmp_path / "cache").glob("blocks/*/*")]
    assert held == []


def test_another_footer_behind_the_same_size_and_time_is_refused(
    tmp_path: Path, source: tuple[Place, InPlaceFeatures]
) -> None:
    place, in_place = source
    path = tmp_path / "nodes" / "2.parquet"
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DamagedStore, match=r"2\.parquet: another Parquet footer"):
        gathered(place, in_place, roomy(tmp_path), np.arange(NUM_ROWS))


def test_the_description_survives_json(source: tuple[Place, InPlaceFeatures]) -> None:
    assert InPlaceFeatures.model_validate_json(source[1].model_dump_json()) == source[1]
    assert [file.num_rows for file in source[1].files] == [2000, 3000]


CHILD = """
import sys
from pathlib import Path
import numpy as np
from storage.place import Place
from storage.schema import InPlaceFeatures
from tests.storage.test_in_place import NUM_ROWS, gathered, roomy
folder = Path(sys.argv[1])
source = InPlaceFeatures.model_validate_json((folder / "source.json").read_text())
cache = roomy(folder)
gathered(Place(str(folder / "store")), source, cache, np.arange(NUM_ROWS))
print(cache.counters.bytes)
"""


def test_processes_that_share_the_cache_decode_every_row_group_once(
    tmp_path: Path, source: tuple[Place, InPlaceFeatures]
) -> None:
    (tmp_path / "source.json").write_text(source[1].model_dump_json())
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=-1
        )
        for _ in range(2)
    ]
    decoded = 0
    for process in children:
        found, errors = process.communicate()
        assert process.returncode == 0, errors
        decoded += int(found)
    groups = [rows for file in source[1].files for rows in file.group_rows]
    assert decoded == sum(4096 + rows * DIM * 4 for rows in groups)


@pytest.fixture(params=["memory", "s3"])
def elsewhere(request: pytest.FixtureRequest, s3: S3Server) -> str:
    """A URL that is not this machine's disk."""
    return "memory://in-place" if request.param == "memory" else s3.new_bucket("in-place") + "/folder"


def test_features_may_stay_in_a_bucket(tmp_path: Path, elsewhere: str) -> None:
    write_source(tmp_path / "nodes", VALUES)
    place = Place(elsewhere)
    for path in (tmp_path / "nodes").iterdir():
        place.write_bytes(f"nodes/{path.name}", path.read_bytes())
    shutil.rmtree(tmp_path / "nodes")
    in_place = described(place, opened(elsewhere + "/nodes"))
    rows = RNG.permutation(NUM_ROWS)
    assert gathered(place, in_place, roomy(tmp_path), rows).tobytes() == VALUES[POSITIONS[rows]].tobytes()
    place.write_bytes("nodes/0.parquet", place.read_bytes("nodes/2.parquet"))
    with pytest.raises(DamagedStore, match=r"0\.parquet: .*ingest again"):
        ParquetFeatures(place, in_place, num_rows=NUM_ROWS, cache=roomy(tmp_path))
