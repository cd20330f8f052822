"""Checking a whole store: every generation, every file of each, every page of every file.

    1. generations  each manifest and generation file against its hash
    2. files        sizes, then the page sums against the generation's hash of them
    3. pages        read past the page cache where possible, in several threads, and compared with their sums

Damage does not end the check: the result lists all of it.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from storage.block_reads import PageFile
from storage.damage import BadPlace, joined, some_bytes, whole_file
from storage.errors import DamagedStore
from storage.known_generations import find_generations
from storage.npy import HEADER_BYTES, npy_header
from storage.pages import PAGE_BYTES, page_sums
from storage.place import Place
from storage.progress import NoProgress, Progress
from storage.read_pool import ReadPool
from storage.schema import FileInfo

PART_BYTES = 4 << 20
"""one read, and the memory of one thread"""


@dataclass(frozen=True)
class Verification:
    """What was checked, and what of it is bad."""

    store: str
    generations: tuple[int, ...]
    """whose files were checked"""
    num_files: int
    """page sums and manifests included"""
    num_pages: int
    """of all files that have page sums"""
    num_bytes: int
    seconds: float
    bad: tuple[BadPlace, ...]
    """by file and position; empty when the store is whole"""

    @property
    def is_whole(self) -> bool:
        """Whether every byte is the one that was written."""
        return not self.bad

    def to_json(self) -> dict[str, Any]:
        """The fields, and `whole`."""
        return {**asdict(self), "whole": self.is_whole}


@dataclass(frozen=True)
class _Part:
    """Consecutive pages of one open file."""

    file: PageFile
    first_page: int
    num_pages: int
    is_last: bool


def verify(store_url: str, *, progress: Progress | None = None, num_threads: int = 8) -> Verification:
    """Check every stored byte of the store; files that several generations share are checked once.

    Memory: 4 MiB a thread, and the page sums of the files at hand (0.1 % of them). Raises BadInput when there
    is no store at `store_url`, or one of another format version.
    """
    started = perf_counter()
    place = Place(store_url)
    progress = progress or NoProgress()
    known = find_generations(place)
    infos = {info: None for generation in known.generations.values() for info in generation.files()}
    bad = list(known.bad)
    num_pages = sum(info.num_pages for info in infos)
    progress.stage("verify", total=num_pages, unit="pages")
    _check_pages(_parts(place, list(infos), bad, progress), bad, progress, num_threads)
    return Verification(
        store=store_url,
        generations=tuple(sorted(known.generations)),
        num_files=known.num_files + 2 * len(infos),
        num_pages=num_pages,
        num_bytes=known.num_bytes + sum(info.num_bytes + _sums_bytes(info) for info in infos),
        seconds=perf_counter() - started,
        bad=joined(bad),
    )


def _check_pages(parts: Iterator[_Part], bad: list[BadPlace], progress: Progress, num_threads: int) -> None:
    """Read the parts side by side, in a window that moves on in their order."""
    pool = ReadPool(num_threads=num_threads, staging_bytes=PART_BYTES)
    window: deque[tuple[_Part, Future[list[BadPlace]]]] = deque()

    def finish_first() -> None:
        part, found = window[0]
        bad.extend(found.result())
        progress.advance(part.num_pages)
        window.popleft()
        if part.is_last:
            part.file.close()

    try:
        with ThreadPoolExecutor(num_threads, thread_name_prefix="verify") as threads:
            for part in parts:
                window.append((part, threads.submit(_bad_pages, part, pool)))
                if len(window) > 2 * num_threads:
                    finish_first()
            while window:
                finish_first()
    finally:
        for part, _ in window:
            part.file.close()


def _parts(place: Place, infos: list[FileInfo], bad: list[BadPlace], progress: Progress) -> Iterator[_Part]:
    """Pages of every file whose size and sums are right; what is wrong with the others goes to `bad`."""
    pages = PART_BYTES // PAGE_BYTES
    for info in infos:
        wrong = [*_wrong_size(place, info.name, info.num_bytes), *_wrong_size(place, info.sums_name, _sums_bytes(info))]
        file = None
        if not wrong:
            try:
                file = PageFile(place, info)
            except DamagedStore:
                wrong = _wrong_sums(place, info)
        bad += wrong
        if file is None or info.num_pages == 0:
            progress.advance(info.num_pages)
            continue
        for first in range(0, info.num_pages, pages):
            last = min(first + pages, info.num_pages)
            yield _Part(file, first, last - first, is_last=last == info.num_pages)


def _bad_pages(part: _Part, pool: ReadPool) -> list[BadPlace]:
    """The pages of a part that have changed; read one by one where the whole does not hold."""
    with pool.staging() as staging:
        if _is_whole(part.file, staging.data, staging.words, part.first_page, part.num_pages):
            return []
        pages = range(part.first_page, part.first_page + part.num_pages)
        return [
            _bad_page(part.file, page)
            for page in pages
            if not _is_whole(part.file, staging.data, staging.words, page, 1)
        ]


def _is_whole(
    file: PageFile, data: NDArray[np.uint8], words: NDArray[np.uint64], first_page: int, num_pages: int
) -> bool:
    try:
        file.read(data, words, first_page=first_page, num_pages=num_pages)
    except DamagedStore:
        return False
    return True


def _bad_page(file: PageFile, page: int) -> BadPlace:
    name, start = file.info.name, page * PAGE_BYTES
    # a file that was shortened or removed meanwhile says so by its size
    wrong = _wrong_size(file.place, name, file.info.num_bytes)
    kind = wrong[0].kind if wrong else "changed"
    return some_bytes(name, start, start + file.run_bytes(page, 1), kind)


def _sums_bytes(info: FileInfo) -> int:
    return HEADER_BYTES + 4 * info.num_pages


def _wrong_size(place: Place, name: str, num_bytes: int) -> list[BadPlace]:
    """What the size of a file says: nothing when it is right."""
    try:
        found = place.size(name)
    except FileNotFoundError:
        return [whole_file(name, num_bytes, "missing")]
    if found < num_bytes:
        return [some_bytes(name, found, num_bytes, "short")]
    return [some_bytes(name, num_bytes, found, "changed")] if found > num_bytes else []


def _wrong_sums(place: Place, info: FileInfo) -> list[BadPlace]:
    """Where the file of page sums has changed.

    The data's own sums decide: when they hash to what the generation holds, the data is whole and they are
    what the file of sums must hold. Otherwise both have changed, the data where it differs from its sums.
    """
    actual = _actual_sums(place, info)
    stored = np.frombuffer(place.read_bytes(info.sums_name), dtype=np.uint8)
    right = npy_header("<u4", actual.shape) + actual.astype("<u4").tobytes()
    differs = np.flatnonzero(stored != np.frombuffer(right, dtype=np.uint8))
    if xxhash.xxh64_hexdigest(right[HEADER_BYTES:]) == info.sums_xxh64:
        pages = np.split(differs, np.flatnonzero(np.diff(differs // PAGE_BYTES)) + 1)
        return [some_bytes(info.sums_name, int(page[0]), int(page[-1]) + 1, "changed") for page in pages if page.size]
    bad_pages = np.unique((differs[differs >= HEADER_BYTES] - HEADER_BYTES) // 4)
    return [
        whole_file(info.sums_name, stored.shape[0], "changed"),
        *(
            some_bytes(info.name, page * PAGE_BYTES, min((page + 1) * PAGE_BYTES, info.num_bytes), "changed")
            for page in map(int, bad_pages)
        ),
    ]


def _actual_sums(place: Place, info: FileInfo) -> NDArray[np.uint32]:
    """The sums of a file as it is now, uint32 [num_pages]."""
    sums = [np.empty(0, dtype=np.uint32)]
    with place.open_read(info.name) as file:
        while data := file.read(PART_BYTES):
            sums.append(page_sums(np.frombuffer(bytearray(data), dtype=np.uint8)))
    return np.concatenate(sums)
