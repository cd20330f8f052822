"""How fast the disk behind a folder is, measured once and kept beside the block cache.

Reads are of a scratch file, past the page cache, by as many threads as read features. What the figures are for: a gap
between two rows is read through when that takes less time than a second read, and space on the disk is used when
writing to it and reading from it in order costs less than reading here and there.
"""

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from storage.pages import PAGE_BYTES
from storage.place import nearest_folder
from storage.read_pool import NUM_THREADS, ReadPool
from storage.scratch_file import ScratchFile, new_staging

FILE_BYTES = 256 << 20
PART_BYTES = 1 << 20
NUM_READS = 8192
"""single pages read in the measurement of random reads"""
KEPT_NAME = "disk_speed.json"


@dataclass(frozen=True)
class DiskSpeed:
    """What a disk does."""

    read_bytes_per_second: float
    """large reads, several at once"""
    reads_per_second: float
    """single pages here and there, several at once"""
    write_bytes_per_second: float
    """large writes"""

    @property
    def gap_bytes(self) -> int:
        """The largest gap that costs less to read through than to skip."""
        return int(self.read_bytes_per_second / self.reads_per_second) // PAGE_BYTES * PAGE_BYTES

    def read_seconds(self, *, num_bytes: float, num_reads: float) -> float:
        """Expected seconds of reads: whichever of the two limits binds."""
        return max(num_bytes / self.read_bytes_per_second, num_reads / self.reads_per_second)

    def round_trip_seconds(self, num_bytes: float) -> float:
        """Expected seconds of writing so much in order and reading it again."""
        return num_bytes / self.write_bytes_per_second + num_bytes / self.read_bytes_per_second


UNKNOWN = DiskSpeed(read_bytes_per_second=5e8, reads_per_second=2e4, write_bytes_per_second=2e8)
"""for a disk that has no room for a measurement, or takes no writing"""


def disk_speed(folder: str) -> DiskSpeed:
    """The speed of the disk that `folder` is on, from its file there or measured now in about two seconds."""
    folder = os.path.abspath(os.path.expanduser(folder))
    kept = Path(folder) / KEPT_NAME
    device = os.stat(nearest_folder(folder)).st_dev
    try:
        found = json.loads(kept.read_text())
        if found.pop("device") == device:
            return DiskSpeed(**found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    if shutil.disk_usage(nearest_folder(folder)).free < 4 * FILE_BYTES:
        return UNKNOWN
    try:
        speed = measure(folder)
        partial = kept.with_name(f"{KEPT_NAME}.{os.getpid()}")
        partial.write_text(json.dumps({"device": device, **asdict(speed)}))
        partial.replace(kept)
    except OSError:
        return UNKNOWN
    return speed


def measure(folder: str) -> DiskSpeed:
    """Write a scratch file in `folder`, read it in order, then single pages of it. Raises OSError."""
    num_pages, part_pages = FILE_BYTES // PAGE_BYTES, PART_BYTES // PAGE_BYTES
    source = new_staging(part_pages)
    source.data[:] = np.random.default_rng(0).integers(0, 256, PART_BYTES, dtype=np.uint8)
    with ScratchFile(folder, num_pages=num_pages) as file:
        pool = ReadPool(num_threads=NUM_THREADS, staging_bytes=PART_BYTES)

        def read(first_page: int, pages: int) -> None:
            with pool.staging() as staging:
                file.read(staging.data, staging.words, first_page=first_page, num_pages=pages)

        try:
            began = time.perf_counter()
            pool.run(lambda part: file.write(source.data, first_page=part * part_pages), num_pages // part_pages)
            wrote = time.perf_counter() - began
            read(0, 1)  # compiles the kernel
            began = time.perf_counter()
            pool.run(lambda part: read(part * part_pages, part_pages), num_pages // part_pages)
            in_order = time.perf_counter() - began
            pages = np.random.default_rng(1).integers(0, num_pages, NUM_READS)
            shares = np.array_split(pages, NUM_THREADS)

            def scattered(share: int) -> None:
                for page in shares[share].tolist():
                    read(page, 1)

            began = time.perf_counter()
            pool.run(scattered, NUM_THREADS)
            here_and_there = time.perf_counter() - began
        finally:
            pool.close()
    return DiskSpeed(
        read_bytes_per_second=FILE_BYTES / in_order,
        reads_per_second=NUM_READS / here_and_there,
        write_bytes_per_second=FILE_BYTES / wrote,
    )
