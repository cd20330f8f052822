"""Runs a command under a memory cgroup where there is one, and measures its peak memory.

Peak memory is the anonymous and shared pages of the process tree, each counted once: what the cgroup says (rss and
shmem), sampled every 20 ms; without a cgroup, the sum over the tree of what /proc says.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
SAMPLE_SECONDS = 0.02
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Done:
    """A finished command."""

    returncode: int
    seconds: float
    peak_bytes: int
    peak_disk_bytes: int
    """how much fuller the disk of the temporary folder was at most"""
    capped: bool
    output: str


def run_capped(
    words: list[str], *, limit_bytes: int | None, disk: str = "/tmp", env: dict[str, str] | None = None
) -> Done:
    """Run a command to its end; its page cache counts against the limit too, and is dropped before it starts."""
    drop_page_cache()
    group = _make_group(limit_bytes) if limit_bytes is not None else None
    began = time.perf_counter()
    if group is not None:  # the shell enters the group, then becomes the command
        words = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh", *words]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    )
    peak, most_used = 0, 0
    free_before = shutil.disk_usage(disk).free
    while process.poll() is None:
        peak = max(peak, _memory(process.pid, group))
        most_used = max(most_used, free_before - shutil.disk_usage(disk).free)
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - began
    output = process.stdout.read() if process.stdout else ""
    if group is not None:
        group.rmdir()
    return Done(process.returncode, seconds, peak, most_used, group is not None, output)


def drop_page_cache() -> None:
    """Forget clean pages, where this process may."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        print("the page cache could not be dropped", file=sys.stderr)


def _make_group(limit_bytes: int) -> Path | None:
    name = f"hopstream-{os.getpid()}"
    for root, limit in ((V1, "memory.limit_in_bytes"), (V2, "memory.max")):
        try:
            group = root / name
            group.mkdir()
            (group / limit).write_text(str(limit_bytes))
        except OSError:
            continue
        return group
    return None


def _memory(pid: int, group: Path | None) -> int:
    if group is not None:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        if "anon" in stat:
            return int(stat["anon"]) + int(stat["shmem"])
        return int(stat["total_rss"]) + int(stat.get("total_shmem", 0))
    total = 0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in tree:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))
    return total
