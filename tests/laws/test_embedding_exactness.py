"""Law of exactness: layer-wise embeddings equal the forward pass over the whole graph at once.

The oracle is a batch of all nodes made in plain Python (tests.service.batches); results are read with pyarrow
alone and joined by the user's ids.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from service.embedding import EmbeddingReport, EmbeddingSource, embed
from service.encoders.base import Encoder, EncoderConfig
from service.encoders.nodes import Nodes
from service.encoders.registry import make_encoder
from service.message_passing import dgl_kernels
from service.schema import GraphSchema
from storage.place import Place
from storage.progress import NoProgress
from storage.store import Store
from tests.laws.encoder_cases import ENCODER_CASES, EncoderCase
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.stores import ingested, storable, user_ids

WHOLE_CACHE = 1 << 20
GRAPHS = {
    "homogeneous": homogeneous(weighted=True),
    "heterogeneous": storable(heterogeneous()),
    "heterogeneous weighted": storable(heterogeneous(weighted=True)),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    return {name: ingested(graph, tmp_path_factory.mktemp(name.replace(" ", "-"))) for name, graph in GRAPHS.items()}


def encoder_for(store: Store, name: str, *, norm: str = "layer", num_layers: int = 2) -> Encoder:
    """Of a plain convolution, or of one of `CASES_BEYOND`."""
    if name in CASES_BEYOND:
        config = CASES_BEYOND[name].config(norm=norm, num_layers=num_layers)
    else:
        config = EncoderConfig(
            name=name,
            num_layers=num_layers,
            hidden_dim=8,
            num_heads=2,
            norm=norm,
            residual="post",
            feature_dropout=0.5,
            attention_dropout=0.5,
            edge_dropout=0.5,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        encoder = make_encoder(config, schema=GraphSchema.from_store(store))
        for parameter in encoder.parameters():  # no bias of 0, no norm of 1
            parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder


def full_batch(graph: SmallGraph, encoder: Encoder) -> list[NDArray[np.float32]]:
    """Embeddings per type in the graph's own order, all nodes at once."""
    batch = make_batch(graph, graph.all_seeds(), num_hops=encoder.num_layers, dtype=torch.float32)
    encoder.eval()
    with torch.no_grad():
        h = encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree)
        h = encoder(h, batch.hops[::-1], Nodes.of(batch))
    return [h[batch.node_type == kind].numpy() for kind in range(len(graph.num_nodes))]


def embedded(
    graph: SmallGraph, store: Store, encoder: Encoder, out: Path, *, rows: int, edges: int, cache_bytes: int
) -> tuple[list[NDArray[np.float32]], EmbeddingReport]:
    """Embeddings per type in the graph's own order, through Parquet."""
    report = embed(
        encoder,
        store=store,
        out=str(out / "embeddings"),
        work=Place(str(out / "work")),
        source=EmbeddingSource(run="test", step=5),
        cache_bytes=cache_bytes,
        rows_per_chunk=rows,
        max_edges_per_chunk=edges,
        device=torch.device("cpu"),
        progress=NoProgress(),
    )
    found = []
    for number, kind in enumerate(graph.schema.node_types):
        table = pq.read_table(out / "embeddings" / kind.name)
        rows_of = dict(zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
        assert len(rows_of) == table.num_rows == graph.num_nodes[number]
        found.append(np.array([rows_of[name] for name in user_ids(graph, number)], dtype=np.float32))
    return found, report


CASES_BEYOND = ENCODER_CASES | {"dgl's modules": EncoderCase({"name": "tests.service.own_encoders:DglEncoder"})}
CUTS = [(1, 10**6, 0), (16, 40, 500), (3, 10**6, WHOLE_CACHE), (7, 5, 0), (1000, 10**6, WHOLE_CACHE)]
"""rows and edges a chunk, bytes of the cache"""
CASES = [(graph, name, *cut) for graph in GRAPHS for name in ("sage", "gcn", "gat", "gin") for cut in CUTS[:2]]
CASES += [(graph, "gat", *cut) for graph in GRAPHS for cut in CUTS[2:]]
CASES += [(graph, name, *CUTS[1]) for graph in ("homogeneous", "heterogeneous weighted") for name in ENCODER_CASES]
NEEDS_DGL = pytest.mark.skipif(not dgl_kernels.is_available("cpu"), reason="dgl does not load here")


@pytest.mark.parametrize(
    ("graph", "name", "rows", "edges", "cache_bytes"),
    [*CASES, pytest.param("heterogeneous weighted", "dgl's modules", *CUTS[1], marks=NEEDS_DGL)],
)
def test_layer_wise_embedding_equals_the_full_batch(
    stores: dict[str, Store],
    graph: str,
    name: str,
    rows: int,
    edges: int,
    cache_bytes: int,
    tmp_path: Path,
) -> None:
    encoder = encoder_for(stores[graph], name)
    expected = full_batch(GRAPHS[graph], encoder)
    found, _ = embedded(
        GRAPHS[graph], stores[graph], encoder, tmp_path, rows=rows, edges=edges, cache_bytes=cache_bytes
    )
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_cache_changes_no_bit_and_is_what_serves_rows(stores: dict[str, Store], graph: str, tmp_path: Path) -> None:
    encoder = encoder_for(stores[graph], "gat", num_layers=3)
    results, hits = [], []
    for cache_bytes in (0, 100, 700, WHOLE_CACHE):
        found, report = embedded(
            GRAPHS[graph], stores[graph], encoder, tmp_path, rows=11, edges=60, cache_bytes=cache_bytes
        )
        results.append(np.concatenate(found))
        hits.append(report.host.hits / report.host.requests)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    assert hits[0] == 0.0
    assert hits == sorted(hits)
    assert hits[-1] == 1.0


@pytest.mark.parametrize("graph", GRAPHS)
def test_all_layers_below_are_joined_with_the_last(stores: dict[str, Store], graph: str, tmp_path: Path) -> None:
    encoder = encoder_for(stores[graph], "gat, pre-activation, layers concatenated", num_layers=4)
    expected = full_batch(GRAPHS[graph], encoder)
    found, report = embedded(GRAPHS[graph], stores[graph], encoder, tmp_path, rows=9, edges=60, cache_bytes=300)
    assert report.dim == encoder.config.out_dim == 4 * 8
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=2e-4, atol=2e-5)
    assert not (tmp_path / "work" / "layerwise").exists()


@pytest.mark.parametrize("graph", GRAPHS)
def test_an_encoder_without_neighbours_reads_none(stores: dict[str, Store], graph: str, tmp_path: Path) -> None:
    encoder = encoder_for(stores[graph], "mlp")
    _, report = embedded(GRAPHS[graph], stores[graph], encoder, tmp_path, rows=9, edges=60, cache_bytes=0)
    assert [layer.edges for layer in report.layers] == [0]
    assert report.rows == sum(GRAPHS[graph].num_nodes)


def test_batch_norm_uses_the_statistics_of_training(stores: dict[str, Store], tmp_path: Path) -> None:
    graph, store = GRAPHS["homogeneous"], stores["homogeneous"]
    encoder = encoder_for(store, "sage", norm="batch")
    for layer in encoder.layers:
        layer.norm.running_mean += 0.3  # type: ignore[union-attr, operator]  # a SeedBatchNorm's buffer
        layer.norm.running_var *= 2.0  # type: ignore[union-attr, operator]  # as above
    expected = full_batch(graph, encoder)
    encoder.train()
    found, _ = embedded(graph, store, encoder, tmp_path, rows=5, edges=50, cache_bytes=0)
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-4, atol=2e-5)
