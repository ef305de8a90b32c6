"""Named points at which a test may have this process killed, the way power cuts and the kernel do it."""

import os
import signal
import time
from collections import Counter

_passed: Counter[str] = Counter()


def crash_point(name: str) -> None:
    """Kill this process with SIGKILL if `SHARDS_CRASH_AT` says so; otherwise do nothing.

    Args:
        name: of the point: mid-shard, before-parquet, after-parquet, before-tar, after-tar, before-commit,
            after-commit, reading, sample-ID. `SHARDS_CRASH_AT=after-tar:3` means the third passage in this process.
            With `SHARDS_CRASH_ONCE=/path` only the process that can create that file dies; with
            `SHARDS_CRASH_HOW=hang` it hangs instead, with `pause` until that file is removed.
    """
    wanted = os.environ.get("SHARDS_CRASH_AT")
    if not wanted:
        return
    point, _, passage = wanted.partition(":")
    if point != name:
        return
    _passed[name] += 1
    if _passed[name] != int(passage or 1):
        return
    if once := os.environ.get("SHARDS_CRASH_ONCE"):
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    if os.environ.get("SHARDS_CRASH_HOW") == "pause":
        while once and os.path.exists(once):
            time.sleep(0.01)
        return
    if os.environ.get("SHARDS_CRASH_HOW") == "hang":
        time.sleep(3600)
    os.kill(os.getpid(), signal.SIGKILL)
