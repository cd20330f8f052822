"""What feeder and ranks say to each other: one JSON object a message, over a Unix socket that keeps messages whole.

rank -> feeder    {"rank", "token"}                  once, first
feeder -> rank    {"memory"} and its descriptor      once, in answer; a wrong token is answered by the end
feeder -> rank    {"ready"}                          the stream is open
rank -> feeder    {"begin": [first, last]}           the batches of these steps
feeder -> rank    {"batch", "tensors", "counters"}   `sampling.shared_batches`
rank -> feeder    {"next"}                           the oldest batch that it has is not needed any more
feeder -> rank    {"end", "counters"}                all steps were sent
rank -> feeder    {"done"}                           no more is asked for; without it, the end of a rank is an error
feeder -> rank    {"error"}                          instead of whatever was to come
"""

import json
import socket
import traceback
from typing import Any

from storage.errors import BadInput, DamagedStore

LONGEST_BYTES = 1 << 20
ERRORS: dict[str, type[BadInput]] = {kind.__name__: kind for kind in (BadInput, DamagedStore)}

Message = dict[str, Any]


class FeedingFailed(RuntimeError):
    """A rank gets no more batches, for a reason that is nobody's input."""


def packed(message: Message) -> bytes:
    """As it is sent."""
    return json.dumps(message, separators=(",", ":")).encode()


def hello(*, rank: int, token: str) -> bytes:
    """What a rank says first; compared as it is, so that nothing of a stranger's is interpreted."""
    return packed({"rank": rank, "token": token})


def receive(connection: socket.socket) -> Message | None:
    """The next message; None when the other side has ended and all it said was read."""
    data = receive_bytes(connection)
    message: Message | None = json.loads(data) if data else None
    return message


def receive_bytes(connection: socket.socket) -> bytes:
    """The next message as it was sent; nothing when the other side has ended."""
    try:
        return connection.recv(LONGEST_BYTES)
    except ConnectionResetError:
        # it ended before it had read all that it was sent; what it had said itself comes behind this one error
        return connection.recv(LONGEST_BYTES)


def receive_descriptor(connection: socket.socket) -> tuple[Message, int] | None:
    """A message that carries a descriptor; None when the other side has ended instead."""
    data, descriptors, _, _ = socket.recv_fds(connection, LONGEST_BYTES, 1)
    return (json.loads(data), descriptors[0]) if descriptors else None


def error_message(error: BaseException) -> Message:
    """An error for other processes: the user's as its parts, any other as text."""
    if isinstance(error, BadInput):
        parts = {"place": error.place, "found": error.found, "rule": error.rule, "remedy": error.remedy}
        return {"error": {"kind": "DamagedStore" if isinstance(error, DamagedStore) else "BadInput", **parts}}
    if isinstance(error, FeedingFailed):
        return {"error": {"text": str(error), "trace": ""}}
    text = f"the feeder of this host has failed: {type(error).__name__}: {error}"
    return {"error": {"text": text, "trace": "".join(traceback.format_exception(error))}}


def error_of(message: Message) -> BadInput | FeedingFailed:
    """The error that `error_message` described, with the other process's traceback for a note."""
    parts = dict(message["error"])
    if "kind" in parts:
        kind = ERRORS[parts["kind"]]
        return kind(parts["place"], parts["found"], rule=parts["rule"], remedy=parts["remedy"])
    error = FeedingFailed(parts["text"])
    if parts["trace"]:
        error.add_note(parts["trace"])
    return error
