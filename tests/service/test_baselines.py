"""SGC and random-init rows against dense oracles."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from service.baselines import NONE, Machinery, random_rows, raw_rows, sgc_rows
from service.chunks import ChunkLimits
from service.encoders.base import EncoderConfig
from service.encoders.nodes import Nodes
from service.encoders.registry import make_encoder
from service.feature_values import FeatureValues
from service.schema import GraphSchema
from service.tiers import open_features
from storage.place import Place
from storage.progress import NoProgress
from storage.store import Store
from tests.service.batches import SmallGraph, heterogeneous, homogeneous, make_batch
from tests.service.stores import ingested, storable, user_ids


def machinery(store: Store, folder: Path, opened: ExitStack) -> Machinery:
    return Machinery(
        topology=store.topology(),
        features=open_features(store, opened),
        values=FeatureValues(GraphSchema.from_store(store)),
        work=Place(str(folder / "work")),
        cache_bytes=200,
        limits=ChunkLimits(rows=4, edges=30),
        device=torch.device("cpu"),
        progress=NoProgress(),
    )


def dense_sgc(graph: SmallGraph, node_types: tuple[int, ...]) -> dict[int, NDArray[np.float64]]:
    """Two products with the normalised dense matrix over the nodes of some types."""
    sizes = [graph.num_nodes[kind] for kind in node_types]
    first = dict(zip(node_types, np.cumsum([0, *sizes]), strict=False))
    matrix = np.eye(sum(sizes))
    for number, relation in enumerate(graph.schema.relations):
        if relation.source_type in first and relation.target_type in first:
            target = np.repeat(np.arange(graph.num_nodes[relation.target_type]), graph.in_degree(number))
            where = (
                target + first[relation.target_type],
                graph.indices[number] + first[relation.source_type],
            )
            np.add.at(matrix, where, 1.0)
    matrix = matrix / np.sqrt(np.outer(matrix.sum(1), matrix.sum(0)))
    tables = [graph.features[kind] for kind in node_types]
    x = matrix @ matrix @ np.concatenate([table for table in tables if table is not None])
    return {kind: x[first[kind] : first[kind] + size] for kind, size in zip(node_types, sizes, strict=True)}


def stored_order(graph: SmallGraph, store: Store, node_type: int) -> list[int]:
    """The graph's own number of each dense id."""
    number_of = {name: number for number, name in enumerate(user_ids(graph, node_type))}
    name = graph.schema.node_types[node_type].name
    return [number_of[identifier] for identifier in store.node_column(name, "id").to_pylist()]


def test_sgc_is_two_products_with_the_normalised_matrix(tmp_path: Path) -> None:
    graph = homogeneous()
    store = ingested(graph, tmp_path)
    rows = np.array([0, 3, 4, 17, 39])
    with ExitStack() as opened:
        found = sgc_rows(machinery(store, tmp_path, opened), rows=[rows])[0]
    expected = dense_sgc(graph, (0,))[0][np.array(stored_order(graph, store, 0))[rows]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_sgc_sums_over_types_whose_features_are_equally_wide(tmp_path: Path) -> None:
    graph = storable(heterogeneous())  # paper 6 wide, author 4 wide, venue without features
    wide = replace(
        graph,
        features=(graph.features[0], graph.features[1], np.random.default_rng(1).normal(size=(5, 6))),
        schema=replace(
            graph.schema,
            node_types=(*graph.schema.node_types[:2], replace(graph.schema.node_types[2], feature_dim=6)),
        ),
    )
    rows = [np.arange(20), np.arange(0, 15, 2), np.array([0, 3])]
    cases: list[tuple[SmallGraph, list[tuple[int, ...]]]] = [(graph, [(0,), (1,)]), (wide, [(0, 2), (1,)])]
    for number, (case, groups) in enumerate(cases):
        store = ingested(case, tmp_path / str(number))
        wanted = rows if case is wide else [*rows[:2], NONE]
        with ExitStack() as opened:
            found = sgc_rows(machinery(store, tmp_path, opened), rows=wanted)
        for group in groups:
            for node_type, expected in dense_sgc(case, group).items():
                chosen = np.array(stored_order(case, store, node_type))[wanted[node_type]]
                np.testing.assert_allclose(found[node_type], expected[chosen], rtol=1e-5, atol=1e-6)


def test_raw_rows_are_the_features(tmp_path: Path) -> None:
    graph = homogeneous()
    store = ingested(graph, tmp_path)
    rows = np.array([2, 5, 38])
    with ExitStack() as opened:
        table = machinery(store, tmp_path, opened).features[0]
        assert table is not None
        found = raw_rows(table, scale=None, rows=rows, name="node", progress=NoProgress())
    assert graph.features[0] is not None
    expected = graph.features[0].astype(np.float32)[np.array(stored_order(graph, store, 0))[rows]]
    np.testing.assert_array_equal(found, expected)


def test_random_rows_are_the_encoder_as_it_is(tmp_path: Path) -> None:
    graph = storable(heterogeneous())
    store = ingested(graph, tmp_path)
    encoder = make_encoder(EncoderConfig(name="gcn", hidden_dim=8), schema=GraphSchema.from_store(store))
    wanted = [np.array([1, 2, 19]), NONE, np.array([4])]
    with ExitStack() as opened:
        found = random_rows(machinery(store, tmp_path, opened), encoder, rows=wanted)
    batch = make_batch(graph, graph.all_seeds(), num_hops=2, dtype=torch.float32)
    with torch.no_grad():
        h = encoder.input(batch.features, batch.node_type, batch.in_degree, batch.out_degree)
        h = encoder(h, batch.hops[::-1], Nodes.of(batch))
    for kind, rows in enumerate(wanted):
        expected = h[batch.node_type == kind].numpy()[np.array(stored_order(graph, store, kind))[rows]]
        assert found[kind].shape[0] == rows.size
        if rows.size:
            np.testing.assert_allclose(found[kind], expected, rtol=1e-4, atol=1e-5)
