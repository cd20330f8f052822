"""Law: whatever the tables hold, a store equals a plain model of them, or one clear error says what is wrong."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, event, given, settings

from storage import segments
from storage.errors import BadInput
from storage.ingest import IngestResources, IngestSettings, ingest
from storage.schema import Generation
from storage.stages import budget, node_rows, node_scan, node_stages
from storage.store import Store
from tests.laws.drawn_graphs import Drawn, drawn_graphs
from tests.laws.table_model import Complaint, Model, exact_hotness, model_of

MEMORY_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""thousands of small files, each forced to the disk"""
MASK = (1 << 64) - 1


@contextmanager
def small_pieces() -> Iterator[None]:
    """A floor of nearly nothing and pieces of a few rows, so that tiny tables take the ways of large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "PROCESS_BYTES", 0)
        patch.setattr(budget, "LEAST_WORKER_BYTES", 64)
        patch.setattr(budget, "_LEAST_ROWS", 2)
        patch.setattr(node_scan, "_BUCKET_ROWS", 2)
        patch.setattr(node_stages, "_PIECE", 3)
        for module in (segments, node_rows):
            patch.setattr(module, "ROW_GROUP_ROWS", 4)
        yield


def run(drawn: Drawn, folder: Path) -> Generation:
    asked = IngestSettings.model_validate(drawn.write(folder / "tables"))
    out = str(folder / "store")
    if not drawn.small_pieces:
        return ingest(asked, out=out, resources=IngestResources(num_workers=drawn.num_workers))
    with small_pieces():
        most = max(table.num_rows for table in drawn.nodes.values())
        memory = 16 * most + 640 * drawn.num_workers
        return ingest(asked, out=out, resources=IngestResources(memory_bytes=memory, num_workers=drawn.num_workers))


def check(drawn: Drawn) -> None:
    model = model_of(drawn)
    event("refused" if model.complaints else "stored")
    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER) as name:
        folder = Path(name)
        try:
            generation = run(drawn, folder)
        except BadInput as error:
            check_error(error, drawn, model.complaints, folder)
            assert not (folder / "store").exists()
        else:
            assert model.complaints == []
            check_store(generation, drawn, model, folder / "store")


def check_error(error: BadInput, drawn: Drawn, complaints: list[Complaint], folder: Path) -> None:
    """The message is one line, and one of the complaints: file, column, a row of it and the number of rows."""
    text = str(error)
    assert len(text.splitlines()) == 1
    for place, wanted, exact in _places(drawn, complaints):
        if error.place != f"{folder}/tables/{place}":
            continue
        count = re.search(r"\((\d+) (of (\d+) )?rows[^()]*\)$", error.found) or re.search(
            r"(\d+) of (\d+) rows with an unknown end$", error.found
        )
        assert count, text
        assert int(count[1]) == wanted if exact else int(count[1]) <= wanted, text
        return
    raise AssertionError(f"{text}\nis none of {complaints}")


def _places(drawn: Drawn, complaints: list[Complaint]) -> Iterator[tuple[str, int, bool]]:
    """Each place that may be named, how many rows go with it, and whether it must be exactly so many.

    With several broken rules a row is counted under the first of them.
    """
    alone = len(complaints) == 1
    for complaint in complaints:
        table = (drawn.nodes | drawn.edges)[complaint.table]
        folder = complaint.table.replace(":", "-")
        if complaint.whole_column:
            file, _ = table.place(0)
            yield f"{folder}/{file}, column {complaint.whole_column}", table.num_rows, False
        for row, columns in complaint.rows.items():
            file, number = table.place(row)
            if alone and row != min(complaint.rows):
                continue  # the first is shown
            for column in columns:
                place = f"{folder}/{file}, column {column}, row {number} (counted from 0)"
                yield place, len(complaint.rows), alone


def check_store(generation: Generation, drawn: Drawn, model: Model, store: Path) -> None:
    report = {key: value for key, value in generation.report.items() if key != "seconds"}
    assert report == model.report
    assert Generation.model_validate_json((store / "generations/0.json").read_bytes()).report == report
    names = {"manifest.json", "generations/0.json", "generations/0.manifest.json"}
    order = {name: check_nodes(name, drawn, model, store, names) for name in drawn.nodes}
    check_hotness(drawn, model, order)
    for name, rows in model.relations.items():
        source, _, target = name.split(":")
        kept = {"weight", "timestamp"} & set(drawn.edges.get(name, drawn.edges.get(_forward(name), None)).columns)  # type: ignore[union-attr]  # every relation comes from a table
        folder = f"edges/{name.replace(':', '__')}"
        arrays = {key: np.load(store / folder / f"{key}.0.npy") for key in ("indptr", "indices", "out_degree", *kept)}
        check_edges(rows, arrays, order[source], order[target])
        names |= {f"{folder}/{key}.0{end}" for key in arrays for end in (".npy", ".sums.npy")}
    assert {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()} == names
    check_reading(drawn, model, order, store)


def _forward(name: str) -> str:
    """The relation that `rev_` one is the reverse of."""
    source, short, target = name.split(":")
    return f"{target}:{short.removeprefix('rev_')}:{source}"


def check_nodes(name: str, drawn: Drawn, model: Model, store: Path, names: set[str]) -> list[int]:
    """Compare a node segment; returns the row of the table of each dense id."""
    node, folder = model.nodes[name], f"nodes/{name}"
    stored = pq.read_table(store / folder / "ids.0.parquet").to_pydict()
    order: list[int] = stored.pop("position")
    assert sorted(order) == list(range(len(order)))
    assert stored == {key: [values[row] for row in order] for key, values in node.columns.items()}
    lookup = np.load(store / folder / "lookup.0.npy")
    is_text = isinstance(node.columns["id"][0], str)
    hashes = [xxhash.xxh64_intdigest(value.encode()) if is_text else splitmix64(value) for value in stored["id"]]
    assert lookup.tolist() == sorted((found, row) for row, found in enumerate(hashes))
    kinds = ["ids", "lookup"]
    if node.features is not None:
        found = np.load(store / folder / "features.0.npy")
        assert found.dtype == node.features.dtype
        assert np.array_equal(found, node.features[order])
        kinds.append("features")
    info = json.loads((store / "generations/0.json").read_text())["node_types"][list(drawn.nodes).index(name)]
    assert info["feature_scale"] == (None if node.scale is None else list(node.scale))
    names |= {f"{folder}/{kind}.0.sums.npy" for kind in kinds}
    names |= {f"{folder}/{kind}.0.{'parquet' if kind == 'ids' else 'npy'}" for kind in kinds}
    return order


def splitmix64(value: int) -> int:
    word = value & MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def check_hotness(drawn: Drawn, model: Model, order: dict[str, list[int]]) -> None:
    """Hottest first; what is equally hot in fixed point stands as in the table."""
    if drawn.options["order"] == "input":
        assert all(rows == sorted(rows) for rows in order.values())
        return
    hotness = exact_hotness(model, drawn.options["fanout"])
    for name, rows in order.items():
        values = [hotness[name, row] for row in rows]
        assert all(a >= b * (1 - 1e-9) for a, b in pairwise(values))
        unread = [row for row, value in zip(rows, values, strict=True) if value == 1]  # nobody's in-neighbours
        assert unread == sorted(unread)


def check_edges(rows: list[Any], arrays: dict[str, Any], sources: list[int], targets: list[int]) -> None:
    source, target = ({row: dense for dense, row in enumerate(order)} for order in (sources, targets))
    ordered = sorted((target[v], t, source[u], at, w) for at, (u, v, w, t) in enumerate(rows))
    counts = np.bincount([v for v, *_ in ordered], minlength=len(target))
    assert arrays["indptr"].tolist() == [0, *np.cumsum(counts).tolist()]
    assert arrays["indices"].tolist() == [u for _, _, u, _, _ in ordered]
    assert arrays["out_degree"].tolist() == np.bincount(arrays["indices"], minlength=len(source)).tolist()
    assert {arrays[key].dtype for key in ("indptr", "indices", "out_degree")} == {np.dtype(np.int32)}
    if "timestamp" in arrays:
        assert arrays["timestamp"].tolist() == [t for _, t, *_ in ordered]
    if "weight" in arrays:
        assert arrays["weight"].dtype == np.float32
        assert arrays["weight"].tolist() == [w for *_, w in ordered]


def check_reading(drawn: Drawn, model: Model, order: dict[str, list[int]], store: Path) -> None:
    """The store opens, and finds every id where it is."""
    opened = Store.open(str(store))
    for name, rows in order.items():
        ids = drawn.nodes[name].columns["id"]
        found = opened.rows_of(
            name, ids.array().cast(str(ids.type.value_type) if "dict" in str(ids.type) else ids.type)
        )
        assert found.tolist() == [rows.index(row) for row in range(len(rows))]
    reverse = {str(info.relation): info.reverse_of and str(info.reverse_of) for info in opened.relations}
    assert set(reverse) == set(model.relations)
    for name, other in reverse.items():
        source, short, target = name.split(":")
        turned = f"{target}:{short.removeprefix('rev_') if 'rev_' in short else 'rev_' + short}:{source}"
        assert other == (None if not drawn.options["undirected"] else name if source == target else turned)


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@given(drawn_graphs())
@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=QUIET)
def test_any_tables_give_a_store_that_equals_them_or_one_clear_error(drawn: Drawn) -> None:
    check(drawn)


@pytest.mark.soak
@given(drawn_graphs())
@settings(max_examples=600, derandomize=True, deadline=None, suppress_health_check=QUIET)
def test_any_of_many_tables_give_a_store_that_equals_them_or_one_clear_error(drawn: Drawn) -> None:
    check(drawn)
