"""What `inspect` counts equals counting plain arrays; a graph of several blocks and parts is streamed whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from service.cli import app
from service.degrees import DegreeCounts
from service.hotness_curve import expected_accesses, hotness_curve
from service.inspection import StoreReport, inspect_store
from service.inspection_tables import bars
from storage.csc_stream import BLOCK_TARGETS, PART_EDGES, target_blocks
from storage.errors import DamagedStore
from storage.ingest import IngestSettings, ingest
from storage.progress import NoProgress
from storage.store import Store
from tests.data import small_store, write_tables
from tests.processes import hopstream
from tests.storage.damage import flipped_byte, missing
from tests.storage.two_segments import CITES, COUNTS, WRITES, WRITTEN_BY, Contents, write_two_segments

FANOUT = (15, 10, 5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    folder = tmp_path_factory.mktemp("store")
    return folder, write_two_segments(str(folder))


@pytest.fixture(scope="module")
def report(written: tuple[Path, Contents]) -> StoreReport:
    return inspect_store(str(written[0]), progress=NoProgress())


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def plain_accesses(contents: Contents) -> dict[str, NDArray[np.float64]]:
    """The formula of ARCHITECTURE.md, edge by edge."""
    num_nodes = {name: sum(counts) for name, counts in COUNTS.items()}
    level = {name: np.ones(count) for name, count in num_nodes.items()}
    total = {name: np.ones(count) for name, count in num_nodes.items()}
    for k in FANOUT:
        reached = {name: np.zeros(count) for name, count in num_nodes.items()}
        for relation, edges in contents.edges.items():
            degree = np.bincount([edge.target for edge in edges], minlength=num_nodes[relation.target])
            for edge in edges:
                share = min(1.0, k / degree[edge.target])
                reached[relation.source][edge.source] += level[relation.target][edge.target] * share
        level = reached
        for name, values in reached.items():
            total[name] += values
    return total


def test_nodes_columns_and_sizes_are_those_of_the_store(written: tuple[Path, Contents], report: StoreReport) -> None:
    folder, contents = written
    authors, papers = report.node_types
    assert (authors.name, authors.num_nodes, authors.id_type) == ("author", 1000, "string")
    assert (authors.feature_dim, authors.feature_dtype, authors.columns) == (6, "float32", ["timestamp"])
    assert (authors.labels, authors.splits, authors.time_range) == (None, None, [100, 1099])
    assert papers.labels == {"num_classes": 4, "num_labelled": 1120}
    assert papers.splits == {"train": 350, "val": 350, "test": 350, "none": 350}
    for kind in report.node_types:
        touched = {edge.source for each, edges in contents.edges.items() if each.source == kind.name for edge in edges}
        touched |= {edge.target for each, edges in contents.edges.items() if each.target == kind.name for edge in edges}
        assert kind.num_isolated == kind.num_nodes - len(touched) > 0
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("0.json", "0.manifest.json")]
    assert report.stored_bytes == sum(path.stat().st_size for path in files)
    assert report.bytes_by_kind["weight"] == sum(path.stat().st_size for path in folder.rglob("weight.?.npy"))
    assert report.generations == [0, 1]


def test_degrees_are_those_of_the_edges(written: tuple[Path, Contents], report: StoreReport) -> None:
    _, contents = written
    assert [each.relation for each in report.relations] == [str(each) for each in (WRITES, WRITTEN_BY, CITES)]
    for relation, found in zip((WRITES, WRITTEN_BY, CITES), report.relations, strict=True):
        edges = contents.edges[relation]
        ends = {
            "in_degree": ([edge.target for edge in edges], relation.target),
            "out_degree": ([edge.source for edge in edges], relation.source),
        }
        for name, (nodes, node_type) in ends.items():
            degrees = np.bincount(nodes, minlength=sum(COUNTS[node_type]))
            figures = getattr(found, name)
            shares = (0, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
            expected = np.quantile(degrees, shares, method="lower").tolist()
            assert [
                figures.min, figures.p25, figures.p50, figures.p75, figures.p90, figures.p99, figures.max,
            ] == expected  # fmt: skip
            assert figures.mean == pytest.approx(degrees.mean())
            assert sum(each.nodes for each in figures.histogram) == len(degrees)
            for each in figures.histogram:
                assert each.nodes == np.count_nonzero((degrees >= each.low) & (degrees <= each.high))
    assert report.relations[2].time_range == [0, 4]
    assert report.relations[0].reverse_of == str(WRITTEN_BY)


def test_the_hotness_curve_follows_the_formula(written: tuple[Path, Contents], report: StoreReport) -> None:
    folder, contents = written
    store = Store.open(str(folder))
    plain = plain_accesses(contents)
    found = expected_accesses(store, fanout=FANOUT, progress=NoProgress())
    for kind, accesses, described in zip(store.node_types, found, report.node_types, strict=True):
        np.testing.assert_allclose(accesses, plain[kind.name], rtol=1e-12)
        first, second = COUNTS[kind.name]
        for hot in described.hotness:
            rows = [*range(int(np.ceil(hot.row_share * first)))]
            rows += [first + row for row in range(int(np.ceil(hot.row_share * second)))]
            expected = plain[kind.name][rows].sum() / plain[kind.name].sum()
            assert hot.access_share == pytest.approx(expected)
    everything = expected_accesses(store, fanout=(-1,), progress=NoProgress())
    assert sum(values.sum() for values in everything) == pytest.approx(2400 + 3 * 4000)


def large_store(folder: Path) -> tuple[Path, NDArray[np.int64], NDArray[np.int64]]:
    """Targets in two blocks, one of them with more edges than a part."""
    num_nodes, num_edges = BLOCK_TARGETS + 4000, PART_EDGES + 60_000
    rng = np.random.default_rng(5)
    source = rng.integers(0, num_nodes, num_edges)
    target = np.where(rng.random(num_edges) < 0.99, 7, rng.integers(0, num_nodes, num_edges))
    pq.write_table(pa.table({"id": np.arange(num_nodes)}), folder / "nodes.parquet")
    pq.write_table(pa.table({"src": source, "dst": target}), folder / "edges.parquet")
    settings = IngestSettings(
        nodes={"node": str(folder / "nodes.parquet")}, edges={"node:to:node": str(folder / "edges.parquet")}
    )
    ingest(settings, out=str(folder / "store"))
    return folder / "store", source, target


def test_large_relations_are_streamed_block_by_block_and_part_by_part(tmp_path: Path) -> None:
    folder, source, target = large_store(tmp_path)
    store = Store.open(str(folder))
    csc = store.topology().relations[0]
    sources: list[NDArray[Any]] = []
    degrees: list[NDArray[np.int64]] = []
    for block in target_blocks(store.place, store.relations[0], num_targets=store.num_nodes("node")):
        degrees.append(block.degree)
        sources += [part.sources for part in block.parts]
    assert len(degrees) == 2
    assert max(map(len, sources)) <= PART_EDGES
    np.testing.assert_array_equal(np.concatenate(degrees), np.diff(csc.indptr))
    np.testing.assert_array_equal(np.concatenate(sources), csc.indices)
    report = inspect_store(str(folder), progress=NoProgress())
    in_degree, out_degree = np.bincount(target), np.bincount(source)
    assert report.relations[0].in_degree.max == in_degree.max()
    assert report.relations[0].out_degree.max == out_degree.max()
    assert report.node_types[0].num_isolated == store.num_nodes("node") - np.union1d(source, target).size
    accesses = expected_accesses(store, fanout=(15, 10, 5), progress=NoProgress())[0]
    assert (np.diff(accesses) <= accesses[:-1] * 1e-9).all(), "ingest orders rows by the same figure"
    curve = hotness_curve(store.node_types[0], accesses)
    shares = [hot.access_share for hot in curve]
    assert shares == sorted(shares)
    assert shares[0] > 0.01


def test_degrees_added_in_any_parts_give_the_same_figures() -> None:
    degrees = np.random.default_rng(2).geometric(0.05, 10_000).astype(np.int64)
    whole, parts = DegreeCounts(), DegreeCounts()
    whole.add(degrees)
    for part in np.array_split(degrees, 13):
        parts.add(part)
    assert whole.report() == parts.report()
    assert DegreeCounts().report().histogram == []


def test_bars_show_every_bin_that_has_nodes() -> None:
    counts = DegreeCounts()
    counts.add(np.array([0, 1, 1, 1, 1, 1, 1, 1, 9, 64], dtype=np.int64))
    assert bars(counts.report()) == "▂█  ▂  ▂  (0 1 2 ... 64)"


def test_inspect_prints_a_table_and_json(written: tuple[Path, Contents]) -> None:
    code, out, _ = call("inspect", str(written[0]))
    assert code == 0
    for part in ("350", "4 classes", "in-degree", "paper:cites:paper", "hottest", "█"):
        assert part in out
    code, out, _ = call("inspect", str(written[0]), "--json")
    assert code == 0
    found = json.loads(out)
    assert found["node_types"][1]["hotness"][3]["row_share"] == 0.2
    assert found["relations"][0]["in_degree"]["histogram"][2] == {"low": 2, "high": 3, "nodes": 173}


def test_counts_of_ingest_are_shown(tmp_path: Path) -> None:
    relation = inspect_store(str(small_store(tmp_path)), progress=NoProgress()).relations[0]
    assert relation.parallel_edges is not None
    assert relation.self_loops is not None
    assert relation.reverse_of == relation.relation


def test_inspecting_a_damaged_store_names_the_page(written: tuple[Path, Contents]) -> None:
    folder, _ = written
    for name in ("edges/author__writes__paper/indices.1.npy", "nodes/paper/ids.0.parquet"):
        with flipped_byte(folder / name, 4096 + 7), pytest.raises(DamagedStore, match=r"page 1 has changed"):
            inspect_store(str(folder), progress=NoProgress())


def test_verify_ends_with_0_for_a_whole_store_and_1_for_a_damaged_one(written: tuple[Path, Contents]) -> None:
    folder, _ = written
    code, out, _ = call("inspect", str(folder), "--verify", "--json")
    assert (code, json.loads(out)["whole"], json.loads(out)["bad"]) == (0, True, [])
    name = "nodes/paper/features.0.npy"
    with flipped_byte(folder / name, 9000), missing(folder / "nodes/author/lookup.1.npy"):
        done = hopstream("inspect", str(folder), "--verify")
        code, out, _ = call("inspect", str(folder), "--verify", "--json")
    assert done.returncode == 1
    assert [line for line in done.stdout.splitlines() if line.startswith("damaged")] == [
        f"damaged: {folder}: nodes/author/lookup.1.npy: missing",
        f"damaged: {folder}: {name}, page 2, bytes 8192 to 12287: changed",
    ]
    assert "verify" in done.stderr
    assert code == 1
    found = json.loads(out)
    assert [(place["file"], place["page"]) for place in found["bad"]] == [
        ("nodes/author/lookup.1.npy", None),
        (name, 2),
    ]


def test_verifying_what_is_no_store_is_bad_input(tmp_path: Path) -> None:
    code, _, error = call("inspect", str(tmp_path), "--verify")
    assert code == 2
    assert "no manifest.json" in error


def test_quantised_features_are_called_so(tmp_path: Path) -> None:
    write_tables(tmp_path)
    settings = IngestSettings(
        nodes={"node": str(tmp_path / "nodes.parquet")},
        edges={"node:to:node": str(tmp_path / "edges.parquet")},
        quantize=True,
    )
    ingest(settings, out=str(tmp_path / "store"))
    kind = inspect_store(str(tmp_path / "store"), progress=NoProgress()).node_types[0]
    assert (kind.feature_dtype, kind.quantized, kind.in_place) == ("int8", True, False)
    assert "16 x int8, quantised" in call("inspect", str(tmp_path / "store"))[1]
