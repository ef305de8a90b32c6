"""What comes from outside is shown, and never obeyed by a terminal or a page."""

import json
import sys

import pytest

from shards.__main__ import main
from shards.tools.terminal import behind, visible, visible_output

CLEAR, OVERRIDE = "\x1b[2J", "\u202e"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a red fox, 图片, עברית, 🦊", "a red fox, 图片, עברית, 🦊"),
        (f"a{CLEAR}b", "a\\u001b[2Jb"),
        ("a\x9bb", "a\\u009bb"),
        (f"a{OVERRIDE}b", "a\\u202eb"),
        ("one\ntwo\tthree", "one\ntwo\tthree"),
        ("a\rb", "a\\u000db"),
        ("bad\udcff", "bad\\udcff"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_what_moves_the_cursor_or_hides_signs_is_escaped(text, shown):
    assert visible(text) == shown
    assert json.loads(f'"{visible(OVERRIDE)}"') == OVERRIDE


def test_whatever_is_printed_is_escaped_and_progress_rewrites_its_line(capsys):
    with visible_output():
        print(f"name{CLEAR}")
        print(f"name{OVERRIDE}", file=sys.stderr)
        sys.stdout.write("\r10%")
        behind(sys.stdout).write(CLEAR)
    assert capsys.readouterr() == (f"name\\u001b[2J\n\r10%{CLEAR}", "name\\u202e\n")


def test_names_in_a_dataset_are_shown_escaped(make_dataset, tmp_path, capsys):
    dataset, _ = make_dataset()
    dataset.storage.put_bytes(f"train/evil{CLEAR}\n1 shards: no problems", b"x")
    data = dataset.commit_file("train-000000") | {"device": f"GPU{CLEAR}\n"}
    (tmp_path / "data" / "_commit" / "train-000000.json").write_text(json.dumps(data))
    assert main(["verify", dataset.storage.root, "--workers", "1"]) == 1
    assert main(["ls", dataset.storage.root]) == 0
    assert main(["info", dataset.storage.root, "--json"]) == 0
    assert main(["info", f"{tmp_path}/absent{CLEAR}\n"]) == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert said.err.count("\n") == 1
    assert "train/evil\\x1b[2J\\n1 shards: no problems: a foreign file" in said.out
    assert "GPU\\x1b[2J\\n" in said.out
