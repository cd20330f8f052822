"""Every way a table can break a rule: one line with place, count, rule, remedy; nothing left behind."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem

from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from tests.storage.bad_tables import CASES
from tests.storage.broken import GOOD, edges_table, write


@pytest.mark.parametrize("name", CASES)
def test_one_line_names_the_place_and_the_remedy_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    settings = IngestSettings(**case.write(tmp_path))
    with pytest.raises(BadInput) as caught:
        ingest(settings, out=str(tmp_path / "store"))
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in case.says if part not in message] == [], message
    assert not (tmp_path / "store").exists()


class Locked(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A storage that lets nobody in, and explains itself at length."""

    protocol = "locked"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        raise PermissionError("no credentials found\nlooked in: environment, files")


def test_storage_that_refuses_access_is_named_in_one_line(tmp_path: Path) -> None:
    fsspec.register_implementation("locked", Locked, clobber=True)
    settings = IngestSettings(nodes={"n": "locked://bucket/*.parquet"}, edges={"n:to:n": "locked://bucket/e"})
    with pytest.raises(BadInput) as caught:
        ingest(settings, out=str(tmp_path / "store"))
    assert str(caught.value) == (
        "locked://bucket/*.parquet: PermissionError: no credentials found: "
        "the credentials in use must allow the request; set them (for S3 AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) or have access granted"
    )


def test_a_reverse_relation_given_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, nodes=[GOOD], edges=[edges_table()])
    settings = IngestSettings(
        nodes={"a": f"{tmp_path}/nodes", "b": f"{tmp_path}/nodes"},
        edges={"a:r:b": f"{tmp_path}/edges", "b:rev_r:a": f"{tmp_path}/edges"},
        undirected=True,
    )
    with pytest.raises(BadInput, match=r"relation b:rev_r:a.*--undirected adds it for a:r:b"):
        ingest(settings, out=str(tmp_path / "store"))
