"""Refreshed features against an ingest of changed tables, and against plain arrays."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from storage.append import append
from storage.compact import compact
from storage.delete import DeleteSettings, delete
from storage.errors import BadInput
from storage.ingest import IngestResources, ingest
from storage.refresh import RefreshSettings, refresh
from storage.store import Store
from storage.verify import verify
from tests.storage.growing import DIM, Growing, all_bytes, checksums, read_features, shop


def fixed(rows: NDArray[Any]) -> pa.Array:
    """Rows as a column of lists of one width."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def changed(tables: Growing, picks: NDArray[np.int64], *, seed: int) -> tuple[pa.Table, NDArray[np.float32]]:
    """New features of some users, and the features of all users with them; `tables` is changed in the same way."""
    users = tables.tables["user"]
    rows = users["features"].combine_chunks().flatten().to_numpy().reshape(-1, DIM).copy()
    rows[picks] = np.random.default_rng(seed).uniform(-0.5, 0.5, (len(picks), DIM)).astype(np.float32)
    tables.tables["user"] = users.set_column(0, "features", fixed(rows))
    return pa.table({"id": users["id"].take(pa.array(picks)), "features": fixed(rows[picks])}), rows


@pytest.mark.parametrize(
    "settings", [{}, {"order": "input"}, {"feature_dtype": "float16"}, {"quantize": True}], ids=str
)
def test_refresh_and_compact_equal_an_ingest_of_the_changed_tables(tmp_path: Path, settings: dict[str, Any]) -> None:
    tables = shop(21).write(tmp_path / "tables")
    out = str(tmp_path / "store")
    whole = ingest(tables.whole(**settings), out=out)
    picks = np.random.default_rng(0).permutation(120)[:40]
    if settings.get("quantize"):  # the largest values make the scale: they stay
        rows = tables.tables["user"]["features"].combine_chunks().flatten().to_numpy().reshape(-1, DIM)
        picks = picks[~np.isin(picks, np.abs(rows).argmax(axis=0))]
    table, _ = changed(tables, picks, seed=1)
    pq.write_table(table, tmp_path / "new.parquet", row_group_size=7)
    done = refresh(RefreshSettings(features={"user": str(tmp_path / "new.parquet")}), out=out)
    fresh = ingest(tables.write(tmp_path / "changed").whole(**settings), out=str(tmp_path / "fresh"))
    assert checksums(done) == checksums(fresh) != checksums(whole)
    assert checksums(compact(out)) == checksums(fresh)
    assert verify(out).is_whole


def test_only_the_segments_that_hold_new_rows_get_new_files(tmp_path: Path) -> None:
    tables = shop(22).write(tmp_path / "tables")
    out = str(tmp_path / "store")
    ingest(tables.first(), out=out)
    append(tables.later(), out=out)
    opened = Store.open(out)
    before = {key: row.tolist() for key, row in read_features(opened, "user").items()}
    table, rows = changed(tables, np.arange(tables.old["user"], 120)[::2], seed=2)
    pq.write_table(table, tmp_path / "new.parquet")
    done = refresh(
        RefreshSettings(features={"user": str(tmp_path / "new.parquet")}),
        out=out,
        resources=IngestResources(num_workers=1),
    )
    files, old = ([s.features for s in g.node_types[0].segments] for g in (done, opened.generation))
    assert files[0] == old[0]
    assert files[1] != old[1]
    assert {info.name for info in done.files()} - {info.name for info in opened.generation.files()} == {
        "nodes/user/features.1.2.npy"
    }
    found = read_features(Store.open(out), "user")
    for name, row in zip(tables.tables["user"]["id"].to_pylist(), rows, strict=True):
        assert found[name].tolist() == row.tolist()
    assert {key: row.tolist() for key, row in read_features(opened, "user").items()} == before


def test_refreshing_twice_replaces_the_replaced_rows(tmp_path: Path) -> None:
    tables = shop(23).write(tmp_path / "tables")
    out = str(tmp_path / "store")
    ingest(tables.whole(), out=out)
    for seed in (3, 4):
        table, rows = changed(tables, np.arange(10 * seed, 10 * seed + 15), seed=seed)
        pq.write_table(table, tmp_path / f"{seed}.parquet")
        refresh(RefreshSettings(features={"user": str(tmp_path / f"{seed}.parquet")}), out=out)
    found = read_features(Store.open(out), "user")
    assert [found[name].tolist() for name in tables.tables["user"]["id"].to_pylist()] == rows.tolist()


def test_what_cannot_be_refreshed_is_refused_and_the_store_kept(tmp_path: Path) -> None:
    tables = shop(24).write(tmp_path / "tables")
    out = tmp_path / "store"
    ingest(tables.whole(), out=str(out))
    names = tables.tables["user"]["id"].to_pylist()
    pq.write_table(pa.table({"id": names[:1]}), tmp_path / "gone.parquet")
    delete(DeleteSettings(nodes={"user": str(tmp_path / "gone.parquet")}), out=str(out))
    before = all_bytes(out)
    zeros = np.zeros((2, DIM), dtype=np.float32)

    def given(ids: list[Any], rows: NDArray[Any], *, kind: str = "user") -> RefreshSettings:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        pq.write_table(pa.table({"id": ids, "features": fixed(rows)}), path)
        return RefreshSettings(features={kind: str(path)})

    bad = zeros.copy()
    bad[1, 2] = np.nan
    cases = [
        (given(["x", names[1]], zeros), "unknown user 'x' .*--append"),
        (given(names[:2], zeros), f"unknown user '{names[0]}'"),
        (given([names[5], names[5]], zeros), rf"row 1 .*id '{names[5]}' again"),
        (given(names[1:3], zeros[:, :3]), "3 float32 features: nodes of type user have 5 float32"),
        (given(names[1:3], zeros.astype(np.float16)), "5 float16 features"),
        (given([1, 2], zeros), "ids of node type user are string"),
        (given(names[1:3], bad), "value nan at index 2"),
        (given([None, names[1]], zeros), "null"),
        (given([1, 2], zeros, kind="item"), "5 float32 features: nodes of type item have no features"),
        (given(names[1:3], zeros, kind="shop"), "node type 'shop': unknown"),
    ]
    for settings, message in cases:
        with pytest.raises(BadInput, match=message):
            refresh(settings, out=str(out))
        assert all_bytes(out) == before, message
    done = refresh(given(names[1:3], bad).model_copy(update={"nan": "zero"}), out=str(out))
    assert done.report["refreshed"]["user"] == {"rows": 2, "nan_zeroed": 1}


def test_values_beyond_the_scale_of_a_quantised_store_are_refused(tmp_path: Path) -> None:
    tables = shop(25).write(tmp_path / "tables")
    out = tmp_path / "store"
    ingest(tables.whole(quantize=True), out=str(out))
    before = all_bytes(out)
    rows = np.full((1, DIM), 50, dtype=np.float32)
    pq.write_table(
        pa.table({"id": tables.tables["user"]["id"].slice(0, 1), "features": fixed(rows)}), tmp_path / "n.parquet"
    )
    with pytest.raises(BadInput, match=r"value 50\.0 at index 0 .*127 steps of the store's scale"):
        refresh(RefreshSettings(features={"user": str(tmp_path / "n.parquet")}), out=str(out))
    assert all_bytes(out) == before
