import fcntl
import itertools
from pathlib import Path

import pytest

from storage.errors import BadInput
from storage.place import Place

_numbers = itertools.count()


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place that holds nothing yet."""
    kind: str = request.param
    return Place(str(tmp_path / "new") if kind == "local" else f"memory://place-test-{next(_numbers)}")


def test_what_is_written_is_read(place: Place) -> None:
    place.write_bytes("deep/er/file.bin", b"one")
    place.write_bytes("deep/er/file.bin", b"two!")
    assert place.read_bytes("deep/er/file.bin") == b"two!"
    assert place.size("deep/er/file.bin") == 4
    assert place.child("deep").child("er").read_bytes("file.bin") == b"two!"
    with place.open_read("deep/er/file.bin") as file:
        file.seek(1)
        assert file.read(2) == b"wo"


def test_names_are_those_of_files_and_folders(place: Place) -> None:
    assert place.names() == []
    assert place.names("deep") == []
    place.write_bytes("deep/b", b"")
    place.write_bytes("deep/a/c", b"")
    assert place.names() == ["deep"]
    assert place.names("deep") == ["a", "b"]
    assert place.exists("deep/a/c")
    assert not place.exists("deep/c")


def test_a_missing_file_is_not_found(place: Place) -> None:
    for read in (place.read_bytes, place.open_read, place.size):
        with pytest.raises(FileNotFoundError):
            read("absent")


def test_files_and_folders_are_removed(place: Place) -> None:
    place.write_bytes("folder/a", b"1")
    place.write_bytes("folder/b/c", b"2")
    place.write_bytes("file", b"3")
    for name in ("folder", "file", "never was"):
        place.remove(name)
    assert place.names() == []


def fail_while_writing(place: Place) -> None:
    with place.open_write("file") as file:
        file.write(b"new and longer")
        raise KeyError


def test_an_exception_while_writing_leaves_no_file(place: Place) -> None:
    with pytest.raises(KeyError):
        fail_while_writing(place)
    assert place.names() == []


def test_an_exception_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    place.write_bytes("file", b"old")
    with pytest.raises(KeyError):
        fail_while_writing(place)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_not_seen_before_it_is_whole(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    with place.open_write("file") as file:
        file.write(b"half")
        file.flush()
        assert place.names() == []
        assert not place.exists("file")
    assert place.names() == ["file"]


def test_leftovers_of_a_killed_writer_are_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_bytes(b"a long piece that a killed process left")
    place = Place(str(tmp_path))
    assert place.names() == []
    place.write_bytes("file", b"short")
    assert (tmp_path / "file").read_bytes() == b"short"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_second_writer_of_the_same_file_is_refused(tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    with (tmp_path / "file.partial").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="another process is writing it"):
            place.write_bytes("file", b"mine")
    place.write_bytes("file", b"mine")
    assert place.read_bytes("file") == b"mine"


def test_only_local_places_have_local_paths(tmp_path: Path) -> None:
    assert Place(str(tmp_path)).local("a/b") == str(tmp_path / "a" / "b")
    assert Place(f"file://{tmp_path}").local("a") == str(tmp_path / "a")
    assert Place("memory://x").local("a") is None
    assert Place("memory://x/").full("a/b") == "memory://x/a/b"


def test_an_unknown_kind_of_url_lists_the_kinds_there_are() -> None:
    with pytest.raises(BadInput, match=r"nonesuch://x: .*memory.*s3"):
        Place("nonesuch://x")
