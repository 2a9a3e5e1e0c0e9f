"""How many processors this process may use, and how many of them have nothing else to do."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

MOMENT = 0.5  # seconds for which the processors are watched at a time
LOOKS = 4  # times, at most: work that ends soon does not count
STAT = Path("/proc/stat")
GROUPS = Path("/sys/fs/cgroup")


def allowed() -> int:
    """Count the processors of this process: by its affinity and the quota of its control group."""
    count = len(_own())
    try:
        name = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition(":")[2]
        group = GROUPS / name.lstrip("/")
        limits = [folder / "cpu.max" for folder in (group, *group.parents)]
        for limit in [file for file in limits if file.is_file()]:
            quota, period = limit.read_text().split()
            if quota != "max":
                count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, IndexError):  # no such groups here
        pass
    return max(count, 1)


def free() -> int:
    """Count those of them that are idle now, at least 1; all where that cannot be known."""
    most = 1
    for _ in range(LOOKS):
        most = max(most, _free_for_a_moment())
        if most == allowed():
            break
    return most


def _free_for_a_moment() -> int:
    before, began = _busy(), time.monotonic()
    if before is None:
        return allowed()
    time.sleep(MOMENT)
    after, seconds = _busy() or before, time.monotonic() - began
    ticks = os.sysconf("SC_CLK_TCK") * seconds
    busy = sum(min((after[cpu] - before[cpu]) / ticks, 1.0) for cpu in before if cpu in after)
    return min(allowed(), round(len(before) - busy))


def _own() -> set[int]:
    """List the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _busy() -> dict[int, int] | None:
    """Read for how many ticks each processor has worked; None where the system does not say."""
    try:
        lines = STAT.read_text().splitlines()
        rows = [line.split() for line in lines if line.startswith("cpu") and line[3].isdigit()]
        # user, nice, system, then idle and waiting, then interrupts and what a host took
        worked = {int(row[0][3:]): sum(map(int, row[1:4] + row[6:9])) for row in rows}
    except (OSError, ValueError, IndexError):
        return None
    return {cpu: ticks for cpu, ticks in worked.items() if cpu in _own()} or None
