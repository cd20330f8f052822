"""A store that is not whole ends the command that reads it with one line, without a traceback, and with exit code 2."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from tests.data import small_run, small_store
from tests.storage.damage import flipped_byte, missing, shortened

MANIFESTS = ("manifest.json", "generations/0.manifest.json")  # the second is read by who wants generation 0
FEATURES = "nodes/node/features.0.npy"
INDICES = "edges/node__to__node/indices.0.npy"
IDS = "nodes/node/ids.0.parquet"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and a run of one epoch on it; tests that harm the store mend it again."""
    folder = tmp_path_factory.mktemp("trained")
    small_store(folder)
    run = small_run(folder, training={"epochs": 1}, tiers={"host_cache_bytes": 0})
    assert CliRunner().invoke(app, ["pretrain", str(run), "--json"]).exit_code == 0
    return folder


@contextmanager
def of_version(path: Path, *, version: int) -> Iterator[None]:
    """The manifest says another format version while the block runs."""
    whole = path.read_bytes()
    path.write_text(json.dumps({**json.loads(whole), "format_version": version}))
    try:
        yield
    finally:
        path.write_bytes(whole)


@contextmanager
def each_manifest(harm: Callable[[Path], AbstractContextManager[None]], store: Path) -> Iterator[None]:
    """The same harm to the store's manifest and to its generation's."""
    with ExitStack() as harms:
        for name in MANIFESTS:
            harms.enter_context(harm(store / name))
        yield


def harmed(store: Path, harm: str) -> AbstractContextManager[None]:
    """The store with something wrong while the block runs."""
    harms = {
        "another format version": partial(each_manifest, partial(of_version, version=2), store),
        "no manifest": partial(each_manifest, missing, store),
        "no generation": partial(missing, store / "generations/0.json"),
        "no edges": partial(missing, store / INDICES),
        "no features": partial(missing, store / FEATURES),
        "no ids": partial(missing, store / IDS),
        "short edges": partial(shortened, store / INDICES, num_bytes=5000),
        "a damaged page of edges": partial(flipped_byte, store / INDICES, 4100),
        "a damaged page of features": partial(flipped_byte, store / FEATURES, 2 * 4096 + 17),
        "a damaged manifest": partial(each_manifest, partial(flipped_byte, at=3), store),
    }
    return harms[harm]()


COMMANDS = {
    "inspect": ["inspect", "{folder}/store"],
    "pretrain": ["pretrain", "{folder}/small.yaml", "run.name=new"],
    "pretrain with a cache": ["pretrain", "{folder}/small.yaml", "run.name=new", "tiers.host_cache_bytes=1MiB"],
    "embed": ["embed", "{folder}/small.yaml", "--out", "{folder}/embeddings"],
}
ALL = tuple(COMMANDS)
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # harm: the commands that read what is harmed, what they say
    "another format version": (
        ALL,
        ("manifest.json: format version 2", "reads format version 1", "ingest the tables again"),
    ),
    "no manifest": (ALL, ("store: no manifest.json", "written last", "hopstream ingest --out")),
    "no generation": (ALL, ("generations/0.json: missing file",)),
    "no edges": (ALL, (f"{INDICES}: missing file",)),
    "no features": (ALL[1:], (f"{FEATURES}: missing file",)),
    "no ids": (("embed",), (f"{IDS}: missing file",)),
    "short edges": (ALL, (f"{INDICES}: 5000 bytes",)),
    "a damaged page of edges": (ALL, (f"{INDICES}: page 1 has changed",)),
    "a damaged page of features": (ALL[1:], (f"{FEATURES}: page 2 has changed",)),
    "a damaged manifest": (ALL, ("manifest.json: not a manifest",)),
}


@pytest.mark.parametrize(
    ("harm", "command"), [(harm, command) for harm, (commands, _) in CASES.items() for command in commands]
)
def test_a_store_that_is_not_whole_is_refused_in_one_line_with_exit_code_2(
    harm: str, command: str, trained: Path
) -> None:
    words = [word.format(folder=trained) for word in COMMANDS[command]]
    with harmed(trained / "store", harm):
        shown = CliRunner().invoke(app, words)
        printed = CliRunner().invoke(app, [*words, "--json"])
    assert shown.exit_code == printed.exit_code == 2, shown.output
    assert "Traceback" not in shown.output + printed.output
    line = printed.stderr.removesuffix("\n")
    assert "\n" not in line
    assert shown.stderr.splitlines()[-1] == line
    assert [part for part in CASES[harm][1] if part not in line] == [], line
    assert json.loads(printed.stdout) == {"error": line.removeprefix("error: ")}
    assert not (trained / "embeddings/manifest.json").exists()
