"""Scratch files: pieces come back as they were written, or it is said what was not."""

import os
from pathlib import Path

import numpy as np
import pytest

from storage.errors import BadInput
from storage.pages import PAGE_BYTES, as_words
from storage.scratch_file import ScratchFile, ScratchFull, new_staging
from tests.storage.damage import files_no_longer_than


def filled(num_pages: int) -> np.ndarray:
    data = new_staging(num_pages).data
    data[:] = np.random.default_rng(num_pages).integers(0, 255, data.shape[0], np.uint8)
    return data


def read(file: ScratchFile, *, first_page: int, num_pages: int) -> np.ndarray:
    data = new_staging(num_pages).data
    file.read(data, as_words(data), first_page=first_page, num_pages=num_pages)
    return data


def test_pieces_of_any_size_lie_where_they_were_put(tmp_path: Path) -> None:
    data = filled(9)
    starts, places = np.array([0, 2, 2, 3, 9]), np.array([7, 0, 6, 0])  # the second piece is empty
    with ScratchFile(str(tmp_path), num_pages=9) as file:
        file.write_pieces(data, starts, places)
        for piece, place in enumerate(places.tolist()):
            first, last = starts[piece], starts[piece + 1]
            if last > first:
                found = read(file, first_page=place, num_pages=int(last - first))
                assert np.array_equal(found, data[first * PAGE_BYTES : last * PAGE_BYTES])


def test_a_disk_that_fills_in_the_middle_of_a_piece_is_said_to_be_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.scratch_file._allocate", lambda *_: None)  # as where space cannot be reserved
    data = filled(6)
    with ScratchFile(str(tmp_path), num_pages=6) as file:
        file.write(data[:PAGE_BYTES], first_page=0)  # compiled kernels are files, too
        with (
            files_no_longer_than(3 * PAGE_BYTES),
            pytest.raises(ScratchFull, match=r"no room .* tiers\.scratch_folder"),
        ):
            file.write_pieces(data, np.array([0, 1, 6]), np.array([0, 1]))
        assert np.array_equal(read(file, first_page=0, num_pages=1), data[:PAGE_BYTES])


def test_a_page_that_is_not_what_was_written_is_named(tmp_path: Path) -> None:
    data = filled(4)
    with ScratchFile(str(tmp_path), num_pages=4) as file:
        file.write(data, first_page=0)
        changed = new_staging(1).data
        changed[:] = data[2 * PAGE_BYTES : 3 * PAGE_BYTES]
        changed[17] ^= 1
        os.pwrite(file._descriptor, changed.data, 2 * PAGE_BYTES)
        with pytest.raises(BadInput, match=r"page 2: changed since it was written"):
            read(file, first_page=0, num_pages=4)
