"""How a store is changed: held, written beside what is there, and committed as its next generation.

Whoever has the store open keeps the generation that it opened. A change that was killed goes on behind its last
finished stage when the same command is given again. A generation says which change of which inputs made it: so a
change that was committed is not done twice, whenever its process ended. Bad input, and another change in place of a
killed one, remove every file that no generation names.
"""

import contextlib
import errno
import json
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import xxhash

from storage.claim import Claim, claimed
from storage.named_files import remove_unnamed
from storage.place import Place
from storage.schema import Generation
from storage.segments import commit_generation
from storage.stages.means import Means
from storage.store import Store

_MADE_BY = "made_by"
"""in a generation's report: hashes of the generation before and of the change's inputs"""


class Change(Protocol):
    """One change of one store: its inputs are opened and fit the store, nothing has been read or written."""

    @property
    def means(self) -> Means:
        """What it works with."""

    @property
    def inputs(self) -> Any:
        """JSON that differs when the change would: what is asked for, and the state of every file."""

    def write(self, store: Store, claim: Claim, fingerprint: str) -> Generation:
        """Write the files of the store's next generation and describe it; it is committed afterwards."""


def change_store(url: str, prepare: Callable[[Store], Change]) -> Generation:
    """Change the store at `url`.

    Args:
        url: the store.
        prepare: opens the inputs of the change for the current generation; raises BadInput when they do not fit it.

    Returns:
        The generation that is current afterwards.

    Raises:
        BadInput: there is no store, or another writer at work; or what the change raises. The store is as it was.
        OSError: the disk is full or fails; the same change goes on from what is there.
    """
    place = Place(url)
    before = Store.open(url)
    change = prepare(before)
    folder = change.means.resources.work_folder
    with claimed(place, work_folder=folder, check=lambda: None, clear=remove_unnamed) as claim:
        store = Store.open(url)
        if store.generation_xxh64 != before.generation_xxh64:
            change = prepare(store)
        if _is_done(store, change):
            change.means.progress.note(
                f"already done: generation {store.generation.generation} is this very change of the same files"
            )
            return store.generation
        parent = store.generation_xxh64
        fingerprint = _fingerprint(change, parent)
        with full_disk_explained(claim):
            generation = change.write(store, claim, fingerprint)
            made = {**generation.report, _MADE_BY: {"parent": parent, "inputs": fingerprint}}
            generation = generation.model_copy(update={"report": made})
            commit_generation(place, stored_form(generation))
    return generation


def stored_form(generation: Generation) -> Generation:
    """A generation without the seconds of its stages, which are told and not stored."""
    report = {name: value for name, value in generation.report.items() if name != "seconds"}
    return generation.model_copy(update={"report": report})


@contextlib.contextmanager
def full_disk_explained(claim: Claim) -> Iterator[None]:
    """Say what to do when the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            f"{error.filename or claim.place.url}: the disk is full, this one or that of the temporary files in "
            f"{claim.folder}: free some space and give the same command, which goes on from its last finished stage",
        ) from error


def _fingerprint(change: Change, parent: str) -> str:
    return xxhash.xxh64_hexdigest(json.dumps([parent, change.inputs], default=str).encode())


def _made_by(generation: Generation) -> dict[str, str] | None:
    """Which change of which generation made this one; None for an ingest."""
    found: dict[str, str] | None = generation.report.get(_MADE_BY)
    return found


def _is_done(store: Store, change: Change) -> bool:
    """Whether the current generation was made by this very change, of the same inputs."""
    made = _made_by(store.generation)
    return made is not None and made["inputs"] == _fingerprint(change, made["parent"])
