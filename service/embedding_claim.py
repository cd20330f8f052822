"""An embedding's hold on its folder: an earlier result is replaced, anything else that is there is refused.

A marker in the staging folder is written before anything else and goes last. So a folder with parts and a marker
but no manifest is what a killed embedding left, and the next one mends it; a folder with other things in it, a
store for instance (whose manifest has the same name), is never touched.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from service.embedding_files import MANIFEST, STAGING, EmbeddingManifest
from storage.errors import BadInput
from storage.place import Place

MARKER = "embed.unfinished"


def refuse_occupied(place: Place) -> None:
    """Raise BadInput unless `place` is new, empty, or holds embeddings, finished or not."""
    names = place.names()
    if not names or place.exists(f"{STAGING}/{MARKER}"):
        return
    found = f"it already holds {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
    if MANIFEST in names:
        try:
            EmbeddingManifest.model_validate_json(place.read_bytes(MANIFEST))
        except (ValidationError, FileNotFoundError, IsADirectoryError):
            found = f"its {MANIFEST} is not that of embeddings"
        else:
            return
    raise BadInput(
        place.url,
        found,
        rule="embeddings go to a new or empty place, or replace earlier embeddings",
        remedy="choose another place or empty it",
    )


@contextmanager
def claimed(place: Place) -> Iterator[None]:
    """Hold `place` inside the block, with an empty staging folder; what is staged at its end is thrown away.

    Raises BadInput as `refuse_occupied`, before anything is written.
    """
    refuse_occupied(place)
    place.write_bytes(f"{STAGING}/{MARKER}", b"an embedding is being written, or was killed; the next one clears it\n")
    _clear(place)
    try:
        yield
    finally:
        _clear(place)
        others = [name for name in place.names() if name != STAGING]
        if not others or MANIFEST in others:  # otherwise parts of a result that was cut short: still ours to mend
            place.remove(STAGING)


def _clear(place: Place) -> None:
    for name in place.names(STAGING):
        if name != MARKER:
            place.remove(f"{STAGING}/{name}")
