"""Remote file systems fail now and then: what is tried again, how often, and what a user is told in the end.

Time-outs, broken connections, and answers 408, 429 and 5xx (S3's SlowDown among them) are tried again after
waits that double and are drawn at random, so that many readers do not come back together. Everything else is
final: a missing file is FileNotFoundError, as everywhere; refused access, a missing bucket, missing credentials
and a failure that stays become one BadInput. No other layer repeats requests: the repeats that S3's client
would make by itself are turned off.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec

from storage.errors import BadInput

T = TypeVar("T")

TRANSIENT_KINDS = {
    # botocore, aiohttp, http.client, urllib3 and fsspec, none of which this room imports
    "HTTPClientError", "ClientPayloadError", "ClientConnectionError", "ClientOSError", "ServerDisconnectedError",
    "IncompleteRead", "IncompleteReadError", "ResponseParserError", "ResponseStreamingError", "FSTimeoutError",
    "TransportError", "ConnectionError",
}  # fmt: skip
CREDENTIAL_KINDS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "ProfileNotFound", "DefaultCredentialsError", "UnauthorizedSSOTokenError",
}  # fmt: skip
TRANSIENT_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestTimeoutException"}


@dataclass(frozen=True)
class Retries:
    """How patient to be.

    Attributes:
        attempts: tries of one request in all.
        first_wait_seconds: mean wait after the first failure; each later one is twice as long.
        longest_wait_seconds: mean of the longest.
    """

    attempts: int = 8
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 10.0

    def call(self, url: str, request: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """`request(*args, **kwargs)`, again after a transient failure.

        Raises:
            BadInput: final failures other than a missing or existing file, naming `url`.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                return request(*args, **kwargs)
            except Exception as error:
                if not is_transient(error):
                    refusal = explained(url, error)
                    if refusal is None:
                        raise
                    raise refusal from error
                if attempt == self.attempts:
                    raise _given_up(url, error, attempts=attempt) from error
            wait = min(self.first_wait_seconds * 2.0 ** (attempt - 1), self.longest_wait_seconds)
            # from the system, so that nobody's seeded numbers move
            time.sleep(wait * random.SystemRandom().uniform(0.5, 1.5))
        raise AssertionError("attempts is at least 1")


def open_url(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url` and the path in it, its own repeats turned off where they are known."""
    protocol = fsspec.core.split_protocol(url)[0]
    if protocol not in ("s3", "s3a"):
        fs, path = fsspec.core.url_to_fs(url)
        return fs, str(path)
    fs, path = fsspec.core.url_to_fs(url, config_kwargs={"retries": {"total_max_attempts": 1}})
    fs.retries = 1
    return fs, str(path)


def repeat_uploads(file: Any, *, url: str, retries: Retries) -> None:
    """Make each request of an upload that s3fs has open repeatable; other file systems' files stay as they are.

    s3fs sends every part of an upload through one method of the file.
    """
    send = getattr(file, "_call_s3", None)
    if send is not None:
        file._call_s3 = lambda *args, **kwargs: retries.call(url, send, *args, **kwargs)


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(
        error, FileNotFoundError | PermissionError | FileExistsError | IsADirectoryError | NotADirectoryError
    ):
        return False
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500 or _code(error) in TRANSIENT_CODES
    return bool(_kinds(error) & TRANSIENT_KINDS)


def explained(url: str, error: Exception) -> BadInput | None:
    """What a user can do about a final failure; None when `error` says it better or is nobody's input."""
    found = f"{type(error).__name__}: {first_line(error)}"
    if _code(error) == "NoSuchBucket":
        return BadInput(url, found, rule="the bucket exists", remedy="create it or correct the URL")
    if _kinds(error) & CREDENTIAL_KINDS or isinstance(error, PermissionError) or _status(error) in (401, 403):
        return BadInput(
            url,
            found,
            rule="the credentials in use must allow the request",
            remedy="set them (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) or have access "
            "granted",
        )
    if isinstance(error, FileNotFoundError | FileExistsError | IsADirectoryError | NotADirectoryError):
        return None
    if isinstance(error, OSError) or _status(error) is not None:
        return BadInput(url, found, rule="its file system takes the request", remedy="check URL, region and endpoint")
    return None


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0][:300]


def _given_up(url: str, error: Exception, *, attempts: int) -> BadInput:
    return BadInput(
        url,
        f"{type(error).__name__}: {first_line(error)} ({attempts} attempts)",
        rule="its file system answers",
        remedy="check network, endpoint (for S3 AWS_ENDPOINT_URL) and the service's state, then run the command again",
    )


def _kinds(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _response(error: BaseException) -> dict[str, Any]:
    """S3's answer, which s3fs keeps as the cause of the error that it raises."""
    for one in (error, error.__cause__):
        found = getattr(one, "response", None)
        if isinstance(found, dict):
            return found
    return {}


def _code(error: Exception) -> str | None:
    code = _response(error).get("Error", {}).get("Code")
    return code if isinstance(code, str) else None


def _status(error: Exception) -> int | None:
    """The HTTP status of a refusal, where the error carries one."""
    found = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    for value in (found, getattr(error, "status", None), getattr(error, "code", None)):
        if isinstance(value, int):
            return value
    return None
