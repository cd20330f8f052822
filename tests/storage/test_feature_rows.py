"""Features in the store: every dtype, every way to write them, conversions and the NaN policy."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from storage.ingest import IngestSettings, ingest
from storage.schema import Generation


def store_features(folder: Path, columns: dict[str, Any], **settings: Any) -> Generation:
    """Ingest one node type with ids 0..n-1 from two files, and an edge 0 -> n-1, to `folder/store`."""
    table = pa.table(columns)
    table = table.append_column("id", pa.array(range(table.num_rows)))
    half = table.num_rows // 2
    (folder / "nodes").mkdir()
    pq.write_table(table.slice(0, half), folder / "nodes/a.parquet")
    pq.write_table(table.slice(half), folder / "nodes/b.parquet", row_group_size=2)
    pq.write_table(pa.table({"src": [0], "dst": [table.num_rows - 1]}), folder / "edges.parquet")
    given = IngestSettings(nodes={"n": f"{folder}/nodes"}, edges={"n:to:n": f"{folder}/edges.parquet"}, **settings)
    return ingest(given, out=str(folder / "store"))


def stored_by_id(folder: Path) -> NDArray[Any]:
    """Stored features with row i for id i."""
    ids = pq.read_table(folder / "store/nodes/n/ids.0.parquet")["id"].to_numpy()
    rows: NDArray[Any] = np.load(folder / "store/nodes/n/features.0.npy")
    return rows[np.argsort(ids)]


def as_list(values: NDArray[Any], *, list_type: str) -> pa.Array:
    kind = pa.from_numpy_dtype(values.dtype)
    types = {
        "fixed": pa.list_(kind, values.shape[1]),
        "list": pa.list_(kind),
        "large_list": pa.large_list(kind),
    }
    return pa.array(list(values), types[list_type])


@pytest.mark.parametrize("list_type", ["fixed", "list", "large_list"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8"])
def test_features_keep_their_dtype(tmp_path: Path, dtype: str, list_type: str) -> None:
    values = np.arange(24).reshape(8, 3).astype(dtype)
    generation = store_features(tmp_path, {"features": as_list(values, list_type=list_type)})
    found = stored_by_id(tmp_path)
    assert generation.node_types[0].feature_dtype == dtype
    assert found.dtype == dtype
    assert np.array_equal(found, values)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8"])
def test_named_columns_of_one_stored_dtype_keep_it(tmp_path: Path, dtype: str) -> None:
    values = np.arange(24).reshape(8, 3).astype(dtype)
    columns = {f"x{i}": pa.array(values[:, i]) for i in range(3)}
    store_features(tmp_path, columns, feature_columns=("x2", "x0"))
    found = stored_by_id(tmp_path)
    assert found.dtype == dtype
    assert np.array_equal(found, values[:, [2, 0]])


def test_named_columns_of_mixed_types_become_float32(tmp_path: Path) -> None:
    columns = {"a": [1, 2, 3], "b": [True, False, True], "c": [0.5, 1.5, 2.5]}
    store_features(tmp_path, columns, feature_columns=("c", "a", "b"))
    found = stored_by_id(tmp_path)
    assert found.dtype == np.float32
    assert found.tolist() == [[0.5, 1, 1], [1.5, 2, 0], [2.5, 3, 1]]


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("float64", "float32"),
        ("float32", "float16"),
        ("float32", "uint8"),
        ("int64", "int8"),
        ("uint8", "float16"),
        ("uint8", "int8"),
        ("int8", "uint8"),
    ],
)
def test_features_are_converted_when_asked(tmp_path: Path, given: str, asked: Any) -> None:
    values = np.arange(12).reshape(4, 3).astype(given)
    store_features(tmp_path, {"features": as_list(values, list_type="fixed")}, feature_dtype=asked)
    found = stored_by_id(tmp_path)
    assert found.dtype == asked
    assert np.array_equal(found, values)


def test_nan_infinity_and_overflow_are_zeroed_and_counted_when_asked(tmp_path: Path) -> None:
    values = np.array([[1.0, 1e6], [-1e6, np.nan], [np.inf, 2.0]], dtype=np.float32)
    columns = {"features": as_list(values, list_type="fixed")}
    generation = store_features(tmp_path, columns, feature_dtype="float16", nan="zero")
    assert generation.report["nodes"]["n"]["nan_zeroed"] == 4
    assert stored_by_id(tmp_path).tolist() == [[1, 0], [0, 0], [0, 2]]


def test_nan_is_zero_in_an_integer_dtype_when_asked(tmp_path: Path) -> None:
    values = np.array([[1.0, np.nan], [255.0, 0.0]], dtype=np.float32)
    columns = {"features": as_list(values, list_type="fixed")}
    store_features(tmp_path, columns, feature_dtype="uint8", nan="zero")
    assert stored_by_id(tmp_path).tolist() == [[1, 0], [255, 0]]
