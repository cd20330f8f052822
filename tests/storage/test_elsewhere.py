"""Tables and stores that are not on this machine's disk: in memory, and in a bucket."""

import itertools
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from storage.block_cache import BlockCache
from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.place import Place
from storage.schema import Generation
from storage.store import Store
from storage.tables import open_table
from tests.data import write_tables
from tests.flaky_server import Mood, between
from tests.s3_server import S3Server, s3, variables

__all__ = ["s3"]

_numbers = itertools.count()


@pytest.fixture(params=["memory", "s3"])
def elsewhere(request: pytest.FixtureRequest, s3: S3Server) -> str:
    """A URL under which there is nothing yet."""
    number = next(_numbers)
    return f"memory://elsewhere-{number}" if request.param == "memory" else s3.new_bucket(f"elsewhere-{number}")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local tables, and a store of them."""
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder)
    ingested(str(folder), str(folder / "store"))
    return folder


def ingested(tables: str, out: str) -> Generation:
    settings = IngestSettings(
        nodes={"node": f"{tables}/nodes.parquet"}, edges={"node:to:node": f"{tables}/edges.parquet"}, undirected=True
    )
    return ingest(settings, out=out)


def test_tables_and_store_may_both_be_elsewhere(tables: Path, elsewhere: str, tmp_path: Path) -> None:
    inputs = Place(elsewhere).child("input")
    for name in ("nodes.parquet", "edges.parquet"):
        inputs.write_bytes(name, (tables / name).read_bytes())
    generation = ingested(inputs.url, elsewhere + "/store")
    here = Store.open(str(tables / "store"))
    assert generation.node_types == here.generation.node_types
    assert generation.relations == here.generation.relations
    for cache in (None, BlockCache(str(tmp_path), limit_bytes=1 << 16)):
        there = Store.open(elsewhere + "/store", block_cache=cache)
        found, wanted = there.topology(), here.topology()
        for one, other in zip(found.relations, wanted.relations, strict=True):
            np.testing.assert_array_equal(one.indptr, other.indptr)
            np.testing.assert_array_equal(one.indices, other.indices)
        assert there.node_column("node", "id").to_pylist() == here.node_column("node", "id").to_pylist()
        for store in (there, here):
            features = store.features("node")
            assert features is not None
            out = np.empty((300, features.dim), dtype=features.dtype)
            features.gather(np.arange(300), out)
            features.close()
            if store is there:
                kept = out
        assert kept.tobytes() == out.tobytes()
        assert cache is None or cache.counters.requests > 0


def test_tables_in_a_bucket_are_read_although_requests_break(tables: Path, s3: S3Server) -> None:
    bucket = s3.new_bucket("breaking")
    for name in ("nodes.parquet", "edges.parquet"):
        Place(bucket).write_bytes(name, (tables / name).read_bytes())
    port = urlsplit(s3.endpoint).port
    assert port is not None
    with between(port) as proxy, variables({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}):
        moods: list[Mood] = ["refuse", "slow down", "cut"]
        proxy.moods += moods
        opened = open_table(f"{bucket}/nodes.parquet", required=("id",))
        proxy.moods += moods
        read = [row for _, batch in opened.batches(["id"], max_rows=100) for row in batch.column(0).to_pylist()]
        assert read == list(range(0, 3000, 10))
        assert proxy.moods == []


def test_a_table_that_is_not_there_or_not_reachable_is_one_clear_line(s3: S3Server) -> None:
    with pytest.raises(BadInput, match=r"s3://no-such-bucket/nodes\.parquet: no file matches"):
        open_table("s3://no-such-bucket/nodes.parquet", required=("id",))
