import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from storage.errors import BadInput, DamagedStore
from storage.store import Column, Store
from tests.storage.damage import flipped_byte, missing, shortened
from tests.storage.two_segments import CITES, WRITES, WRITTEN_BY, Contents, write_two_segments

RNG = np.random.default_rng(19)
COLUMNS: list[tuple[str, Column]] = [
    ("author", "timestamp"),
    ("author", "position"),
    ("paper", "label"),
    ("paper", "split"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    """A store of two segments; tests that harm it mend it again."""
    folder = tmp_path_factory.mktemp("store")
    return folder, write_two_segments(str(folder))


def assert_holds(store: Store, contents: Contents) -> None:
    """The store returns all that was written; reads every page of it."""
    topology = store.topology()
    for relation, info in zip(topology.relations, store.relations, strict=True):
        edges = contents.edges[relation.relation]
        num_targets, num_sources = (store.num_nodes(name) for name in (info.relation[2], info.relation[0]))
        in_degree = np.bincount([edge.target for edge in edges], minlength=num_targets)
        out_degree = np.bincount([edge.source for edge in edges], minlength=num_sources)
        assert relation.indptr.tolist() == [0, *np.cumsum(in_degree).tolist()]
        assert relation.indices.tolist() == [edge.source for edge in edges]
        assert relation.out_degree.tolist() == out_degree.tolist()
        if relation.weight is not None:
            assert relation.weight.tolist() == [edge.weight for edge in edges]
        if relation.timestamp is not None:
            assert relation.timestamp.tolist() == [edge.time for edge in edges]
    for name, plain in contents.features.items():
        features = store.features(name)
        assert features is not None
        try:
            rows = RNG.permutation(plain.shape[0])
            out = np.empty_like(plain)
            features.gather(rows, out)
        finally:
            features.close()
        np.testing.assert_array_equal(out, plain[rows])
    for name, ids in contents.ids.items():
        assert store.node_column(name, "id").to_pylist() == ids
        rows = RNG.permutation(len(ids))[:50]
        assert store.rows_of(name, pa.array([ids[row] for row in rows])).tolist() == rows.tolist()
    for name, column in COLUMNS:
        assert store.node_column(name, column).to_pylist() == contents.columns[name, column]


def test_a_store_of_two_segments_reads_as_one(written: tuple[Path, Contents]) -> None:
    folder, contents = written
    store = Store.open(str(folder))
    assert store.type_offsets.tolist() == [0, 1000, 2400]
    assert [store.type_index(name) for name in ("author", "paper")] == [0, 1]
    assert store.generation.generation == 1
    topology = store.topology()
    assert [relation.relation for relation in topology.relations] == [WRITES, WRITTEN_BY, CITES]
    assert [(r.source_type, r.target_type) for r in topology.relations] == [(0, 1), (1, 0), (1, 1)]
    assert [r.weight is None for r in topology.relations] == [True, False, False]
    assert [r.timestamp is None for r in topology.relations] == [True, True, False]
    assert_holds(store, contents)


def test_a_store_may_be_elsewhere_than_on_a_local_disk() -> None:
    contents = write_two_segments("memory://store-elsewhere")
    assert_holds(Store.open("memory://store-elsewhere"), contents)


def test_an_earlier_generation_can_be_opened(written: tuple[Path, Contents]) -> None:
    folder, contents = written
    store = Store.open(str(folder), generation=0)
    assert store.type_offsets.tolist() == [0, 700, 1200]
    assert store.node_column("author", "id").to_pylist() == contents.ids["author"][:700]
    for relation in store.topology().relations:
        first = [edge for edge in contents.edges[relation.relation] if edge.segment == 0]
        assert relation.indices.tolist() == [edge.source for edge in first]
    with pytest.raises(BadInput, match=r"no generation 7: generations of this store: 0, 1;"):
        Store.open(str(folder), generation=7)


def test_plain_libraries_read_every_file(written: tuple[Path, Contents]) -> None:
    folder, contents = written
    parts = [pq.read_table(folder / f"nodes/paper/ids.{segment}.parquet") for segment in (0, 1)]
    assert [id for part in parts for id in part["id"].to_pylist()] == contents.ids["paper"]
    parts_npy = [np.load(folder / f"nodes/author/features.{segment}.npy") for segment in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts_npy), contents.features["author"])
    for path in folder.rglob("*.npy"):
        assert np.load(path).ndim in (1, 2)
    manifest = json.loads((folder / "manifest.json").read_text())
    generation = (folder / manifest["generation_file"]).read_bytes()
    assert xxhash.xxh64_hexdigest(generation) == manifest["generation_xxh64"]
    for info in _infos(json.loads(generation)):
        raw = (folder / info["name"]).read_bytes()
        assert len(raw) == info["num_bytes"]
        sums = np.load(folder / (info["name"].rpartition(".")[0] + ".sums.npy"))
        assert info["sums_xxh64"] == xxhash.xxh64_hexdigest(sums.tobytes())
        assert sums.tolist() == [xxhash.xxh64_intdigest(raw[at : at + 4096]) >> 32 for at in range(0, len(raw), 4096)]


def test_ids_stream_in_dense_order(written: tuple[Path, Contents]) -> None:
    folder, contents = written
    batches = list(Store.open(str(folder)).id_batches("author", rows_per_batch=128))
    assert max(len(batch) for batch in batches) <= 128
    assert [id for batch in batches for id in batch.to_pylist()] == contents.ids["author"]


def test_rows_are_found_for_repeated_ids_of_any_fitting_type(written: tuple[Path, Contents]) -> None:
    folder, contents = written
    store = Store.open(str(folder))
    ids = contents.ids["author"]
    wanted = pa.chunked_array([[ids[900]], [ids[3], ids[900]]], type=pa.large_string())
    assert store.rows_of("author", wanted).tolist() == [900, 3, 900]
    small = [number for number in contents.ids["paper"] if abs(number) < 2**31][:3]
    expected = [contents.ids["paper"].index(number) for number in small]
    assert store.rows_of("paper", pa.array(small, type=pa.int32())).tolist() == expected
    assert store.rows_of("paper", pa.array([], type=pa.int64())).tolist() == []


@pytest.mark.parametrize(
    ("node_type", "ids", "message"),
    [
        ("author", ["0", "nobody", "none"], r"author ids, entry 1: unknown id 'nobody' \(2 such ids\)"),
        ("paper", [-5_000_000, 1], r"paper ids, entry 1: unknown id 1 \(1 such ids\)"),
        ("paper", [-5_000_000, None], r"paper ids, entry 1: null \(1 such ids\)"),
        ("paper", ["-5000000"], r"paper ids: type string: ids of type paper are int64"),
        ("author", [17], r"author ids: type int64: ids of type author are string"),
        ("author", [1.5], r"author ids: type double"),
        ("paper", [1.5], r"paper ids: type double"),
    ],
)
def test_unfit_ids_are_named(node_type: str, ids: list[Any], message: str, written: tuple[Path, Contents]) -> None:
    with pytest.raises(BadInput, match=message):
        Store.open(str(written[0])).rows_of(node_type, pa.array(ids))


def test_unknown_types_and_columns_list_the_choices(written: tuple[Path, Contents]) -> None:
    store = Store.open(str(written[0]))
    with pytest.raises(BadInput, match="node type 'papers': unknown: node types of this store: author, paper"):
        store.num_nodes("papers")
    with pytest.raises(BadInput, match=r"column 'label'.*its columns: id, position, timestamp"):
        store.node_column("author", "label")


def test_a_flipped_byte_in_any_page_of_any_file_is_detected_and_named(
    written: tuple[Path, Contents],
) -> None:
    folder, contents = written
    assert_holds(Store.open(str(folder)), contents)
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name.endswith("0.manifest.json") or path.name == "0.json":
            continue
        size = path.stat().st_size
        for page in range(-(-size // 4096)):
            at = int(RNG.integers(page * 4096, min((page + 1) * 4096, size)))
            with flipped_byte(path, at):
                if path.name == "1.manifest.json":
                    with pytest.raises(BadInput):
                        Store.open(str(folder), generation=1)
                    continue
                with pytest.raises(BadInput) as caught:
                    assert_holds(Store.open(str(folder)), contents)
            if path.suffix == ".json":
                assert caught.value.place.endswith(".json")
                continue
            assert caught.value.place == str(path)
            in_sums = path.name.endswith(".sums.npy")
            named = "pages 1 and later" if in_sums and page else f"page {page} has changed"
            assert named in caught.value.found
    assert_holds(Store.open(str(folder)), contents)


@pytest.mark.parametrize("name", ["manifest.json", "generations/1.json"])
def test_any_flipped_byte_of_the_manifest_and_the_generation_is_detected(
    name: str, written: tuple[Path, Contents]
) -> None:
    folder, _ = written
    size = (folder / name).stat().st_size
    for at in range(0, size, 1 if name == "manifest.json" else 97):
        with flipped_byte(folder / name, at), pytest.raises(BadInput):
            Store.open(str(folder))


def test_any_missing_or_short_file_is_named_on_opening(written: tuple[Path, Contents]) -> None:
    folder, _ = written
    paths = [path for path in folder.rglob("*") if path.suffix in (".npy", ".parquet")]
    assert len(paths) == 2 * (12 + 24)
    for path in [*paths, folder / "generations/1.json"]:
        with missing(path), pytest.raises(DamagedStore, match=f"{path}: missing file"):
            Store.open(str(folder))
    for path in paths[:6]:
        with shortened(path, num_bytes=100), pytest.raises(DamagedStore, match=f"{path}: 100 bytes where"):
            Store.open(str(folder))


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for url in (str(tmp_path), str(tmp_path / "absent"), str(tmp_path / "file")):
        with pytest.raises(BadInput, match=rf"{url}: no manifest\.json"):
            Store.open(url)


def test_a_store_of_another_version_is_refused(written: tuple[Path, Contents]) -> None:
    folder, _ = written
    path = folder / "manifest.json"
    whole = path.read_text()
    path.write_text(json.dumps({"format_version": 2, "something": "new"}))
    with pytest.raises(BadInput, match="format version 2: this program reads format version 1"):
        Store.open(str(folder))
    path.write_text("{")
    with pytest.raises(DamagedStore, match=r"manifest\.json: not a manifest"):
        Store.open(str(folder))
    path.write_text(whole)


def _infos(value: Any) -> list[dict[str, Any]]:
    """Every file that a generation names, wherever it stands."""
    if isinstance(value, list):
        return [info for item in value for info in _infos(item)]
    if isinstance(value, dict):
        return [value] if "sums_xxh64" in value else _infos(list(value.values()))
    return []
