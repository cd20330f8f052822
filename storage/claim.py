"""An ingest's hold on the place it writes: nothing half-written is taken for a store, nor left behind.

A marker file is written before anything else and removed after the manifest. So a place with a marker and no
manifest is what a killed ingest left, and only there are files cleared; a place with anything else in it is
refused, whatever its folders are called.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from storage.errors import BadInput
from storage.place import Place
from storage.schema import MANIFEST_NAME

MARKER = "ingest.unfinished"
WRITTEN = ("generations", "edges", "nodes")
EMPTY_RULE = "a new store is written to an empty or new place"


def refuse_occupied(place: Place) -> None:
    """Check that an ingest may write to `place`.

    Raises:
        BadInput: it holds a store, or something that no ingest left there.
    """
    names = place.names()
    if MANIFEST_NAME in names:
        if MARKER in names:  # killed between the manifest and the marker's removal: the store is whole
            place.remove(MARKER)
        raise BadInput(
            place.url, "it already holds a store", rule=EMPTY_RULE, remedy="choose another place or delete it"
        )
    if names and MARKER not in names:
        raise BadInput(
            place.url,
            f"it already holds {', '.join(names[:3])}{', ...' * (len(names) > 3)}",
            rule=EMPTY_RULE,
            remedy="choose another place or empty it",
        )


@contextmanager
def claimed(place: Place) -> Iterator[None]:
    """Clear what a killed ingest left at `place`, hold it inside the block, clear it again on any exception.

    Raises:
        BadInput: as `refuse_occupied`, or the place cannot be written.
    """
    refuse_occupied(place)
    existed = place.exists("")
    try:
        place.write_bytes(MARKER, b"an ingest is writing here, or was killed; the next one clears it\n")
    except OSError as error:
        raise BadInput(
            place.url,
            f"{type(error).__name__}: {error.strerror or error}",
            rule="the store's place must be writable",
            remedy="choose another place or mend its permissions",
        ) from error
    _clear(place)
    try:
        yield
    except BaseException:
        if not place.exists(MANIFEST_NAME):
            _clear(place)
            place.remove(MARKER)
            if not existed and not place.names():
                place.remove("")
        raise
    place.remove(MARKER)


def _clear(place: Place) -> None:
    for name in WRITTEN:
        place.remove(name)
