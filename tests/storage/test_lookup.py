from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from numpy.typing import NDArray

from storage.lookup import check_strings, find_candidates, hash_ids, lookup_entries


def build_lookup(ids: pa.Array) -> NDArray[Any]:
    hashes = hash_ids(ids)
    order = np.argsort(hashes, kind="stable")
    return lookup_entries(hashes[order], order)


MASK = 2**64 - 1
STRINGS = ["", "a", "ab", "ä" * 20, "node 17", "x" * 1000, "🙂", "node 18"]


def splitmix64_finaliser(word: int) -> int:
    word &= MASK
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)


def test_the_hash_of_an_integer_is_splitmix64s_finaliser() -> None:
    numbers = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    assert hash_ids(pa.array(numbers)).tolist() == [splitmix64_finaliser(number) for number in numbers]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_the_hash_of_a_string_is_xxh64_of_its_bytes_in_whole_arrays_and_in_slices(kind: pa.DataType) -> None:
    expected = [xxhash.xxh64_intdigest(text.encode()) for text in STRINGS]
    whole = pa.array(STRINGS, type=kind)
    assert hash_ids(whole).tolist() == expected
    assert hash_ids(whole[3:6]).tolist() == expected[3:6]
    assert hash_ids(whole[:0]).tolist() == []
    assert hash_ids(pa.array(["", ""], type=kind)).tolist() == [expected[0]] * 2


@pytest.mark.parametrize("ids", [list(range(-500, 500)), [f"node {number}" for number in range(1000)]])
def test_a_lookup_is_sorted_and_leads_every_id_to_its_row(ids: list[int] | list[str]) -> None:
    array = pa.array(ids)
    lookup = build_lookup(array)
    assert lookup.dtype == np.dtype([("hash", "<u8"), ("row", "<i8")])
    assert (np.diff(lookup["hash"].astype(object)) >= 0).all()
    assert lookup["hash"].tolist() == hash_ids(array)[lookup["row"]].tolist()
    candidates = find_candidates(lookup, array.take(pa.array([5, 999, 5, 0])))
    assert sorted(zip(candidates.wanted.tolist(), candidates.row.tolist(), strict=True)) == [
        (0, 5),
        (1, 999),
        (2, 5),
        (3, 0),
    ]
    assert (np.diff(candidates.row) >= 0).all()


def test_every_row_of_a_shared_hash_is_a_candidate_and_an_unknown_id_has_none() -> None:
    lookup = build_lookup(pa.array([7, 3, 7, 9, 7]))
    candidates = find_candidates(lookup, pa.array([4, 7, 9]))
    assert candidates.wanted.tolist() == [1, 1, 2, 1]
    assert candidates.row.tolist() == [0, 2, 3, 4]
    assert find_candidates(lookup, pa.array([], type=pa.int64())).row.tolist() == []


def test_entries_of_one_hash_are_sorted_by_row() -> None:
    lookup = lookup_entries(np.array([1, 4, 4, 4, 9], dtype=np.uint64), np.array([7, 5, 0, 3, 1]))
    assert lookup["row"].tolist() == [7, 0, 3, 5, 1]


def test_the_second_hash_of_a_string_depends_on_every_byte_and_not_on_its_array() -> None:
    whole = check_strings(pa.array(STRINGS))
    assert len(set(whole.tolist())) == len(STRINGS)
    assert check_strings(pa.array(STRINGS)[3:6]).tolist() == whole[3:6].tolist()
    word = 0xCBF29CE484222325
    for byte in b"node 17":
        word = (word ^ byte) * 0x100000001B3 & MASK
    assert int(whole[4]) == splitmix64_finaliser(word) >> 32
