"""The demo on a small tree of code: every stage, what it prints, and whose folders it leaves alone."""

import dataclasses
from pathlib import Path

import pytest

from service.demo import MARKER, demo_summary, run_demo
from service.outcome import show
from storage.errors import BadInput
from storage.progress import NoProgress
from tests.processes import hopstream

FUNCTIONS = 220
"""a package, so that both are classes of the probe"""


class Stages(NoProgress):
    """Keeps the names of stages in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def stage(self, name: str, *, total: int, unit: str) -> None:
        self.names.append(name)


def write_code(root: Path) -> Path:
    """Two packages whose functions call their neighbours and the other package's."""
    for package, other in (("alpha", "beta"), ("beta", "alpha")):
        lines = [f"import {other}.all"]
        for number in range(FUNCTIONS):
            lines += [
                f"def {package}_{number}(value):",
                f"    return {package}_{(number + 1) % FUNCTIONS}({other}.all.{other}_{number}(value))",
            ]
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").touch()
        (root / package / "all.py").write_text("\n".join(lines) + "\n")
    return root


def users_folder(folder: Path) -> dict[str, bytes]:
    """A folder in which the user has what a demo would write, and its content."""
    for name in ("store/manifest.json", "runs/mine/run.yaml", "tables/nodes.parquet", "run.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    return content(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_demo_runs_every_stage_twice_in_its_folder_and_prints_its_numbers_and_whole_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = write_code(tmp_path / "code")
    out = tmp_path / "a folder with a name that is longer than the eighty columns of an output that is no terminal"
    stages = Stages()
    report = run_demo(str(out), roots=[code], progress=stages)
    assert (report.num_nodes["function"], report.num_files) == (2 * FUNCTIONS, 4)
    assert report.training.state == "finished"
    assert list(report.seconds) == ["code graph", "ingest", "pretrain", "embed", "evaluate"]
    assert [name for name in ("parse code", "pretrain", "embed, layer 1 of 2") if name not in stages.names] == []

    show(dataclasses.asdict(report), as_json=False, table=lambda: demo_summary(report))
    printed = capsys.readouterr().out
    (kind,) = report.evaluation.node_types
    accuracies = [kind.accuracy(rows) for rows in ("trained", "raw", "sgc", "random_init")]
    numbers = [
        *(f"{count:,}" for count in report.num_nodes.values()),
        *(f"{count:,}" for count in report.num_edges.values()),
        *(str(seconds) for seconds in report.seconds.values()),
        *(f"{accuracy:.1f}" for accuracy in accuracies if accuracy is not None),
    ]
    assert [number for number in numbers if number not in printed] == []
    commands = [
        "  hopstream ingest --nodes nodes.parquet --edges edges.parquet --undirected --out my-store\n",
        f"  cp '{out}/run.yaml' my-run.yaml    # then set run.name, run.storage and data.store in it\n",
        "  hopstream evaluate my-run.yaml\n",
        f"The embeddings of this run: {report.embedding.out}\n",
    ]
    assert [command for command in commands if command not in printed] == []

    # again: the demo's own parts are replaced, what the user has put beside them stays
    (out / "notes.txt").write_text("mine")
    (out / "runs" / "mine").mkdir()
    (out / "runs" / "mine" / "run.yaml").write_text("mine")
    again = run_demo(str(out), roots=[code], progress=NoProgress())
    assert again.training.attempts == 1
    assert again.training.loss == report.training.loss
    assert (out / "notes.txt").read_text() == (out / "runs" / "mine" / "run.yaml").read_text() == "mine"


def test_a_folder_that_no_demo_made_is_refused_and_nothing_in_it_changes(tmp_path: Path) -> None:
    before = users_folder(tmp_path / "out")
    with pytest.raises(BadInput, match=rf"it already holds run\.yaml, runs, store, \.\.\..*{MARKER}"):
        run_demo(str(tmp_path / "out"), roots=[tmp_path], progress=NoProgress())
    assert content(tmp_path / "out") == before


def test_the_command_refuses_it_too_with_one_line(tmp_path: Path) -> None:
    before = users_folder(tmp_path)
    refused = hopstream("demo", "--out", str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    assert content(tmp_path) == before


def test_a_demo_that_failed_early_can_be_started_again(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        with pytest.raises(BadInput, match="no Python files"):
            run_demo(str(tmp_path / "out"), roots=[tmp_path / "empty"], progress=NoProgress())
    assert (tmp_path / "out" / MARKER).exists()
