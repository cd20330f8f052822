"""Requests to a remote file system that fails now and then, against a real S3 server and a proxy that breaks."""

import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from storage.errors import BadInput
from storage.place import Place
from storage.retries import Retries
from storage.store import Store
from tests.flaky_server import FlakyServer, Mood, between
from tests.s3_server import S3Server, free_port, s3, serving_s3, variables

__all__ = ["s3"]

QUICK = Retries(attempts=4, first_wait_seconds=0.01)
DATA = bytes(range(256)) * 4000


@pytest.fixture
def flaky(s3: S3Server) -> Iterator[FlakyServer]:
    """A proxy to the server, which this process's clients use."""
    port = urlsplit(s3.endpoint).port
    assert port is not None
    with between(port) as proxy, variables({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}):
        yield proxy


@pytest.mark.parametrize("mood", ["refuse", "cut", "slow down"])
def test_a_read_that_breaks_is_repeated(s3: S3Server, flaky: FlakyServer, mood: Mood) -> None:
    bucket = s3.new_bucket(f"broken-{mood.replace(' ', '-')}")
    s3.client().put_object(Bucket=bucket.removeprefix("s3://"), Key="file", Body=DATA)
    place = Place(bucket, retries=QUICK)
    assert place.size("file") == len(DATA)
    flaky.moods += [mood, mood, mood]
    assert place.read_range("file", start=1000, stop=900_000) == DATA[1000:900_000]
    flaky.moods += [mood]
    with place.open_read("file") as file:
        file.seek(5000)
        assert file.read(7) == DATA[5000:5007]
    assert flaky.moods == []


@pytest.mark.parametrize("mood", ["refuse", "slow down"])
def test_an_upload_that_breaks_is_repeated(s3: S3Server, flaky: FlakyServer, mood: Mood) -> None:
    bucket = s3.new_bucket(f"upload-{mood.replace(' ', '-')}")
    place = Place(bucket, retries=QUICK)
    assert place.names() == []
    large = DATA * 60  # more than one part
    for name, data in (("small", DATA), ("large", large)):
        flaky.moods += [mood, mood]
        place.write_bytes(name, data)
        assert flaky.moods == []
        stored = s3.client().get_object(Bucket=bucket.removeprefix("s3://"), Key=name)["Body"].read()
        assert stored == data


def test_what_stays_broken_is_given_up_with_url_and_remedy(s3: S3Server, flaky: FlakyServer) -> None:
    place = Place(s3.new_bucket("given-up"), retries=QUICK)
    flaky.moods += ["refuse"] * 50
    with pytest.raises(BadInput, match=r"s3://given-up/file: .*4 attempts.*its file system answers; check network"):
        place.read_bytes("file")
    # aiohttp itself opens a second connection where a kept one turns out to be dead
    assert 4 <= 50 - len(flaky.moods) <= 8


def test_a_server_that_comes_back_is_waited_for() -> None:
    port = free_port()
    with serving_s3(port=port) as server, variables(server.environment):
        server.new_bucket("gone")
        place = Place("s3://gone", retries=Retries(attempts=10, first_wait_seconds=0.3, longest_wait_seconds=2.0))
        place.write_bytes("file", DATA)
        found: list[bool] = []
        reader = threading.Thread(target=lambda: found.append(place.exists("file")))
    with variables(server.environment):
        reader.start()
        with serving_s3(port=port) as server:
            reader.join()
            # moto keeps buckets in memory: the new server answers that it has none
            assert found == [False]


def test_a_server_that_is_not_there_is_one_clear_line() -> None:
    with variables({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", **dict.fromkeys(
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x")}):  # fmt: skip
        with pytest.raises(
            BadInput, match=r"s3://nowhere/manifest.json: EndpointConnectionError.*2 attempts"
        ) as caught:
            Place("s3://nowhere", retries=Retries(attempts=2, first_wait_seconds=0.01)).read_bytes("manifest.json")
        assert "\n" not in str(caught.value)


def test_final_failures_are_not_repeated(s3: S3Server, flaky: FlakyServer) -> None:
    bucket = s3.new_bucket("final")
    place = Place(bucket)
    with pytest.raises(FileNotFoundError):
        place.read_range("none", start=0, stop=10)
    assert flaky.num_connections == 1
    with pytest.raises(BadInput, match=r"s3://absent-bucket.*the bucket exists; create it or correct the URL"):
        Store.open("s3://absent-bucket")
    with pytest.raises(BadInput, match=r"s3://absent-bucket/file.*the bucket exists"):
        Place("s3://absent-bucket").write_bytes("file", b"1")


def test_missing_credentials_are_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.new_bucket("locked")
    with variables({"AWS_EC2_METADATA_DISABLED": "true"}):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        with pytest.raises(BadInput, match=r"s3://locked.*credentials.*AWS_ACCESS_KEY_ID"):
            Place("s3://locked").write_bytes("file", b"1")


class Refusing:
    """Raises what file systems raise."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.num_calls = 0

    def __call__(self) -> str:
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError(), BrokenPipeError()])
def test_failures_of_the_network_are_transient(error: Exception) -> None:
    request = Refusing(error, error)
    assert QUICK.call("url", request) == "done"
    assert request.num_calls == 3


@pytest.mark.parametrize("error", [PermissionError("no"), OSError("odd")])
def test_refusals_become_bad_input_at_once(error: Exception) -> None:
    request = Refusing(error, error)
    with pytest.raises(BadInput, match="the-url"):
        QUICK.call("the-url", request)
    assert request.num_calls == 1
