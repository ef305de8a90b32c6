"""The built-in prompt space and users' files."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import UsageError
from shards.plan import coverage, normalise_caption
from shards.prompts import CONTENT_TYPES, STYLES, SUBJECTS, builtin_prompts, read_prompts


def test_the_built_in_space_is_large_and_without_repetition():
    prompts = builtin_prompts().prompts
    assert len(prompts) >= 24_000
    assert len({normalise_caption(prompt.caption) for prompt in prompts}) == len(prompts)
    assert (len(CONTENT_TYPES), len(STYLES), len(SUBJECTS)) == (5, 5, 6)


@pytest.mark.parametrize("count", [1, 7, 96, 150, 1000, 5000, 20_000])
def test_every_prefix_is_evenly_spread(count):
    cells = coverage(builtin_prompts().prompts[:count])
    counts = [cells.get((c, s, t), 0) for c in CONTENT_TYPES for s in STYLES for t in SUBJECTS]
    assert max(counts) - min(counts) <= 1


def test_early_prompts_mix_all_three_axes():
    first = builtin_prompts().prompts[:30]
    for axis in ("content", "style", "subject"):
        counts = Counter(getattr(prompt, axis) for prompt in first)
        assert len(counts) == {"content": 5, "style": 5, "subject": 6}[axis]
        assert max(counts.values()) <= 7


def test_prompts_read_as_sentences():
    for prompt in builtin_prompts().prompts[::37]:
        assert prompt.caption[0].isupper()
        assert prompt.caption.endswith(".")
        assert "  " not in prompt.caption
        assert 30 < len(prompt.caption) < 250


def test_the_built_in_space_never_changes_unnoticed():
    """Its hash is in every fingerprint: a changed word makes old datasets impossible to grow."""
    assert builtin_prompts().sha256 == "40319fc93d0b6d49faf9acb3e2e45f7893acced3f761d24158d23a7d986515fa"


CAPTIONS = ["plain", " spaces  kept ", 'a "quoted", comma', "emoji 🦊", "עברית", "<script>alert(1)</script>"]


def write(path, captions=CAPTIONS, column="prompt"):
    rows = [{column: caption, "style": "vintage"} for caption in captions]
    if path.suffix == ".txt":
        path.write_text("".join(caption + "\n" for caption in captions))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [column, "style"], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".tsv", ".csv", ".jsonl", ".parquet"])
def test_captions_are_kept_exactly(tmp_path, suffix):
    source = read_prompts(write(tmp_path / f"prompts{suffix}"))
    assert [prompt.caption for prompt in source.prompts] == CAPTIONS
    if suffix != ".txt":
        assert {prompt.style for prompt in source.prompts} == {"vintage"}


def test_the_hash_is_of_the_content_not_of_the_file(tmp_path):
    assert read_prompts(write(tmp_path / "a.csv")).sha256 == read_prompts(write(tmp_path / "b.jsonl")).sha256
    assert read_prompts(write(tmp_path / "c.txt")).sha256 != read_prompts(write(tmp_path / "a.csv")).sha256


def test_a_byte_order_mark_is_no_part_of_the_first_caption(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbffirst\r\nsecond\r\n")
    assert [prompt.caption for prompt in read_prompts(tmp_path / "p.txt").prompts] == ["first", "second"]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_a_named_column_is_taken_and_a_missing_one_named(tmp_path, suffix):
    path = write(tmp_path / f"p{suffix}", column="words")
    assert read_prompts(path, "words").prompts[0].caption == "plain"
    with pytest.raises(UsageError, match=r"build.prompt_column = 'wrods'.*words, style"):
        read_prompts(path, "wrods")
    with pytest.raises(UsageError, match=r"no column named prompt or caption or text among words, style"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "holds no prompts"),
        ("p.csv", b"", "holds no prompts"),
        ("p.csv", b"prompt\n", "holds no prompts"),
        ("p.txt", b"one\n\nthree\n", "line 2: blank prompt"),
        ("p.txt", b"one\ntwo\nONE \n", "line 3: duplicate of line 1"),
        ("p.txt", b"one\n\xff\xfe\n", "line 2: not UTF-8 at byte 1"),
        ("p.txt", b"one\x00two\n", "control character"),
        ("p.txt", b"x" * 20_001, "at most 20,000"),
        ("p.csv", b"prompt,style\na,b,c\n", "line 2: 3 fields, the header has 2"),
        ("p.csv", b'prompt,style\n"a,b\n', "line 2"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ("p.jsonl", b'["a"]\n', "line 1: list instead of an object"),
        ("p.jsonl", b'{"prompt": 3}\n', "'prompt' is int, not text"),
        ("p.jsonl", b'{"prompt": "\\ud800"}\n', "lone surrogate"),
        ("p.parquet", b"not parquet", "cannot be read as parquet"),
        ("p.docx", b"x", "unknown kind '.docx'"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_a_column_for_text(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read: No such file"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UsageError, match="is not a file"):
        read_prompts(tmp_path / "folder.txt")
    with pytest.raises(UsageError, match=r"a .txt file has no columns"):
        read_prompts(write(tmp_path / "p.txt"), "prompt")


def test_a_parquet_file_with_a_null_caption(tmp_path):
    pq.write_table(pa.table({"prompt": ["a", None]}), tmp_path / "p.parquet")
    with pytest.raises(UsageError, match="row 2: 'prompt' is None"):
        read_prompts(tmp_path / "p.parquet")


def test_errors_name_the_option_that_gave_the_file(tmp_path):
    for name, content, column, message in (
        ("a.txt", "a\na\n", None, r"^compare.prompts = '.*a.txt', line 2: duplicate"),
        ("b.csv", "x,y\n1,2\n", None, r"^compare.prompts = .*name it with compare.prompt_column$"),
        ("b.csv", "x,y\n1,2\n", "z", r"^compare.prompt_column = 'z': '.*b.csv' has no such column"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=message):
            read_prompts(tmp_path / name, column, option="compare.prompts")
