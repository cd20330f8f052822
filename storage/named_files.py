"""Which files of a store's folder its generations name, and which are left over from writers that never finished."""

from collections.abc import Iterable

from storage.claim import WRITTEN
from storage.known_generations import KnownGenerations, find_generations
from storage.place import Place
from storage.schema import MANIFEST_NAME, Generation
from storage.segments import manifest_name


def files_of(generations: Iterable[Generation]) -> set[str]:
    """Names of all files of some generations: page sums, manifests and the generations' own files included."""
    names = {MANIFEST_NAME}
    for generation in generations:
        names |= {f"generations/{generation.generation}.json", manifest_name(generation.generation)}
        for info in generation.files():
            names |= {info.name, info.sums_name}
    return names


def committed(known: KnownGenerations) -> list[Generation]:
    """The generations up to the current one; a later one is what an interrupted commit left."""
    current = -1 if known.current is None else known.current
    return [generation for number, generation in known.generations.items() if number <= current]


def unnamed_files(place: Place, kept: Iterable[Generation]) -> list[str]:
    """Files where a store keeps its own that none of the kept generations names."""
    names = files_of(kept)
    return [name for folder in WRITTEN for name in place.files(folder) if name not in names]


def remove_unnamed(place: Place) -> None:
    """Remove what an unfinished change wrote; nothing when the generations cannot be told for damage."""
    known = find_generations(place)
    if known.bad:
        return
    for name in unnamed_files(place, committed(known)):
        place.remove(name)
