"""What is wrong with a stored file, and where: what `storage.verify` finds."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from storage.pages import PAGE_BYTES

Kind = Literal["changed", "missing", "short"]


@dataclass(frozen=True)
class BadPlace:
    """Consecutive bytes of a file that are not the ones written."""

    file: str
    """path relative to the store"""
    kind: Kind
    """changed: other bytes than were written, or bytes too many, or a disk that cannot read them"""
    first_byte: int
    end_byte: int
    """the first byte behind the place"""
    page: int | None
    """the first page of the place; None when the file as a whole is meant"""

    def __str__(self) -> str:
        """One line: file, pages, bytes, what is wrong."""
        where = self.file
        if self.page is not None:
            last = (self.end_byte - 1) // PAGE_BYTES
            where += f", page {self.page}" if last <= self.page else f", pages {self.page} to {last}"
        if self.kind == "missing":
            return f"{where}: missing"
        return f"{where}, bytes {self.first_byte} to {self.end_byte - 1}: {self.kind}"


def whole_file(file: str, num_bytes: int, kind: Kind) -> BadPlace:
    """A file that is bad as a whole."""
    return BadPlace(file=file, kind=kind, first_byte=0, end_byte=num_bytes, page=None)


def some_bytes(file: str, first_byte: int, end_byte: int, kind: Kind) -> BadPlace:
    """Bytes [first_byte, end_byte) of a file, with the page in which they begin."""
    return BadPlace(file=file, kind=kind, first_byte=first_byte, end_byte=end_byte, page=first_byte // PAGE_BYTES)


def joined(places: Iterable[BadPlace]) -> tuple[BadPlace, ...]:
    """The places by file and position, those that continue each other as one."""
    found: list[BadPlace] = []
    for place in sorted(places, key=lambda place: (place.file, place.first_byte)):
        last = found[-1] if found else None
        if last is not None and _continues(last, place):
            found[-1] = replace(last, end_byte=place.end_byte)
        else:
            found.append(place)
    return tuple(found)


def _continues(last: BadPlace, place: BadPlace) -> bool:
    same = (last.file, last.kind) == (place.file, place.kind) and None not in (last.page, place.page)
    return same and last.end_byte == place.first_byte
