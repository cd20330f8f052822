"""The metrics of a run: what is written once is not written again, and resuming cuts back to the step."""

import json
import os
from pathlib import Path

import pytest

from service.metrics_log import METRICS, MetricsLog, part_names
from storage.place import Place


def add(log: MetricsLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.add({"step": step, "loss": 1.0 / step})


def steps(place: Place) -> list[int]:
    """Steps of all parts in order, every line parsed strictly."""
    text = b"".join(place.read_bytes(name) for name in part_names(place)).decode()
    assert text.endswith("\n") or not text
    return [json.loads(line, parse_constant=pytest.fail)["step"] for line in text.splitlines()]


def test_a_local_file_only_grows(tmp_path: Path) -> None:
    log = MetricsLog(Place(str(tmp_path)))
    add(log, 1, 3)
    log.flush()
    before = os.stat(tmp_path / METRICS)
    with open(tmp_path / METRICS, "rb") as reader:  # one who follows the file goes on reading in it
        assert len(reader.readlines()) == 3
        add(log, 4, 5)
        log.flush(to_disk=True)
        assert [json.loads(line)["step"] for line in reader] == [4, 5]
    assert os.stat(tmp_path / METRICS).st_ino == before.st_ino


@pytest.mark.parametrize("url", ["{}", "memory://metrics-test-{}"])
@pytest.mark.parametrize(("resumed", "kept"), [(0, 0), (4, 4), (12, 12), (99, 25)])
def test_resuming_drops_the_lines_after_the_step_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, resumed: int, kept: int
) -> None:
    monkeypatch.setattr("service.metrics_log.PART_LINES", 4)
    place = Place(url.format(tmp_path))
    first = MetricsLog(place)
    first.resume(0)
    for step in range(1, 26, 5):
        add(first, step, step + 4)
        first.flush()
    assert steps(place) == list(range(1, 26))
    add(first, 26, 27)  # killed before these were written
    second = MetricsLog(place)
    second.resume(resumed)
    assert steps(place) == list(range(1, kept + 1))
    add(second, kept + 1, kept + 7)
    second.flush()
    assert steps(place) == list(range(1, kept + 8))


@pytest.mark.parametrize("torn", [b'{"step": 3, "lo', b'{"step": 3}', b"\x00\x00\x00\n", b"[]\n"])
def test_a_line_cut_short_by_a_crash_is_dropped_with_what_follows(tmp_path: Path, torn: bytes) -> None:
    log = MetricsLog(Place(str(tmp_path)))
    add(log, 1, 2)
    log.flush()
    with open(tmp_path / METRICS, "ab") as file:
        file.write(torn)
    again = MetricsLog(Place(str(tmp_path)))
    again.resume(10)
    add(again, 3, 4)
    again.flush()
    assert steps(Place(str(tmp_path))) == [1, 2, 3, 4]


def test_elsewhere_a_write_is_of_one_part_however_long_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.metrics_log.PART_LINES", 4)
    place = Place(f"memory://bounded-{tmp_path}")
    log = MetricsLog(place)
    for step in range(1, 11):
        add(log, step, step)
        log.flush()
    assert part_names(place) == ["metrics.jsonl", "metrics-00001.jsonl", "metrics-00002.jsonl"]
    assert [len(place.read_bytes(name).splitlines()) for name in part_names(place)] == [4, 4, 2]


def test_a_number_that_json_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        MetricsLog(Place(str(tmp_path))).add({"step": 1, "loss": float("nan")})
