"""The generations that a store's folder holds, and whether the files that name them are whole.

A generation is known by its manifest: `manifest.json` for the current one, `generations/<g>.manifest.json` for
every one. A generation file without a manifest is what an interrupted commit or clearing leaves; it is no part
of the store.
"""

from dataclasses import dataclass, field

import xxhash
from pydantic import ValidationError

from storage.damage import BadPlace, whole_file
from storage.place import Place
from storage.schema import FORMAT_VERSION, MANIFEST_NAME, Generation, Manifest
from storage.segments import manifest_name
from storage.store import Store

_SUFFIX = ".manifest.json"


@dataclass
class KnownGenerations:
    """What `find_generations` found."""

    current: int | None = None
    """the current generation; None when `manifest.json` is damaged"""
    generations: dict[int, Generation] = field(default_factory=dict)
    """those whose manifest and file are whole, by number"""
    bad: list[BadPlace] = field(default_factory=list)
    num_files: int = 0
    """manifests and generation files read"""
    num_bytes: int = 0
    """their bytes"""


def generation_numbers(place: Place) -> list[int]:
    """Numbers of the generations that have a manifest, ascending."""
    stems = [name.removesuffix(_SUFFIX) for name in place.names("generations") if name.endswith(_SUFFIX)]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def find_generations(place: Place) -> KnownGenerations:
    """Read and check every manifest and every generation file.

    Raises BadInput when there is no store, or one of another format version.
    """
    found = KnownGenerations()
    names = [MANIFEST_NAME, *(manifest_name(number) for number in generation_numbers(place))]
    read = {name: _read(place, name, found) for name in names}
    if read[MANIFEST_NAME] is None:
        Store.open(place.url)  # says what a store is
    manifests = {name: _parsed(name, data, found) for name, data in read.items() if data is not None}
    whole = {name: manifest for name, manifest in manifests.items() if manifest is not None}
    if whole and all(manifest.format_version != FORMAT_VERSION for manifest in whole.values()):
        Store.open(place.url)  # says which version
    for name, manifest in list(whole.items()):
        if not _fits(name, manifest):
            del whole[name]
            found.bad.append(whole_file(name, len(read[name] or b""), "changed"))
    _check_current(whole, names, found)
    for number in sorted({manifest.generation for manifest in whole.values()}):
        vouching = {name: manifest for name, manifest in whole.items() if manifest.generation == number}
        _read_generation(place, vouching, read, found)
    return found


def _read(place: Place, name: str, found: KnownGenerations) -> bytes | None:
    try:
        data = place.read_bytes(name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    found.num_files += 1
    found.num_bytes += len(data)
    return data


def _parsed(name: str, data: bytes, found: KnownGenerations) -> Manifest | None:
    try:
        return Manifest.model_validate_json(data)
    except ValidationError:
        found.bad.append(whole_file(name, len(data), "changed"))
        return None


def _fits(name: str, manifest: Manifest) -> bool:
    """Whether a manifest says what one of its name must say."""
    named = name in (MANIFEST_NAME, manifest_name(manifest.generation))
    file_fits = manifest.generation_file == f"generations/{manifest.generation}.json"
    return named and file_fits and manifest.format_version == FORMAT_VERSION


def _check_current(whole: dict[str, Manifest], names: list[str], found: KnownGenerations) -> None:
    """Note which generation is current, and the lack of its own manifest."""
    current = whole.get(MANIFEST_NAME)
    if current is None:
        return
    found.current = current.generation
    own = manifest_name(current.generation)
    if own not in names:
        found.bad.append(whole_file(own, 0, "missing"))


def _read_generation(
    place: Place, vouching: dict[str, Manifest], read: dict[str, bytes | None], found: KnownGenerations
) -> None:
    """Read one generation's file; blame it, or the manifests that vouch for another."""
    file = next(iter(vouching.values())).generation_file
    data = _read(place, file, found)
    if data is None:
        found.bad.append(whole_file(file, 0, "missing"))
        return
    digest = xxhash.xxh64_hexdigest(data)
    is_whole = True
    for name, manifest in vouching.items():
        if manifest.generation_xxh64 == digest:
            continue
        # other bytes would give another hash altogether: one other digit is damage of the manifest
        if _num_different(manifest.generation_xxh64, digest) == 1:
            found.bad.append(whole_file(name, len(read[name] or b""), "changed"))
        else:
            is_whole = False
    try:
        generation = Generation.model_validate_json(data)
    except ValidationError:
        is_whole = False
    if is_whole:
        found.generations[generation.generation] = generation
    else:
        found.bad.append(whole_file(file, len(data), "changed"))


def _num_different(a: str, b: str) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))
