"""Law: one flipped byte in any stored file is detected, named by file and page, and never read as data."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storage.errors import BadInput, DamagedStore
from storage.schema import Relation
from storage.store import Column, Store
from storage.verify import verify
from tests.storage.damage import flipped_byte
from tests.storage.two_segments import Contents, write_two_segments

Read = tuple[Callable[[], Any], Any]
"""something to read from a store, and what it must be"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contents]:
    """A store of two segments and two generations; flips are undone."""
    folder = tmp_path_factory.mktemp("store")
    contents = write_two_segments(str(folder))
    assert verify(str(folder)).is_whole
    return folder, contents


def flips(folder: Path, *, count: int, seed: int) -> Iterator[tuple[Path, int, int]]:
    """(file, byte, mask): every file of the store before any file again, bytes and masks at random."""
    rng = np.random.default_rng(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    order = [files[number] for _ in range(-(-count // len(files))) for number in rng.permutation(len(files))]
    for path in order[:count]:
        yield path, int(rng.integers(path.stat().st_size)), int(rng.integers(1, 256))


def features(store: Store, node_type: str) -> bytes:
    reader = store.features(node_type)
    assert reader is not None
    try:
        out = np.empty((reader.num_rows, reader.dim), dtype=reader.dtype)
        reader.gather(np.arange(reader.num_rows), out)
    finally:
        reader.close()
    return out.tobytes()


def sources(store: Store) -> dict[Relation, list[int]]:
    return {csc.relation: csc.indices.tolist() for csc in store.topology().relations}


def column(store: Store, node_type: str, name: Column) -> list[Any]:
    values: list[Any] = store.node_column(node_type, name).to_pylist()
    return values


def rows(store: Store, node_type: str, ids: list[Any]) -> list[int]:
    found: list[int] = store.rows_of(node_type, pa.array(ids)).tolist()
    return found


def reads(store: Store, contents: Contents) -> Iterator[Read]:
    """Everything that a store of generation 1 serves."""
    for name, ids in contents.ids.items():
        yield partial(features, store, name), contents.features[name].tobytes()
        yield partial(column, store, name, "id"), ids
        yield partial(column, store, name, "position"), list(range(len(ids)))
        yield partial(rows, store, name, ids), list(range(len(ids)))
    yield partial(column, store, "author", "timestamp"), contents.columns["author", "timestamp"]
    yield partial(column, store, "paper", "label"), contents.columns["paper", "label"]
    yield partial(column, store, "paper", "split"), contents.columns["paper", "split"]
    expected = {relation: [edge.source for edge in edges] for relation, edges in contents.edges.items()}
    yield partial(sources, store), expected


def errors_of_reading(folder: Path, contents: Contents) -> list[DamagedStore]:
    """What reading everything raises; what is read in spite of the damage is right."""
    try:
        store = Store.open(str(folder))
    except DamagedStore as error:
        return [error]
    found = []
    for read, expected in reads(store, contents):
        try:
            value = read()
        except DamagedStore as error:
            found.append(error)
        else:
            assert value == expected
    return found


def check_flip(folder: Path, contents: Contents, path: Path, at: int, mask: int) -> None:
    name = path.relative_to(folder).as_posix()
    with flipped_byte(path, at, mask=mask):
        found = verify(str(folder))
        assert [place.file for place in found.bad] == [name]
        place = found.bad[0]
        assert place.kind == "changed"
        assert place.first_byte <= at < place.end_byte
        if path.suffix == ".json":
            check_json_is_refused(folder, contents, name)
            return
        assert place.page == at // 4096
        assert place.end_byte - place.first_byte <= 4096
        errors = errors_of_reading(folder, contents)
    assert errors
    assert {error.place for error in errors} == {str(path)}
    if not name.endswith(".sums.npy"):
        assert all(f"page {at // 4096} has changed" in error.found for error in errors)


def check_json_is_refused(folder: Path, contents: Contents, name: str) -> None:
    """A damaged manifest or generation opens nothing; one that is not current leaves the current one readable."""
    if name in ("manifest.json", "generations/1.json"):
        with pytest.raises(BadInput):
            Store.open(str(folder))
        return
    with pytest.raises(BadInput):
        Store.open(str(folder), generation=1 if name == "generations/1.manifest.json" else 0)
    assert errors_of_reading(folder, contents) == []


def test_flipped_bytes_are_detected_named_and_never_read(written: tuple[Path, Contents]) -> None:
    folder, contents = written
    for path, at, mask in flips(folder, count=80, seed=1):
        check_flip(folder, contents, path, at, mask)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_200_flipped_bytes_are_detected_named_and_never_read(written: tuple[Path, Contents], seed: int) -> None:
    folder, contents = written
    detected = 0
    for path, at, mask in flips(folder, count=200, seed=100 + seed):
        check_flip(folder, contents, path, at, mask)
        detected += 1
    assert detected == 200
    assert verify(str(folder)).is_whole


def test_every_byte_of_the_manifests_is_vouched_for(written: tuple[Path, Contents]) -> None:
    folder, _ = written
    for name in ("manifest.json", "generations/0.manifest.json", "generations/1.manifest.json"):
        size = (folder / name).stat().st_size
        assert json.loads((folder / name).read_text())["format_version"] == 1
        for at in range(size):
            with flipped_byte(folder / name, at, mask=1 + at % 255):
                assert [place.file for place in verify(str(folder)).bad] == [name]
