"""Prompt files of many lines are on disk and not in memory."""

import errno
import hashlib
import json
import pickle
import subprocess
import sys

import pytest

from shards.errors import UsageError
from shards.prompts import spooled
from shards.prompts.builtin import builtin_prompts
from shards.prompts.files import read_prompts, without_near_duplicates


def test_many_lines(tmp_path):
    space = builtin_prompts().prompts
    (tmp_path / "p.txt").write_text("".join(f"{i} {space[i % 500].caption}\n" for i in range(20_000)))
    source = read_prompts(tmp_path / "p.txt")
    assert len(source.prompts) == 20_000
    kept = without_near_duplicates(source, 500).prompts
    assert tuple(kept) == source.prompts[:500]


def test_a_large_file_is_not_held_in_memory(tmp_path):
    """12 MB of prompts take 3 MB, and 16 where they are not put on disk."""
    with (tmp_path / "p.txt").open("w") as file:
        file.writelines(f"{number} {'red fox ' * 50}{number}\n" for number in range(30_000))
    script = (
        "import sys; from pathlib import Path\n"
        "from shards.prompts import spooled; from shards.prompts.files import read_prompts\n"
        "spooled.IN_MEMORY = 1 << 20\n"
        # Of this program alone: what getrusage tells begins with the memory of the process that started it.
        "status = Path('/proc/self/status')\n"
        "grown = lambda: int(status.read_text().partition('VmHWM:')[2].split()[0]) >> 10\n"
        "before = grown(); source = read_prompts(Path(sys.argv[1]))\n"
        "print(len(source.prompts), source.prompts[27_777].caption[:6], grown() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "p.txt"], capture_output=True, text=True, check=True
    )
    count, begins, grown = done.stdout.split()
    assert (count, begins) == ("30000", "27777")
    assert int(grown) < 9


def test_prompts_on_disk_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(spooled, "IN_MEMORY", 100)
    captions = [f"prompt {number} \u732b {'x' * (number % 7)}" for number in range(1000)]
    lines = [*captions[:600], *captions[100:200], *captions[600:]]
    (tmp_path / "p.txt").write_text("\n".join(lines))
    (tmp_path / "q.txt").write_text("\n".join(captions))
    source = read_prompts(tmp_path / "p.txt", drop_duplicates=True)
    plain = read_prompts(tmp_path / "q.txt")
    assert [prompt.caption for prompt in source.prompts] == captions
    assert [source.prompts[place].caption for place in (999, 0, -1, 640, 63)] == [
        captions[place] for place in (999, 0, -1, 640, 63)
    ]
    assert source.sha256 == plain.sha256
    assert pickle.loads(pickle.dumps(source.prompts)) == source.prompts[:]  # our own, as Ray does
    fields = [(p.caption, p.content, p.style, p.subject) for p in plain.prompts]
    told = "".join(json.dumps(each) + "\n" for each in fields)
    assert plain.sha256 == hashlib.sha256(told.encode()).hexdigest()


def test_a_full_disk_under_the_prompts_is_named(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "p.txt").write_text("a cat\n")
    monkeypatch.setattr(spooled.tempfile.SpooledTemporaryFile, "write", full)
    with pytest.raises(
        UsageError, match=r"prompts cannot be kept there: No space left on device; .*set TMPDIR"
    ):
        read_prompts(tmp_path / "p.txt")
