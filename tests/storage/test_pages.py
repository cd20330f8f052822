import numpy as np
import pytest
import xxhash

from storage.pages import PAGE_BYTES, first_bad_page, page_sums, xxh64

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("start", [0, 1, 5])
def test_the_kernel_equals_the_xxhash_package_for_every_length_and_alignment(start: int) -> None:
    data = RNG.integers(0, 256, 400, dtype=np.uint8)
    for stop in range(start, 300):
        assert int(xxh64(data, start, stop)) == xxhash.xxh64_intdigest(data[start:stop].tobytes())


@pytest.mark.parametrize("num_bytes", [0, 1, 31, 4095, 4096, 4097, 8192, 3 * 4096 + 1234])
@pytest.mark.parametrize("start", [0, 3])
def test_a_page_sum_is_the_first_half_of_its_canonical_xxh64(num_bytes: int, start: int) -> None:
    data = RNG.integers(0, 256, num_bytes + start, dtype=np.uint8)[start:]
    pages = [data[at : at + PAGE_BYTES].tobytes() for at in range(0, num_bytes, PAGE_BYTES)]
    expected = [int.from_bytes(xxhash.xxh64_digest(page)[:4], "big") for page in pages]
    assert page_sums(data).tolist() == expected


def test_read_only_memory_can_be_hashed() -> None:
    assert page_sums(np.frombuffer(b"abc", dtype=np.uint8)).tolist() == [xxhash.xxh64_intdigest(b"abc") >> 32]


def test_the_first_bad_page_is_found_wherever_a_bit_flips() -> None:
    data = RNG.integers(0, 256, 5 * PAGE_BYTES + 77, dtype=np.uint8)
    sums = page_sums(data)
    assert first_bad_page(data, sums) == -1
    for at in [*RNG.integers(0, data.size, 200).tolist(), 0, data.size - 1]:
        data[at] ^= 1 << (at % 8)
        assert first_bad_page(data, sums) == at // PAGE_BYTES
        data[at] ^= 1 << (at % 8)
