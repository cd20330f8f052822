"""How much memory this machine, or the container that the process is in, has left, and what the process has in use."""

from pathlib import Path

import psutil

ROOT = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Memory that processes here may still take: of the machine, and of every control group they are in."""
    free = int(psutil.virtual_memory().available)
    for limit, used in _limits():
        free = min(free, max(0, limit - used))
    return free


def anonymous_bytes() -> int:
    """Memory of this process that is no file's: anonymous and shared pages."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return int(psutil.Process().memory_info().rss)
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def _limits() -> list[tuple[int, int]]:
    """(limit, in use without the page cache) of the control groups that this process is in, both versions."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = (ROOT, "memory.max", "memory.current", "file")
        elif "memory" in controllers.split(","):
            names = (ROOT / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
        else:
            continue
        folder, limit_name, used_name, cache_name = names
        # a container sees its own group as the root
        for group in {folder / path.lstrip("/"), folder}:
            try:
                limit = int((group / limit_name).read_text())
                used = int((group / used_name).read_text())
                stat = dict(entry.split() for entry in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                continue
            found.append((limit, used - int(stat.get(cache_name, 0))))
    return found
