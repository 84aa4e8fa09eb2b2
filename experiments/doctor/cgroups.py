"""What a process may use of its machine: affinity and control groups. Linux knows both."""

import os
import re
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_limit(
    what: str, *, base: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float | None:
    """The tightest limit of this process's control groups, of either version.

    Args:
        what: `cpu` in cores, or `memory` and `memory_used` in bytes.
        base: Where the groups are mounted.
        own: The file that says which groups the process is in.

    Returns:
        The limit (of `memory_used` the use in the group that has the tightest memory limit, less
        what it can give up); None without a limit.
    """
    try:
        groups = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    limits: list[tuple[float, float]] = []
    controller = "cpu" if what == "cpu" else "memory"
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers and controller not in controllers.split(","):
            continue
        top = base / controllers if controllers else base
        # In a container the path may be the host's; the mount's own top is then the limit.
        folders = [top / path.strip("/"), *(top / path.strip("/")).parents]
        limits += [
            found
            for folder in folders
            if folder.is_relative_to(top) and (found := _limit_of(folder, controller)) is not None
        ]
    if not limits:
        return None
    limit, used = min(limits)
    return used if what == "memory_used" else limit


def _limit_of(folder: Path, controller: str) -> tuple[float, float] | None:
    """Limit and use of one group; None without a limit."""
    if controller == "cpu":
        words = (_read(folder / "cpu.max") or "").split()
        if not words:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = [_read(folder / name) or "" for name in names]
        if not all(word.isdigit() for word in words):  # "max", or -1.
            return None
        return int(words[0]) / int(words[1]), 0.0
    limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or ""
    used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or "0"
    # Version 1 says "no limit" by a number that no machine has.
    if not limit.isdigit() or int(limit) >= 2**60:
        return None
    # Files that were read count as used, and are given up when memory is short.
    statistics = _read(folder / "memory.stat") or ""
    cache = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
    return float(limit), max(0.0, float(used) - float(cache[1] if cache else 0))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
