"""A process whose GPU is broken ends, with a line in its log that says why."""

import json
import subprocess
import sys

CHILD = """
from projector.making.broken_device import DeviceBrokenError
from ray_jobs.cluster.device_trouble import ending_with_the_device
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


AS_TORCH_SAYS_IT = """
from ray_jobs.cluster import device_trouble
device_trouble.device_is_broken = lambda: True
with device_trouble.ending_with_the_device():
    raise RuntimeError("CUDA error: unspecified launch failure")
"""


def test_what_torch_raises_outside_a_batch_ends_the_process_too():
    """As `empty_cache` does, where samples were made already and nobody is to be blamed."""
    done = subprocess.run(
        [sys.executable, "-c", AS_TORCH_SAYS_IT], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout)["error"] == "CUDA error: unspecified launch failure"
