"""How a process of ours treats threads and freed memory; called once, by entry points, before torch is loaded."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
KEEP_BYTES = (1 << 31) - 1
"""the largest value that mallopt's int takes"""
THREAD_SETTINGS = {"OMP_WAIT_POLICY": "passive"}
"""Torch's idle threads sleep. By default they spin, and take the cores from the sampling and reading threads:
embedding the demo's graph took four times as long on two busy cores."""


def prepare_process() -> None:
    """Apply THREAD_SETTINGS, unless the user has set them, and keep freed memory."""
    for name, value in THREAD_SETTINGS.items():
        os.environ.setdefault(name, value)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let freed tensors' memory be used again instead of going back to the system.

    A training step frees and takes the same hundreds of megabytes; by default glibc gives large blocks back at
    once, and each step pays for their page faults anew (a third of the step on a virtual machine). The peak of
    memory is the same. Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_THRESHOLD, KEEP_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES)
