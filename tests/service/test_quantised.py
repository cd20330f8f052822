"""Quantised features are numbers to whoever reads them: training, embedding, evaluation, and another store's scale."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from sampling.batch import MiniBatch
from service.baselines import NONE, Machinery, raw_rows, sgc_rows
from service.chunks import ChunkLimits
from service.cli import app
from service.encoders import EncoderConfig, make_encoder
from service.feature_values import FeatureValues
from service.group import Group
from service.model import Model
from service.noise import Noise
from service.objectives import make_objective
from service.objectives.graphmae import GraphMaeConfig
from service.schema import GraphSchema
from service.tiers import open_features
from storage.ingest import IngestSettings, ingest
from storage.place import Place
from storage.progress import NoProgress
from storage.store import Store
from tests.data import small_run, write_tables
from tests.service.batches import heterogeneous, make_batch
from tests.service.stores import storable
from tests.service.stores import write_tables as write_graph_tables


def ingested(folder: Path, name: str, *, quantize: bool) -> Store:
    """The tables of `folder` as store `folder/name`."""
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")},
        edges={"node:to:node": str(folder / "edges.parquet")},
        undirected=True,
        quantize=quantize,
    )
    ingest(settings, out=str(folder / name))
    return Store.open(str(folder / name))


def uneven_tables(folder: Path, *, times: float = 1.0) -> NDArray[np.float32]:
    """The small tables with columns of unequal size, one of zeros; the features by row of the table."""
    write_tables(folder)
    table = pq.read_table(folder / "nodes.parquet")
    rows = np.asarray(table["features"].combine_chunks().flatten()).reshape(-1, 16)
    rows = (rows * 10.0 ** np.linspace(-2, 2, 16) * times).astype(np.float32)
    rows[:, 5] = 0
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 16)
    pq.write_table(table.set_column(1, "features", column), folder / "nodes.parquet")
    return rows


def result_of(*arguments: str) -> dict[str, Any]:
    """What a command prints with --json."""
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def embeddings(folder: str) -> NDArray[np.float32]:
    """Rows by ascending id."""
    table = pq.read_table(Path(folder) / "node")
    rows = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    return rows[np.argsort(table["id"].to_numpy())]


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    product = (a.astype(np.float64) * b).sum(1)
    found: NDArray[np.float64] = product / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return found


def test_stored_rows_are_within_half_a_step_of_the_originals(tmp_path: Path) -> None:
    given = uneven_tables(tmp_path)
    (kind,) = ingested(tmp_path, "store", quantize=True).node_types
    assert kind.feature_scale is not None
    scale = np.array(kind.feature_scale)
    steps = np.load(tmp_path / "store/nodes/node/features.0.npy").astype(np.float64)
    position = pq.read_table(tmp_path / "store/nodes/node/ids.0.parquet")["position"].to_numpy()
    original = given.astype(np.float64)[position]
    assert np.all(np.abs(steps * scale - original) <= scale * (0.5 + 1e-5))
    assert scale[5] == 0
    assert not steps[:, 5].any()
    for column in (number for number in range(16) if number != 5):
        largest = np.abs(original[:, column]).argmax()
        assert abs(steps[largest, column]) == 127
        assert steps[largest, column] * scale[column] == pytest.approx(original[largest, column], rel=1e-6)


def test_a_model_has_the_same_loss_on_steps_of_a_scale_as_on_their_values() -> None:
    graph = heterogeneous()
    scales: list[tuple[float, ...]] = [
        tuple((np.arange(1, dim + 1) / 50).astype(np.float32).tolist()) for dim in (6, 4)
    ]
    kinds = graph.schema.node_types
    schema = replace(
        graph.schema,
        node_types=(replace(kinds[0], feature_scale=scales[0]), replace(kinds[1], feature_scale=scales[1]), kinds[2]),
    )
    rng = np.random.default_rng(2)
    steps = tuple(None if t is None else rng.integers(-127, 128, t.shape).astype(np.float64) for t in graph.features)

    def loss(schema: GraphSchema, batch: MiniBatch) -> float:
        config = EncoderConfig(name="gcn", hidden_dim=8)
        torch.manual_seed(0)
        encoder = make_encoder(config, schema=schema)
        objective = make_objective(GraphMaeConfig(replace_rate=0.3), schema=schema, encoder_config=config)
        model = Model(encoder, objective, group=Group())
        assert not [name for name in model.state_dict() if "scale" in name]
        return float(model(batch, Noise(17)).loss_sum.detach())

    batch = make_batch(replace(graph, features=steps), graph.all_seeds(), num_hops=3, dtype=torch.float32)
    as_steps = replace(batch, features=tuple(None if t is None else t.to(torch.int8) for t in batch.features))
    values = [None if t is None else t * torch.tensor(s) for t, s in zip(batch.features, (*scales, None), strict=True)]
    assert loss(schema, as_steps) == loss(graph.schema, replace(batch, features=tuple(values)))
    assert loss(schema, as_steps) != loss(graph.schema, batch)


def test_raw_and_sgc_rows_are_made_of_values(tmp_path: Path) -> None:
    settings = write_graph_tables(storable(heterogeneous()), tmp_path / "tables", columns={})
    wanted = [np.arange(20), np.arange(15), NONE]
    found = []
    for name, quantize in (("float", False), ("steps", True)):
        ingest(settings.model_copy(update={"quantize": quantize}), out=str(tmp_path / name))
        store = Store.open(str(tmp_path / name))
        with ExitStack() as opened:
            machinery = Machinery(
                topology=store.topology(),
                features=open_features(store, opened),
                values=FeatureValues(GraphSchema.from_store(store)),
                work=Place(str(tmp_path / "work")),
                cache_bytes=200,
                limits=ChunkLimits(rows=4, edges=30),
                device=torch.device("cpu"),
                progress=NoProgress(),
            )
            table = machinery.features[0]
            assert table is not None
            scale = store.node_types[0].feature_scale
            raw = raw_rows(table, scale=scale, rows=wanted[0], name="paper", progress=NoProgress())
            found.append([raw, *sgc_rows(machinery, rows=wanted)[:2]])
    for exact, close in zip(*found, strict=True):
        assert exact.shape == close.shape
        assert not np.array_equal(exact, close)
        np.testing.assert_allclose(close, exact, atol=np.abs(exact).max() / 100)


def test_embeddings_of_a_quantised_store_are_close_to_those_of_the_float_store(tmp_path: Path) -> None:
    write_tables(tmp_path)
    ingested(tmp_path, "store", quantize=False)
    ingested(tmp_path, "steps", quantize=True)
    run = str(small_run(tmp_path, encoder={"norm": "none"}))
    result_of("pretrain", run)
    exact = embeddings(result_of("embed", run)["out"])
    other = result_of("embed", run, "--store", str(tmp_path / "steps"), "--out", str(tmp_path / "e"))
    assert cosines(exact, embeddings(other["out"])).min() > 0.99


def test_a_run_trained_on_steps_embeds_a_store_with_another_scale_and_is_evaluated(tmp_path: Path) -> None:
    uneven_tables(tmp_path)
    trained = ingested(tmp_path, "store", quantize=True)
    # means alone: the attention of gat turns at large values on the smallest difference
    run = str(small_run(tmp_path, encoder={"name": "sage", "norm": "none"}))
    status = result_of("pretrain", run)
    assert (status["state"], status["step"]) == ("finished", 20)
    own = embeddings(result_of("embed", run)["out"])
    report = result_of("evaluate", run)["node_types"][0]["results"]
    assert [rows["rows"] for rows in report] == ["trained", "raw", "sgc", "random_init"]

    # ten times the values: steps are the same, so only the scale can tell the stores apart
    uneven_tables(tmp_path / "ten", times=10.0)
    ten = ingested(tmp_path / "ten", "store", quantize=True)
    scales = [np.array(store.node_types[0].feature_scale) for store in (trained, ten)]
    np.testing.assert_allclose(scales[1], 10 * scales[0], rtol=1e-6)
    floats = ingested(tmp_path / "ten", "floats", quantize=False)
    found = [
        embeddings(result_of("embed", run, "--store", store.place.url, "--out", f"{tmp_path}/e-{number}")["out"])
        for number, store in enumerate((ten, floats))
    ]
    assert cosines(found[0], found[1]).min() > 0.99
    norms = [np.linalg.norm(rows, axis=1) for rows in (*found, own)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=0.1)
    assert (norms[0] > 5 * norms[2]).all()


def test_a_quantised_store_of_another_width_is_refused_by_name(tmp_path: Path) -> None:
    write_tables(tmp_path)
    ingested(tmp_path, "store", quantize=False)
    run = str(small_run(tmp_path, training={"epochs": 1}))
    result_of("pretrain", run)
    table = pq.read_table(tmp_path / "nodes.parquet")
    rows = np.asarray(table["features"].combine_chunks().flatten()).reshape(-1, 16)[:, :8].ravel()
    narrow = table.set_column(1, "features", pa.FixedSizeListArray.from_arrays(pa.array(rows), 8))
    pq.write_table(narrow, tmp_path / "nodes.parquet")
    other = ingested(tmp_path, "narrow", quantize=True)
    arguments = ["embed", run, "--store", other.place.url, "--out", str(tmp_path / "e"), "--json"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "node type node has 8 feature columns" in json.loads(refused.stdout)["error"]
