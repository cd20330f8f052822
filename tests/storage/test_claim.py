"""What an ingest leaves behind: a whole store, or nothing; and what it will not write over."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.claim import UNFINISHED
from storage.errors import BadInput
from storage.ingest import IngestResources, IngestSettings, ingest
from storage.place import Place
from storage.progress import NoProgress
from storage.store import Store


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


STAGES = ["map ids", "read edges", "order nodes", "write nodes", "write edges", "commit"]


@pytest.mark.parametrize("stage", STAGES)
def test_after_an_interrupt_the_same_ingest_goes_on_and_another_starts_anew(
    tmp_path: Path, settings: IngestSettings, stage: str
) -> None:
    ingest(settings, out=str(tmp_path / "whole"))
    other = settings.model_copy(update={"undirected": True})
    ingest(other, out=str(tmp_path / "other"))
    for later, expected in ((settings, "whole"), (other, "other")):
        out = tmp_path / f"{expected}-interrupted"
        with pytest.raises(KeyboardInterrupt):
            ingest(settings, out=str(out), progress=Interrupt(stage))
        assert not (out / "manifest.json").exists()
        ingest(later, out=str(out))
        assert all_bytes(out) == all_bytes(tmp_path / expected)


def test_bad_input_leaves_neither_the_place_nor_the_folders_above_it(tmp_path: Path, settings: IngestSettings) -> None:
    pq.write_table(pa.table({"src": ["a", "b"], "dst": ["b", "z"]}), tmp_path / "edges.parquet")
    with pytest.raises(BadInput, match="unknown n 'z'"):
        ingest(settings, out=str(tmp_path / "deep" / "er" / "store"))
    assert not (tmp_path / "deep").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(BadInput, match="unknown n 'z'"):
        ingest(settings, out=str(tmp_path / "mine"))
    assert list((tmp_path / "mine").iterdir()) == []


def test_two_ingests_into_one_place_refuse_each_other(tmp_path: Path, settings: IngestSettings) -> None:
    out = str(tmp_path / "store")

    class Second(NoProgress):
        """Starts another ingest into the same place in the middle of the first."""

        refused = 0

        def stage(self, name: str, *, total: int, unit: str) -> None:
            with pytest.raises(BadInput, match=r"another ingest is writing there.*wait for it"):
                ingest(settings, out=out)
            self.refused += 1

    second = Second()
    ingest(settings, out=out, progress=second)
    assert second.refused >= len(STAGES)
    ingest(settings, out=str(tmp_path / "other"))
    assert all_bytes(tmp_path / "store") == all_bytes(tmp_path / "other")


def test_a_remote_place_under_way_is_refused_from_another_machine(settings: IngestSettings, tmp_path: Path) -> None:
    place = "memory://claim/store"

    class Elsewhere(NoProgress):
        """Another machine: it shares the place, not the folder of temporary files."""

        refused = 0

        def stage(self, name: str, *, total: int, unit: str) -> None:
            with pytest.raises(BadInput, match="another ingest is writing there on host"):
                ingest(settings, out=place, resources=IngestResources(work_folder=str(tmp_path / "there")))
            self.refused += 1

    elsewhere = Elsewhere()
    ingest(settings, out=place, resources=IngestResources(work_folder=str(tmp_path / "here")), progress=elsewhere)
    assert elsewhere.refused >= len(STAGES)
    assert Store.open(place).num_nodes("n") == 3
    assert UNFINISHED not in Place(place).names()


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
