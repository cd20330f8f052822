"""Ingest on Ray: the bytes of the local one, also when workers are killed; its errors; what it needs."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.ray_cluster import ray_cluster
from service.ray_executor import ENVIRONMENT, RayExecutor, ray_executor
from storage.append import append
from storage.append_settings import AppendSettings
from storage.errors import BadInput
from storage.ingest import IngestResources, IngestSettings, ingest
from storage.stages.budget import LEAST_WORKER_BYTES, PROCESS_BYTES, Budget
from storage.stages.executor import MachineShare
from tests.processes import hopstream, wait_until
from tests.service.ray_tasks import (
    DeadlyExecutor,
    always_die,
    fail_with_full_disk,
    note_start,
    refuse_third,
)
from tests.storage.test_ingest import all_bytes, shop, write_tables

MEMORY = 2 << 30
HERE = MachineShare(num_workers=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(num_cpus=2, object_store_bytes=100 << 20, environment=ENVIRONMENT):
        yield


def shop_settings(folder: Path) -> IngestSettings:
    """Two types, string ids, weights, times; so many row groups that every stage has several tasks."""
    settings = write_tables(folder, shop(), num_files=3, row_group_size=7)
    return settings.model_copy(update={"undirected": True})


def locally(settings: IngestSettings, out: Path) -> dict[str, bytes]:
    ingest(settings, out=str(out), resources=IngestResources(num_workers=1))
    return all_bytes(out)


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_store_made_on_ray_has_the_bytes_of_one_made_here(tmp_path: Path, num_workers: int) -> None:
    settings = shop_settings(tmp_path / "in")
    expected = locally(settings, tmp_path / "here")
    with ray_executor(address=None, num_workers=num_workers, memory_bytes=MEMORY, work_folder=None) as executor:
        assert executor.num_workers == num_workers
        ingest(settings, out=str(tmp_path / "there"), executor=executor)
    assert all_bytes(tmp_path / "there") == expected


@pytest.mark.usefixtures("cluster")
def test_a_store_grown_on_ray_has_the_bytes_of_one_grown_here(tmp_path: Path) -> None:
    settings = shop_settings(tmp_path / "in")
    more = write_tables(tmp_path / "more", {"item": pa.table({"id": list(range(1000, 1040))})}, row_group_size=7)
    for name, executor in (("here", None), ("there", RayExecutor(2, machine=HERE))):
        ingest(settings, out=str(tmp_path / name), executor=executor)
        append(AppendSettings(nodes=more.nodes), out=str(tmp_path / name), executor=executor)
    assert all_bytes(tmp_path / "there") == all_bytes(tmp_path / "here")


@pytest.mark.usefixtures("cluster")
def test_results_come_in_order_and_no_task_begins_before_there_is_room_for_its_result(tmp_path: Path) -> None:
    tasks = [(str(tmp_path), number) for number in range(40)]
    for wanted, number in enumerate(RayExecutor(2, machine=HERE).map(note_start, tasks)):
        assert number == wanted
        assert len(list(tmp_path.iterdir())) <= number + 3


def has_ended(pid: int) -> bool:
    """Whether a process runs no more; it may still wait for its parent to take note."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.usefixtures("cluster")
def test_what_a_task_raises_arrives_as_it_was_and_no_task_runs_any_more(tmp_path: Path) -> None:
    for pipe in ("begun", "never"):
        os.mkfifo(tmp_path / pipe)
    tasks = [(str(tmp_path), number) for number in range(1, 5)]
    with pytest.raises(BadInput) as refused:
        list(RayExecutor(2, machine=HERE).map(refuse_third, tasks))
    error = refused.value
    assert type(error) is BadInput
    assert (error.place, error.found, error.rule, error.remedy) == (
        "table, row 3", "three", "numbers are others", "count again",
    )  # fmt: skip
    (begun,) = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    wait_until(lambda: has_ended(begun))  # it was killed; the system may still be at it
    with pytest.raises(OSError, match="No space left") as full:
        list(RayExecutor(2, machine=HERE).map(fail_with_full_disk, [1, 2]))
    assert (full.value.errno, full.value.filename) == (28, "/some/file")


@pytest.mark.usefixtures("cluster")
def test_a_task_that_kills_every_worker_ends_in_one_line() -> None:
    with pytest.raises(ChildProcessError, match="the same command goes on from its last finished stage"):
        list(RayExecutor(2, machine=HERE).map(always_die, [0]))


def test_memory_is_counted_for_every_process_of_one_machine(tmp_path: Path) -> None:
    settings = shop_settings(tmp_path / "in")
    machine = MachineShare(num_workers=8, worker_bytes=256 << 20, fixed_bytes=100 << 20, copies_results=True)
    executor = RayExecutor(8, machine=machine)
    assert executor.limited(8) is executor
    assert executor.limited(3).num_workers == 3
    with pytest.raises(BadInput, match=r"the floor is 660 MiB.*give --memory 661MiB or more"):
        ingest(
            settings, out=str(tmp_path / "out"), executor=executor, resources=IngestResources(memory_bytes=600 << 20)
        )
    assert not (tmp_path / "out").exists()


def test_a_budget_holds_what_all_processes_of_its_workers_take_and_has_fewer_where_they_do_not_fit() -> None:
    process, least = PROCESS_BYTES, LEAST_WORKER_BYTES
    for memory in (3 * process, 4 * process, 16 * process):
        budget = Budget.checked(
            memory_bytes=memory,
            num_workers=8,
            num_nodes=0,
            worker_bytes=process,
            fixed_bytes=least,
            copies_results=True,
        )
        workers = budget.num_workers
        assert (1 + workers) * process + least + (1.5 * workers + 1) * budget.worker_bytes <= memory
        assert workers == 8 or (2 + workers) * process + least + (workers + 1) * least > memory


@pytest.mark.soak
@pytest.mark.usefixtures("cluster")
def test_workers_killed_while_they_write_change_no_byte(tmp_path: Path) -> None:
    settings = shop_settings(tmp_path / "in")
    expected = locally(settings, tmp_path / "here")
    (tmp_path / "marks").mkdir()
    executor = DeadlyExecutor(2, machine=HERE, marks=tmp_path / "marks")
    ingest(settings, out=str(tmp_path / "there"), executor=executor)
    assert {path.name for path in (tmp_path / "marks").iterdir()} == executor.kinds
    assert len(executor.kinds) > 8
    assert all_bytes(tmp_path / "there") == expected


def test_bad_input_in_a_worker_is_one_line_with_exit_code_2(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2, None]}), tmp_path / "nodes.parquet")
    pq.write_table(pa.table({"src": [1], "dst": [2]}), tmp_path / "edges.parquet")
    refused = hopstream(
        "ingest", "--nodes", f"{tmp_path}/nodes.parquet", "--edges", f"{tmp_path}/edges.parquet",
        "--out", f"{tmp_path}/store", "--ray", "--workers", "2", "--json",
    )  # fmt: skip
    assert refused.returncode == 2, refused.stderr
    assert "nodes.parquet, column id, row 2" in json.loads(refused.stdout)["error"]
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_a_cluster_that_is_not_there_and_an_address_without_ray_are_refused(tmp_path: Path) -> None:
    shop_settings(tmp_path / "in")
    words = ["ingest", "--nodes", f"item={tmp_path}/in/item", "--edges", f"item:like:item={tmp_path}/in/item-like-item"]
    words += ["--out", f"{tmp_path}/store"]
    refused = hopstream(*words, "--address", "127.0.0.1:1")
    assert refused.returncode == 2
    assert "give --ray as well" in refused.stderr
    refused = hopstream(*words, "--address", "127.0.0.1:1", "--ray")
    assert refused.returncode == 2
    assert "--address 127.0.0.1:1" in refused.stderr
    assert "Traceback" not in refused.stderr
