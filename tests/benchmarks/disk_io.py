"""What the kernel has read from disks and written to them for a process."""

from pathlib import Path


def disk_bytes(*kinds: str, pid: int | str = "self") -> int:
    """Bytes of these kinds together: `read_bytes`, `write_bytes`."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.partition(":")[0] in kinds)
