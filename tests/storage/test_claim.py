"""What an ingest leaves behind: a whole store, or nothing; and what it will not write over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.claim import MARKER
from storage.errors import BadInput
from storage.ingest import IngestSettings, ingest
from storage.progress import NoProgress


@pytest.fixture
def settings(tmp_path: Path) -> IngestSettings:
    pq.write_table(pa.table({"id": ["a", "b", "c"]}), tmp_path / "nodes.parquet")
    pq.write_table(pa.table({"src": ["a", "b"], "dst": ["b", "c"]}), tmp_path / "edges.parquet")
    return IngestSettings(nodes={"n": f"{tmp_path}/nodes.parquet"}, edges={"n:to:n": f"{tmp_path}/edges.parquet"})


def all_bytes(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


class Interrupt(NoProgress):
    """Ctrl-C when a stage begins."""

    def __init__(self, at: str) -> None:
        self._at = at

    def stage(self, name: str, *, total: int, unit: str) -> None:
        if name == self._at:
            raise KeyboardInterrupt


STAGES = ["read edges", "write nodes", "write edges", "commit"]


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_leaves_nothing(tmp_path: Path, settings: IngestSettings, stage: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        ingest(settings, out=str(tmp_path / "store"), progress=Interrupt(stage))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_leaves_an_empty_folder_empty(tmp_path: Path, settings: IngestSettings, stage: str) -> None:
    (tmp_path / "store").mkdir()
    with pytest.raises(KeyboardInterrupt):
        ingest(settings, out=str(tmp_path / "store"), progress=Interrupt(stage))
    assert list((tmp_path / "store").iterdir()) == []


KILLED = """
import os, signal, sys
from storage.ingest import IngestSettings, ingest
from storage.progress import NoProgress

class Killer(NoProgress):
    def stage(self, name, *, total, unit):
        if name == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)

ingest(IngestSettings.model_validate_json(sys.argv[1]), out=sys.argv[2], progress=Killer())
"""


@pytest.mark.parametrize("stage", ["write edges", "commit"])
def test_after_a_kill_the_same_ingest_gives_the_same_bytes(
    tmp_path: Path, settings: IngestSettings, stage: str
) -> None:
    out = tmp_path / "store"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, settings.model_dump_json(), str(out), stage],
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert killed.returncode == -signal.SIGKILL
    assert (out / "nodes").exists()
    assert not (out / "manifest.json").exists()
    ingest(settings, out=str(out))
    ingest(settings, out=str(tmp_path / "other"))
    assert all_bytes(out) == all_bytes(tmp_path / "other")


def test_an_existing_store_is_refused_and_kept(tmp_path: Path, settings: IngestSettings) -> None:
    out = tmp_path / "store"
    ingest(settings, out=str(out))
    before = all_bytes(out)
    with pytest.raises(BadInput, match=r"store: it already holds a store.*another place or delete it"):
        ingest(settings, out=str(out))
    assert all_bytes(out) == before


def test_a_store_whose_ingest_was_killed_after_the_manifest_is_whole(tmp_path: Path, settings: IngestSettings) -> None:
    out = tmp_path / "store"
    ingest(settings, out=str(out))
    before = all_bytes(out)
    (out / MARKER).touch()
    with pytest.raises(BadInput, match="it already holds a store"):
        ingest(settings, out=str(out))
    assert all_bytes(out) == before


def test_a_place_with_other_files_is_refused_and_kept(tmp_path: Path, settings: IngestSettings) -> None:
    (tmp_path / "out" / "nodes").mkdir(parents=True)
    (tmp_path / "out" / "nodes" / "mine.parquet").write_text("precious")
    with pytest.raises(BadInput, match=r"it already holds nodes.*choose another place or empty it"):
        ingest(settings, out=str(tmp_path / "out"))
    assert (tmp_path / "out" / "nodes" / "mine.parquet").read_text() == "precious"


def test_a_place_that_is_a_file_is_refused(tmp_path: Path, settings: IngestSettings) -> None:
    (tmp_path / "store").write_text("x")
    with pytest.raises(BadInput, match="choose another place"):
        ingest(settings, out=str(tmp_path / "store"))
    assert (tmp_path / "store").read_text() == "x"
