"""The user's Parquet files: what tells one from a changed one, and what an error while reading one means."""

import errno
import itertools
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import BadInput, DamagedStore
from storage.place import Place
from storage.source_files import describe_file, open_source, refuse_changed
from storage.tables import Table, file_states, open_table
from tests.flaky_server import between
from tests.s3_server import S3Server, s3, variables

__all__ = ["s3"]

NUM_ROWS = 1000
_numbers = itertools.count()


def write(path: Path) -> None:
    pq.write_table(pa.table({"id": np.arange(NUM_ROWS)}), path)


def opened(url: str) -> Table:
    return open_table(url, required=("id",))


def test_an_error_without_a_text_is_a_change_too(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    source = describe_file(str(tmp_path / "a.parquet"), group_rows=(NUM_ROWS,))
    with pytest.raises(DamagedStore, match=r"ArrowInvalid: no message"), open_source(source):
        raise pa.ArrowInvalid


def test_bytes_that_make_no_sense_are_a_change(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path)
    source = describe_file(str(path), group_rows=(NUM_ROWS,))
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes([255]) * 100 + data[104:])
    with pytest.raises(DamagedStore, match=r"a\.parquet: OSError"), open_source(source) as parquet:
        parquet.read()


def test_what_the_system_refuses_is_no_change(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    source = describe_file(str(tmp_path / "a.parquet"), group_rows=(NUM_ROWS,))
    with pytest.raises(OSError, match="too many") as caught, open_source(source):
        raise OSError(errno.EMFILE, "too many open files")
    assert not isinstance(caught.value, BadInput)


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, s3: S3Server, tmp_path: Path) -> str:
    """A place for tables."""
    number = next(_numbers)
    names = {"local": str(tmp_path / "tables"), "memory": f"memory://sources-{number}"}
    return names.get(request.param) or s3.new_bucket(f"sources-{number}")


def test_a_table_and_a_store_tell_a_changed_file_by_the_same(folder: str, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    place = Place(folder)
    data = (tmp_path / "a.parquet").read_bytes()
    place.write_bytes("a.parquet", data)
    table = opened(place.full("a.parquet"))
    source = describe_file(place.full("a.parquet"), group_rows=(NUM_ROWS,))
    ((*_, state),) = file_states(table)
    assert source.fingerprint in state
    refuse_changed(source)
    other = bytearray(data)
    other[10] ^= 1
    place.write_bytes("a.parquet", bytes(other))
    assert table.state(table.files[0]) != state
    with pytest.raises(DamagedStore, match="where it was"):
        refuse_changed(source)
    place.remove("a.parquet")
    with pytest.raises(BadInput, match=r"a\.parquet: .*must be there until it has been read"):
        table.state(table.files[0])


def test_the_state_of_a_file_is_asked_for_again_when_a_request_breaks(s3: S3Server, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    bucket = s3.new_bucket("breaking-state")
    Place(bucket).write_bytes("a.parquet", (tmp_path / "a.parquet").read_bytes())
    port = urlsplit(s3.endpoint).port
    assert port is not None
    with between(port) as proxy, variables({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}):
        table = opened(f"{bucket}/a.parquet")
        before = file_states(table)
        table.fs.invalidate_cache()
        proxy.moods += ["refuse", "slow down"]
        assert file_states(table) == before
        assert proxy.moods == []
