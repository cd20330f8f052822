"""Finding, ordering and addressing the rows of Parquet tables."""

from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import BadInput
from storage.offences import Offences
from storage.tables import Table, open_table


def read_ids(table: Table) -> list[int]:
    return [x for _, batch in table.batches(["id"], max_rows=100) for x in batch.column(0).to_pylist()]


def write(path: Path, values: list[int], *, row_group_size: int = 1000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": values}), path, row_group_size=row_group_size)


def ids_of(url: str) -> list[int]:
    return read_ids(open_table(url, required=("id",)))


def test_a_file_a_glob_and_a_folder_give_rows_in_the_order_of_paths(tmp_path: Path) -> None:
    write(tmp_path / "t" / "b.parquet", [3, 4])
    write(tmp_path / "t" / "a.parquet", [1, 2])
    write(tmp_path / "t" / "c" / "a.parquet", [5])
    assert ids_of(f"{tmp_path}/t/a.parquet") == [1, 2]
    assert ids_of(f"{tmp_path}/t/*.parquet") == [1, 2, 3, 4]
    assert ids_of(f"{tmp_path}/t") == [1, 2, 3, 4, 5]
    assert ids_of(f"{tmp_path}/t/*") == [1, 2, 3, 4, 5]
    assert ids_of(f"file://{tmp_path}/t/") == [1, 2, 3, 4, 5]


def test_what_writers_leave_beside_the_data_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "t" / "a.parquet", [1])
    write(tmp_path / "t" / "_temporary" / "b.parquet", [9])
    write(tmp_path / "t" / ".hidden.parquet", [9])
    (tmp_path / "t" / "_SUCCESS").touch()
    (tmp_path / "t" / "notes.txt").write_text("x")
    assert ids_of(f"{tmp_path}/t") == [1]


def test_a_path_with_glob_signs_that_exists_is_that_file(tmp_path: Path) -> None:
    write(tmp_path / "[x].parquet", [1])
    write(tmp_path / "x.parquet", [2])
    assert ids_of(f"{tmp_path}/[x].parquet") == [1]


def test_tables_are_read_from_any_file_system(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1, 2])
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/tables/x/a.parquet", (tmp_path / "a.parquet").read_bytes())
    fs.pipe_file("/tables/x/b.parquet", (tmp_path / "a.parquet").read_bytes())
    try:
        table = open_table("memory://tables/x/*.parquet", required=("id",))
        assert read_ids(table) == [1, 2, 1, 2]
        assert table.place(3, "id").startswith("memory:///tables/x/b.parquet, column id, row 1")
    finally:
        fs.rm("/tables", recursive=True)


def test_batches_and_parts_cover_the_rows_in_order(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", list(range(10)), row_group_size=4)
    write(tmp_path / "b.parquet", [])
    write(tmp_path / "c.parquet", list(range(10, 17)), row_group_size=5)
    with pytest.raises(BadInput, match=r"b\.parquet, column id"):  # an empty list has no type
        open_table(f"{tmp_path}/*.parquet", required=("id",))
    pq.write_table(pa.table({"id": pa.array([], pa.int64())}), tmp_path / "b.parquet")
    table = open_table(f"{tmp_path}/*.parquet", required=("id",))
    assert table.num_rows == 17
    batches = [(row, batch.column(0).to_pylist()) for row, batch in table.batches(["id"], max_rows=3)]
    assert all(row == values[0] and len(values) <= 3 for row, values in batches)
    assert [x for _, values in batches for x in values] == list(range(17))
    parts = table.parts(min_rows=6)
    assert [(part.file, part.first_row, part.num_rows) for part in parts] == [(0, 0, 8), (0, 8, 2), (1, 10, 7)]
    rows = [x for part in parts for _, b in table.read_part(part, ["id"], max_rows=4) for x in b.column(0).to_pylist()]
    assert rows == list(range(17))
    assert [table.value(row, "id") for row in (0, 9, 10, 16)] == [0, 9, 10, 16]


def test_a_row_is_named_by_its_file_and_its_row_there(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1, 2, 3])
    write(tmp_path / "b.parquet", [4, 5])
    table = open_table(f"{tmp_path}/*.parquet", required=("id",))
    assert table.place(0, "id") == f"{tmp_path}/a.parquet, column id, row 0 (counted from 0)"
    assert table.place(2, "id") == f"{tmp_path}/a.parquet, column id, row 2 (counted from 0)"
    assert table.place(4, "id") == f"{tmp_path}/b.parquet, column id, row 1 (counted from 0)"


def test_a_relative_path_is_named_relatively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "t" / "a.parquet", [1])
    monkeypatch.chdir(tmp_path)
    assert open_table("t/*.parquet", required=("id",)).place(0, "id").startswith("t/a.parquet, ")


def test_a_file_replaced_after_opening_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1, 2, 3])
    table = open_table(f"{tmp_path}/a.parquet", required=("id",))
    write(tmp_path / "a.parquet", [1, 2])
    with pytest.raises(BadInput, match=r"2 rows read, 3 expected.*must not change"):
        read_ids(table)


def test_offences_count_the_rows_of_the_first_rule_only(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", list(range(8)))
    table = open_table(f"{tmp_path}/a.parquet", required=("id",))
    offences, later = Offences(), Offences()
    offences.refuse(table)
    offences.add(np.array([2, 3, 3]), column="id", found="odd", rule="R", remedy="mend")
    offences.add(np.array([4]), column="id", found="other", rule="S", remedy="mend")
    later.add(np.array([7]), column="id", found="later", rule="R", remedy="mend")
    offences.merge(later)
    with pytest.raises(BadInput, match=r"row 2 \(counted from 0\): odd \(3 of 8 rows\): R; mend"):
        offences.refuse(table)
