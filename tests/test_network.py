"""The network that `benchmarks/namespaces.py` breaks: a cut link is silent, a slow one slow, nothing is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(BENCHMARKS)}
BEGIN = """
import socket, subprocess, sys, time
from network import ADDRESSES, at, cut, enter, fast, heal, slow
if (code := enter(sys.argv)) is not None:
    raise SystemExit(code)
"""
SERVE = """
import socket, threading
def drain(connection):
    while data := connection.recv(65536):
        if data.endswith(b"."):
            connection.send(b"got it")
with socket.create_server(("0.0.0.0", 80)) as server:
    while True:
        threading.Thread(target=drain, args=(server.accept()[0],), daemon=True).start()
"""
BREAK_LINKS = f"""{BEGIN}
SERVE = {SERVE!r}
server = subprocess.Popen([*at("n1"), sys.executable, "-c", SERVE])
address = (ADDRESSES["n1"], 80)
while True:
    try:
        connection = socket.create_connection(address, 5)
        break
    except ConnectionRefusedError:
        time.sleep(0.05)

def send(size):
    begun = time.monotonic()
    connection.sendall(b" " * size + b".")
    assert connection.recv(10) == b"got it"
    return time.monotonic() - begun

connection.settimeout(60)
send(10)
cut("n1")
try:
    socket.create_connection(address, 1)
except TimeoutError:
    print("no answer")
connection.sendall(b".")
heal("n1")
assert connection.recv(10) == b"got it"
print("came after all")
slow("n1", 2)
print("slow" if send(500_000) > 1 else "fast")
fast("n1")
print(subprocess.run(["tc", "-n", "n1", "qdisc"], capture_output=True, text=True).stdout.count("tbf"))
"""


@pytest.fixture(scope="module", autouse=True)
def _where_there_can_be_one():
    asked = [sys.executable, "-c", "import network; print(network.why_not())"]
    reason = subprocess.run(asked, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout.strip()
    if reason:
        pytest.skip(reason)


def test_links_break_as_they_do_outside(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(BREAK_LINKS)
    done = subprocess.run(
        [sys.executable, script], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["no answer", "came after all", "slow", "0", ""]


def test_nothing_is_left_of_it(tmp_path):
    mark = f"leave-nothing-{tmp_path.name}"
    script = tmp_path / "script.py"
    script.write_text(
        f"{BEGIN}\n"
        f"subprocess.Popen([*at('n1'), 'sh', '-c', 'sleep 600; : {mark}'])\n"
        "print('there', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, script], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as outer:
        assert outer.stdout.readline() == "there\n"
        assert marked(mark)
        outer.kill()
    deadline = time.monotonic() + 60
    while marked(mark):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def marked(mark):
    """Processes with a mark in their command line."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:
            continue
    return [line for line in lines if mark.encode() in line]
