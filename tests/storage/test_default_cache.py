"""The block cache of a machine, when its folder or its size is not said."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from storage.default_cache import DEFAULT_LIMIT_BYTES, open_block_cache


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    usage = shutil.disk_usage

    def noted(path: str) -> Any:
        asked.append(path)
        return usage(path)

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", noted)
    cache = open_block_cache(folder="~/blocks")
    assert cache is not None
    assert cache.folder == str(tmp_path / "blocks")
    assert asked == [str(tmp_path)]


def test_by_default_it_is_in_the_cache_folder_with_a_tenth_of_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none yet"))
    cache = open_block_cache()
    assert cache is not None
    assert cache.folder == str(tmp_path / "none yet" / "hopstream" / "blocks")
    assert 0 < cache.limit_bytes <= DEFAULT_LIMIT_BYTES
    assert not (tmp_path / "none yet").exists()
    assert open_block_cache(limit_bytes=0) is None
