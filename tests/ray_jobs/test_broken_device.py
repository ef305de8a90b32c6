"""A process whose GPU is broken ends, with a line in its log that says why."""

import json
import subprocess
import sys

CHILD = """
from projector.making.batching import DeviceBrokenError
from ray_jobs.building.shard_output import ending_with_the_device
with ending_with_the_device():
    print("at work", flush=True)
    raise DeviceBrokenError("an illegal memory access was encountered")
print("still here")
"""


def test_the_process_ends_and_its_log_says_why():
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    begun, line = done.stdout.splitlines()
    assert begun == "at work"
    assert json.loads(line)["error"] == "an illegal memory access was encountered"
