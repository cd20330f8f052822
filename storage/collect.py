"""Old generations of a store, and what nobody names any more, removed.

What goes first is what makes a generation one: its manifest. So a removal that was cut short leaves files that no
generation names, which the next one removes. On a local disk a reader that has files of an old generation open can
read on; it cannot open others of it.
"""

from dataclasses import asdict, dataclass
from typing import Any

from storage.claim import claimed
from storage.damage import BadPlace
from storage.errors import BadInput, DamagedStore
from storage.known_generations import KnownGenerations, find_generations
from storage.named_files import committed, unnamed_files
from storage.place import Place
from storage.progress import NoProgress, Progress
from storage.schema import Generation
from storage.segments import manifest_name
from storage.store import Store


@dataclass(frozen=True)
class Collected:
    """What was removed, or would be."""

    store: str
    dry_run: bool
    kept: tuple[int, ...]
    """generations"""
    removed: tuple[int, ...]
    """generations"""
    files: tuple[str, ...]
    """names of the removed files"""
    freed_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


def collect(url: str, *, keep: int = 1, dry_run: bool = False, progress: Progress | None = None) -> Collected:
    """Remove all but the newest generations of the store at `url`, and every file that none of these names.

    Args:
        url: the store.
        keep: generations to keep, the current one among them; at least 1.
        dry_run: change nothing.
        progress: told about the files.

    Raises:
        BadInput: there is no store, another writer is at work, or `keep` is too small.
        DamagedStore: a generation cannot be read, so that its files cannot be told from others.
    """
    if keep < 1:
        raise BadInput("--keep", str(keep), rule="the current generation is kept", remedy="give 1 or more")
    Store.open(url)  # says what a store is
    place = Place(url)
    if dry_run:
        return _collect(place, keep=keep, dry_run=True, progress=progress or NoProgress())
    # what a killed writer left is removed with its folder when the claim ends
    with claimed(place, work_folder=None, check=lambda: None, clear=lambda _: None):
        return _collect(place, keep=keep, dry_run=False, progress=progress or NoProgress())


def _collect(place: Place, *, keep: int, dry_run: bool, progress: Progress) -> Collected:
    known = find_generations(place)
    _refuse_damage(place, known)
    generations = sorted(committed(known), key=lambda generation: generation.generation)
    kept, old = generations[-keep:], generations[:-keep]
    names = _in_order(old, unnamed_files(place, kept))
    freed = sum(place.size(name) for name in names)
    progress.stage("would remove" if dry_run else "remove", total=len(names), unit="files")
    for name in names if not dry_run else ():
        place.remove(name)
        progress.advance(1)
    return Collected(
        store=place.url,
        dry_run=dry_run,
        kept=tuple(generation.generation for generation in kept),
        removed=tuple(generation.generation for generation in old),
        files=tuple(names),
        freed_bytes=freed,
    )


def _in_order(old: list[Generation], names: list[str]) -> list[str]:
    """Manifests first."""
    manifests = [manifest_name(generation.generation) for generation in old]
    return [*manifests, *(name for name in names if name not in manifests)]


def _refuse_damage(place: Place, known: KnownGenerations) -> None:
    bad: list[BadPlace] = known.bad
    if bad:
        raise DamagedStore(
            place.full(bad[0].file),
            bad[0].kind,
            rule="the files of a generation are known by its manifest and its own file",
            remedy="restore the file from a copy; `hopstream inspect --verify` lists all damage",
        )
