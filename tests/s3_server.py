"""A real S3 server for tests: moto in a process of its own, on a free loopback port, and clients of it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
import pytest
from s3fs import S3FileSystem

LIMIT_SECONDS = 60.0
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class S3Server:
    """An endpoint that answers; `environment` makes any S3 client of a process use it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The standard variables."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.endpoint}

    def client(self) -> Any:
        """A client that bypasses the code under test."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=KEYS["AWS_DEFAULT_REGION"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def new_bucket(self, name: str) -> str:
        """Create a bucket; its URL."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


@contextmanager
def serving_s3(*, port: int | None = None) -> Iterator[S3Server]:
    """Run a server for the length of the block; its buckets go with it."""
    port = port or free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={**environment, **KEYS, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/moto-api/", process)
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Return when something answers at `url`."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        assert process.poll() is None, "the server has ended"
        try:
            with urlopen(url, timeout=LIMIT_SECONDS):
                return
        except OSError:
            assert time.monotonic() < deadline, f"nothing answers at {url}"
            time.sleep(0.05)


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the length of the block; s3fs looks at them anew before and after."""
    patch = pytest.MonkeyPatch()
    for name, value in values.items():
        patch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        patch.undo()
        S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """A server that this process's S3 clients use, and those that it starts."""
    with serving_s3() as server, variables({**server.environment, "AWS_CONFIG_FILE": str(Path(os.devnull))}):
        yield server
