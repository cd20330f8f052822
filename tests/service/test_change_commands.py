"""Changes of a store through the command, and what trains on and embeds a changed store."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from service.inspection import inspect_store
from service.run_file import DataSection
from service.seed_nodes import seed_nodes
from storage.progress import NoProgress
from storage.store import Store
from tests.data import small_run, write_tables
from tests.processes import hopstream, result_of


def grown_store(folder: Path, *, num_old: int = 270) -> dict[str, Any]:
    """A store that was ingested in two parts; the parts lie beside it as old-*.parquet and new-*.parquet."""
    write_tables(folder)
    nodes, edges = (pq.read_table(folder / f"{name}.parquet") for name in ("nodes", "edges"))
    is_old = np.maximum(edges["src"].to_numpy(), edges["dst"].to_numpy()) < 10 * num_old
    pq.write_table(nodes.slice(0, num_old), folder / "old-nodes.parquet")
    pq.write_table(nodes.slice(num_old), folder / "new-nodes.parquet")
    pq.write_table(edges.filter(pa.array(is_old)), folder / "old-edges.parquet")
    pq.write_table(edges.filter(pa.array(~is_old)), folder / "new-edges.parquet")

    def tables(part: str) -> list[str]:
        return ["--nodes", str(folder / f"{part}-nodes.parquet"), "--edges", str(folder / f"{part}-edges.parquet")]

    result_of("ingest", *tables("old"), "--undirected", "--out", str(folder / "store"))
    return result_of("ingest", "--append", *tables("new"), "--out", str(folder / "store"))


def test_a_store_grows_is_refreshed_loses_nodes_is_compacted_and_collected(tmp_path: Path) -> None:
    done, store = grown_store(tmp_path), str(tmp_path / "store")
    assert done["generation"] == 1
    assert done["node_types"][0]["num_nodes"] == 300
    assert done["report"]["appended"]["nodes"] == {"node": {"rows": 30, "nan_zeroed": 0}}
    pq.write_table(pq.read_table(tmp_path / "nodes.parquet").slice(5, 40), tmp_path / "again.parquet")
    done = result_of("refresh", store, "--features", str(tmp_path / "again.parquet"))
    assert done["report"]["refreshed"] == {"node": {"rows": 40, "nan_zeroed": 0}}
    pq.write_table(pa.table({"id": [0, 50, 2990, 7]}), tmp_path / "gone.parquet")
    refused = hopstream("delete", store, "--nodes", str(tmp_path / "gone.parquet"))
    assert refused.returncode == 2
    assert "row 3 (counted from 0): unknown node 7" in refused.stderr.splitlines()[-1]
    done = result_of("delete", store, "--nodes", str(tmp_path / "gone.parquet"), "--missing", "ignore")
    assert done["report"]["deleted"]["nodes"] == {"node": {"rows": 3, "missing": 1}}
    shown = hopstream("inspect", store)
    assert "297, " in shown.stdout
    assert "3 deleted" in shown.stdout
    done = result_of("compact", store, "--memory", "1GiB")
    assert (done["generation"], done["node_types"][0]["num_nodes"]) == (4, 297)
    planned = result_of("gc", store, "--dry-run")
    done = result_of("gc", store, "--keep", "2")
    assert (done["kept"], done["removed"]) == ([3, 4], [0, 1, 2])
    assert planned["freed_bytes"] > done["freed_bytes"] > 0
    assert result_of("inspect", store, "--verify")["whole"]
    for arguments in (["gc", store], ["compact", store]):
        assert hopstream(*arguments).returncode == 0


def test_settings_that_are_not_the_stores_are_refused_only_where_they_are_given(tmp_path: Path) -> None:
    grown_store(tmp_path)
    table = pa.table({"src": [0, 10], "dst": [20, 30]})
    pq.write_table(table, tmp_path / "more.parquet")
    more = ["ingest", "--append", "--edges", str(tmp_path / "more.parquet"), "--out", str(tmp_path / "store")]
    refused = hopstream(*more, "--fanout", "3,2")
    assert refused.returncode == 2
    assert "--fanout 3,2" in refused.stderr.splitlines()[-1]
    assert hopstream(*more, "--undirected", "--fanout", "15,10,5").returncode == 0
    refused = hopstream("ingest", "--append", "--out", str(tmp_path / "store"))
    assert "neither --nodes nor --edges" in refused.stderr.splitlines()[-1]
    refused = hopstream("ingest", "--edges", str(tmp_path / "more.parquet"), "--out", str(tmp_path / "other"))
    assert refused.returncode == 2
    assert "--nodes: none given" in refused.stderr.splitlines()[-1]


@pytest.mark.soak
def test_a_changed_store_is_trained_on_and_exactly_its_live_nodes_are_embedded(tmp_path: Path) -> None:
    grown_store(tmp_path)
    store = str(tmp_path / "store")
    gone = [10 * number for number in (3, 4, 111, 298)]
    pq.write_table(pa.table({"id": gone}), tmp_path / "gone.parquet")
    result_of("delete", store, "--nodes", str(tmp_path / "gone.parquet"))
    run = small_run(tmp_path, training={"epochs": 1})
    assert result_of("pretrain", str(run))["state"] == "finished"
    embedded = result_of("embed", str(run))
    assert embedded["rows"] == 296
    found = pq.read_table(Path(embedded["out"]) / "node")
    assert sorted(found["id"].to_pylist()) == [10 * n for n in range(300) if 10 * n not in gone]
    assert np.isfinite(found["embedding"].combine_chunks().flatten().to_numpy()).all()
    report = result_of("evaluate", str(run))
    assert report["node_types"][0]["num_nodes"] == report["node_types"][0]["num_labelled"] == 296
    # the same encoder over the compacted store: the same nodes get the same rows
    result_of("compact", store)
    again = result_of("embed", str(run), "--store", store, "--out", str(tmp_path / "again"))
    later = pq.read_table(Path(again["out"]) / "node")
    rows = {name: np.array(row) for name, row in zip(*(later[c].to_pylist() for c in ("id", "embedding")), strict=True)}
    for name, row in zip(found["id"].to_pylist(), found["embedding"].to_pylist(), strict=True):
        np.testing.assert_allclose(rows[name], row, rtol=1e-4, atol=1e-5)


def test_deleted_nodes_are_no_seeds_and_are_left_out_of_figures(tmp_path: Path) -> None:
    grown_store(tmp_path)
    url = str(tmp_path / "store")
    data = DataSection.model_validate(yaml.safe_load(small_run(tmp_path).read_text())["data"])
    assert seed_nodes(Store.open(url), data) is None
    pq.write_table(pa.table({"id": [0, 10, 20]}), tmp_path / "gone.parquet")
    result_of("delete", url, "--nodes", str(tmp_path / "gone.parquet"))
    store = Store.open(url)
    seeds = seed_nodes(store, data)
    assert seeds is not None
    assert sorted(set(range(300)) - set(seeds.tolist())) == store.deleted("node").tolist()
    report = inspect_store(url, progress=NoProgress())
    kind, relation = report.node_types[0], report.relations[0]
    assert (kind.num_nodes, kind.num_deleted) == (297, 3)
    assert kind.labels is not None
    assert kind.labels["num_labelled"] == 297
    assert sum(each.nodes for each in relation.in_degree.histogram) == 297
    assert sum(each.nodes for each in relation.out_degree.histogram) == 297
    assert json.loads(json.dumps(report.ingest_report))["change"] == "delete"
