"""Embeddings on disk: what is written, when it counts as a result, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from service.chunks import Chunk, ChunkLimits, plan_chunks
from service.embedding import EmbeddingConfig, EmbeddingReport, EmbeddingSource, embed
from service.embedding_claim import MARKER
from service.embedding_files import STAGING, PartWriter, read_manifest, read_parts
from service.encoders.base import Encoder, EncoderConfig
from service.encoders.registry import make_encoder
from service.lease import Lease
from service.schema import GraphSchema
from storage.errors import BadInput, DamagedStore
from storage.place import Place
from storage.progress import NoProgress
from storage.store import Store
from tests.service.batches import heterogeneous, homogeneous
from tests.service.stores import ingested, storable, user_ids


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return ingested(storable(heterogeneous()), tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def encoder(store: Store) -> Encoder:
    return make_encoder(EncoderConfig(hidden_dim=8), schema=GraphSchema.from_store(store))


class Interrupting(NoProgress):
    """Stops the work from outside when a stage has made some way."""

    def __init__(self, stage: str) -> None:
        self._at = stage
        self._now = ""

    def stage(self, name: str, *, total: int, unit: str) -> None:
        self._now = name

    def advance(self, amount: int) -> None:
        if self._at in self._now:
            raise KeyboardInterrupt


def run(
    encoder: Encoder, store: Store, folder: Path, *, step: int = 1, progress: NoProgress | None = None
) -> EmbeddingReport:
    return embed(
        encoder,
        store=store,
        out=str(folder / "out"),
        work=Place(str(folder / "work")),
        source=EmbeddingSource(run="first", step=step),
        cache_bytes=1000,
        rows_per_chunk=6,
        max_edges_per_chunk=50,
        device=torch.device("cpu"),
        progress=progress or NoProgress(),
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_parquet_holds_each_of_the_users_ids_once(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    report = run(encoder, store, tmp_path)
    graph = storable(heterogeneous())
    for number, kind in enumerate(graph.schema.node_types):
        table = pq.read_table(tmp_path / "out" / kind.name)
        assert table.schema.names == ["id", "embedding"]
        assert table["embedding"].type == pa.list_(pa.field("element", pa.float32()), 8)
        assert sorted(table["id"].to_pylist(), key=str) == sorted(user_ids(graph, number), key=str)
    assert report.rows == sum(graph.num_nodes)
    assert report.dim == 8


def test_the_manifest_names_model_store_and_files(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    run(encoder, store, tmp_path, step=7)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["run"], manifest["step"], manifest["dim"]) == ("first", 7, 8)
    assert (manifest["store"], manifest["generation"]) == (store.place.url, 0)
    generation = json.loads(Path(store.place.url, "manifest.json").read_text())
    assert manifest["generation_xxh64"] == generation["generation_xxh64"]
    assert manifest["encoder"]["name"] == "sage"
    for kind in manifest["node_types"]:
        for part in kind["parts"]:
            path = tmp_path / "out" / part["name"]
            assert path.stat().st_size == part["num_bytes"]
            assert pq.read_metadata(path).num_rows == part["num_rows"]
    assert [kind["num_nodes"] for kind in manifest["node_types"]] == [20, 15, 5]


def test_nothing_is_left_in_the_work_folder(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    run(encoder, store, tmp_path)
    assert files(tmp_path / "work") == {}
    assert set(files(tmp_path / "out")) == {
        "manifest.json",
        "author/part-00000.parquet",
        "paper/part-00000.parquet",
        "venue/part-00000.parquet",
    }


@pytest.mark.parametrize("stage", ["input", "layer 1", "layer 2"])
def test_an_interrupted_embedding_leaves_no_result_and_no_files(
    store: Store, encoder: Encoder, tmp_path: Path, stage: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(encoder, store, tmp_path, progress=Interrupting(stage))
    assert files(tmp_path) == {}
    with pytest.raises(BadInput, match="no manifest"):
        read_manifest(Place(str(tmp_path / "out")))


def test_an_interrupted_embedding_leaves_the_earlier_result_as_it_was(
    store: Store, encoder: Encoder, tmp_path: Path
) -> None:
    run(encoder, store, tmp_path)
    before = files(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(encoder, store, tmp_path, step=2, progress=Interrupting("layer 2"))
    assert files(tmp_path / "out") == before
    assert read_manifest(Place(str(tmp_path / "out"))).step == 1


def test_a_run_killed_before_the_manifest_is_no_result_and_running_again_mends_it(
    store: Store, encoder: Encoder, tmp_path: Path
) -> None:
    run(encoder, store, tmp_path)
    expected = files(tmp_path / "out")
    # as a kill leaves it: some parts moved, others still staged, hidden states in the work folder
    out = tmp_path / "out"
    (out / "manifest.json").unlink()
    (out / STAGING / "paper").mkdir(parents=True)
    (out / STAGING / MARKER).touch()
    (out / "paper" / "part-00000.parquet").rename(out / STAGING / "paper" / "part-00000.parquet")
    (out / "paper" / "part-00007.parquet").write_bytes(b"from an earlier, longer result")
    (tmp_path / "work" / "layerwise" / "layer-0").mkdir(parents=True)
    (tmp_path / "work" / "layerwise" / "layer-0" / "0.npy.partial").write_bytes(b"half")
    with pytest.raises(BadInput, match="no manifest"):
        read_manifest(Place(str(out)))
    run(encoder, store, tmp_path)
    assert files(out) == expected
    assert files(tmp_path / "work") == {}


def test_a_run_killed_before_the_manifest_and_interrupted_again_can_still_be_mended(
    store: Store, encoder: Encoder, tmp_path: Path
) -> None:
    run(encoder, store, tmp_path)
    expected = files(tmp_path / "out")
    out = tmp_path / "out"
    (out / "manifest.json").unlink()
    (out / STAGING).mkdir()
    (out / STAGING / MARKER).touch()
    with pytest.raises(KeyboardInterrupt):
        run(encoder, store, tmp_path, progress=Interrupting("layer 1"))
    run(encoder, store, tmp_path)
    assert files(out) == expected


def test_a_store_in_the_place_of_the_result_is_refused_and_stays_as_it_was(
    store: Store, encoder: Encoder, tmp_path: Path
) -> None:
    other = ingested(storable(heterogeneous()), tmp_path)
    (tmp_path / "store").rename(tmp_path / "out")
    before = files(tmp_path)
    with pytest.raises(BadInput, match=r"out: its manifest\.json is not that of embeddings"):
        run(encoder, store, tmp_path, progress=Interrupting("embed"))
    assert files(tmp_path) == before
    Store.open(str(tmp_path / "out"), generation=other.generation.generation)


@pytest.mark.parametrize("name", ["thesis.tex", f"{STAGING}/draft.txt", "paper/part-00000.parquet"])
def test_a_folder_with_the_users_own_files_is_refused(
    store: Store, encoder: Encoder, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(BadInput, match="it already holds"):
        run(encoder, store, tmp_path, progress=Interrupting("embed"))
    assert files(tmp_path) == {f"out/{name}": b"mine"}


def test_an_empty_folder_and_earlier_embeddings_are_replaced(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for step in (1, 2):
        run(encoder, store, tmp_path, step=step)
        assert read_manifest(Place(str(tmp_path / "out"))).step == step


def test_a_work_folder_has_one_process_at_a_time(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    with Lease(Place(str(tmp_path / "work"))), pytest.raises(BadInput, match="held by process"):
        run(encoder, store, tmp_path)
    run(encoder, store, tmp_path)


def test_files_do_not_depend_on_how_the_work_was_cut(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    graph = storable(heterogeneous())
    table = np.arange(15 * 8, dtype=np.float32).reshape(15, 8)

    def write(folder: str, cuts: list[int], batches: list[int]) -> None:
        ids = pa.array(user_ids(graph, 1))

        def id_batches() -> Iterator[pa.Array]:
            for first, last in zip([0, *batches], [*batches, 15], strict=True):
                yield ids[first:last]

        writer = PartWriter(
            Place(str(tmp_path / folder)),
            node_type="author",
            ids=id_batches(),
            dim=8,
            part_bytes=6 * 32,
            group_bytes=2 * 32,
        )
        with writer:
            for rows in np.split(table, cuts):
                writer.write(rows)
        assert [part.num_rows for part in writer.parts] == [6, 6, 3]

    write("one", [1, 2, 9], [4, 14])
    write("two", [7], [])
    assert files(tmp_path / "one") == files(tmp_path / "two")
    read = pq.read_table(tmp_path / "one" / "author")
    assert read["id"].to_pylist() == user_ids(graph, 1)
    np.testing.assert_array_equal(np.array(read["embedding"].to_pylist()), table)


def test_a_changed_byte_in_a_part_is_found(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    run(encoder, store, tmp_path)
    path = tmp_path / "out" / "paper" / "part-00000.parquet"
    whole = path.read_bytes()
    value = np.asarray(pq.read_table(path)["embedding"].combine_chunks().flatten())[40].tobytes()
    place = whole.index(value)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    where = Place(str(tmp_path / "out"))
    manifest = read_manifest(where)
    with pytest.raises(DamagedStore, match="part-00000"):
        list(read_parts(where, manifest.node_types[0].parts))


def test_missing_and_short_parts_are_named(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    run(encoder, store, tmp_path)
    path = tmp_path / "out" / "paper" / "part-00000.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedStore, match=r"paper/part-00000\.parquet.*bytes"):
        read_manifest(Place(str(tmp_path / "out")))
    path.unlink()
    with pytest.raises(DamagedStore, match=r"paper/part-00000\.parquet: missing file"):
        read_manifest(Place(str(tmp_path / "out")))


def test_another_store_with_the_same_schema_is_embedded(encoder: Encoder, tmp_path: Path) -> None:
    other = ingested(storable(heterogeneous(weighted=True)), tmp_path)
    assert run(encoder, other, tmp_path).rows == 40


def test_a_store_with_another_schema_is_refused_by_name(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    other = ingested(homogeneous(), tmp_path)
    with pytest.raises(BadInput, match=r"node type paper is missing \(3 such\)"):
        run(encoder, other, tmp_path)
    narrow = make_encoder(EncoderConfig(hidden_dim=8), schema=GraphSchema.from_store(other))
    wide = ingested(homogeneous(dim=9), tmp_path / "wide")
    with pytest.raises(BadInput, match=r"node type node has 9 feature columns.*trained on 6"):
        run(narrow, wide, tmp_path)
    assert not (tmp_path / "out").exists()


def test_chunks_cover_every_node_once_and_end_before_too_many_edges(store: Store) -> None:
    topology = store.topology()
    limits = ChunkLimits(rows=6, edges=9)
    chunks = list(plan_chunks(topology, limits=limits))
    for node_type in range(3):
        ids = np.concatenate([chunk.ids for chunk in chunks if chunk.node_type == node_type])
        np.testing.assert_array_equal(ids, np.arange(store.generation.node_types[node_type].num_nodes))

    def edges(chunk: Chunk) -> int:
        indptrs = [item.indptr for item in topology.relations if item.target_type == chunk.node_type]
        return sum(int((indptr[chunk.ids + 1] - indptr[chunk.ids]).sum()) for indptr in indptrs)

    assert all(chunk.ids.size <= 6 for chunk in chunks)
    assert all(edges(chunk) <= 9 or chunk.ids.size == 1 for chunk in chunks)
    assert any(edges(chunk) > 9 for chunk in chunks)  # a hub is not refused


def test_the_defaults_are_valid_and_unknown_keys_are_not() -> None:
    assert EmbeddingConfig().limits == ChunkLimits(rows=8192, edges=262_144)
    with pytest.raises(ValueError, match="rows_per_chunks"):
        EmbeddingConfig.model_validate({"rows_per_chunks": 3})
