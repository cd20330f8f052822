"""Ways a disk can harm a file, written with plain file calls; and one that takes no more."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def flipped_byte(path: Path, at: int, *, mask: int = 0x10) -> Iterator[None]:
    """The bits of byte `at` that `mask` has are wrong while the block runs: one, unless more are named."""
    with path.open("r+b") as file:
        file.seek(at)
        kept = file.read(1)
        file.seek(at)
        file.write(bytes([kept[0] ^ mask]))
    try:
        yield
    finally:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(kept)


@contextmanager
def shortened(path: Path, *, num_bytes: int) -> Iterator[None]:
    """The file ends after `num_bytes` bytes while the block runs."""
    whole = path.read_bytes()
    path.write_bytes(whole[:num_bytes])
    try:
        yield
    finally:
        path.write_bytes(whole)


@contextmanager
def missing(path: Path) -> Iterator[None]:
    """The file is not there while the block runs."""
    whole = path.read_bytes()
    path.unlink()
    try:
        yield
    finally:
        path.write_bytes(whole)


@contextmanager
def files_no_longer_than(num_bytes: int) -> Iterator[None]:
    """The system refuses longer files to this process while the block runs, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
