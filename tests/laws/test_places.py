"""Law: where a store and its features are changes nothing. The same store on a local disk, in a bucket that is
trained on directly through a block cache smaller than itself, and with its features left in Parquet: the same
weights and the same embeddings, bit for bit.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from storage.block_cache import BlockCache
from storage.place import Place
from storage.store import Store
from tests.data import small_run, write_tables
from tests.processes import result_of
from tests.s3_server import S3Server, s3

__all__ = ["s3"]

NUM_NODES = 6000
CACHE_BYTES = 256 << 10
"""of the bucket's store, whose features alone take more"""
TRAINING = {"epochs": 1, "max_steps": 6}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nodes.parquet, in several row groups, and edges.parquet."""
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder, num_nodes=NUM_NODES, num_edges=30_000)
    table = pq.read_table(folder / "nodes.parquet")
    pq.write_table(table, folder / "nodes.parquet", row_group_size=1000)
    return folder


def ingest_command(tables: Path, out: str, *more: str) -> dict[str, Any]:
    return result_of(
        "ingest", "--nodes", str(tables / "nodes.parquet"), "--edges", str(tables / "edges.parquet"), "--undirected",
        "--out", out, *more,
    )  # fmt: skip


def trained_and_embedded(folder: Path, name: str, *, store: str, **tiers: Any) -> tuple[bytes, NDArray[Any]]:
    """Final weights, and embeddings by id, of the same run on the store at `store`."""
    run = small_run(folder, name=name, data={"store": store}, training=TRAINING, tiers={"host_cache_bytes": 0, **tiers})
    status = result_of("pretrain", str(run))
    assert status["state"] == "finished"
    embedded = result_of("embed", str(run))
    newest = max((folder / "runs" / name / "checkpoints").iterdir())
    files = sorted(Path(embedded["out"]).rglob("*.parquet"))
    rows = [pq.read_table(file, columns=["id", "embedding"]) for file in files]
    ids = np.concatenate([table["id"].to_numpy() for table in rows])
    values = np.concatenate(
        [table["embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1) for table in rows]
    )
    assert ids.shape[0] == NUM_NODES
    return (newest / "model.safetensors").read_bytes(), values[np.argsort(ids)]


@pytest.fixture(scope="module")
def local(tables: Path) -> tuple[bytes, NDArray[Any]]:
    """What the store on a local disk gives."""
    ingest_command(tables, str(tables / "store"))
    return trained_and_embedded(tables, "local", store=str(tables / "store"))


def taken(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("blocks/*/*"))


def stored_bytes(store: Store) -> int:
    return sum(info.num_bytes for info in store.generation.files())


def test_a_store_in_a_bucket_gives_the_same_embeddings_through_a_cache_smaller_than_itself(
    tables: Path, local: tuple[bytes, NDArray[Any]], s3: S3Server
) -> None:
    url = s3.new_bucket("graphs") + "/deep/store"
    ingested = ingest_command(tables, url)
    assert ingested["store"] == url
    cache = tables / "cache"
    found = trained_and_embedded(
        tables, "bucket", store=url, disk_cache_bytes=CACHE_BYTES, disk_cache_folder=str(cache)
    )
    assert found[0] == local[0]
    assert found[1].tobytes() == local[1].tobytes()
    assert 0 < taken(cache) <= CACHE_BYTES
    assert_evicts(url, cache)


def assert_evicts(url: str, cache: Path) -> None:
    """Reading all of it through the same cache is right, and only possible by evicting."""
    block_cache = BlockCache(str(cache), limit_bytes=CACHE_BYTES)
    store = Store.open(url, block_cache=block_cache)
    assert stored_bytes(store) > CACHE_BYTES
    features = store.features("node")
    assert features is not None
    out = np.empty((NUM_NODES, features.dim), dtype=features.dtype)
    features.gather(np.arange(NUM_NODES), out)
    features.close()
    store.topology()
    assert block_cache.counters.evicted > 0
    assert block_cache.counters.bytes > 0
    assert taken(cache) <= CACHE_BYTES


def test_a_store_in_a_bucket_has_the_files_of_a_local_one(
    tables: Path, local: tuple[bytes, NDArray[Any]], s3: S3Server
) -> None:
    url = s3.new_bucket("same-files") + "/store"
    ingest_command(tables, url)
    here, there = Place(str(tables / "store")), Place(url)
    names = sorted(path.relative_to(tables / "store").as_posix() for path in (tables / "store").rglob("*.*"))
    kept = [name for name in names if (tables / "store" / name).is_file()]
    assert {name: there.read_bytes(name) for name in kept} == {name: here.read_bytes(name) for name in kept}
    bucket = s3.client().list_objects_v2(Bucket="same-files")["Contents"]
    assert sorted(found["Key"].removeprefix("store/") for found in bucket) == kept
    report = result_of("inspect", url)
    assert report["node_types"][0]["num_nodes"] == NUM_NODES


def test_features_left_in_parquet_give_the_same_embeddings(
    tables: Path, local: tuple[bytes, NDArray[Any]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    ingest_command(tables, str(store), "--features", "in-place")
    assert not list(store.rglob("features.*"))
    cache = tmp_path / "cache"
    found = trained_and_embedded(
        tables, "in-place", store=str(store), disk_cache_bytes=4 << 20, disk_cache_folder=str(cache)
    )
    assert found[0] == local[0]
    assert found[1].tobytes() == local[1].tobytes()
    assert taken(cache) > 0
    assert json.loads((store / "manifest.json").read_text())["generation"] == 0
