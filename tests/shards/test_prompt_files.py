"""Prompt files: captions are kept exactly, bad files are named, categories win."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UsageError
from shards.prompts.files import read_prompts, without_near_duplicates
from shards.prompts.prompt import Prompt, PromptSource

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
    with pytest.raises(UsageError, match=r"prompt_column = 'wrods'.*words, style"):
        read_prompts(path, "wrods")
    with pytest.raises(UsageError, match=r"no column named prompt or caption or text among words, style"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "holds no prompts"),
        ("p.csv", b"", "holds no prompts"),
        ("p.csv", b"prompt\n", "holds no prompts"),
        ("p.txt", b"\n \n", "holds no prompts"),
        (
            "p.csv",
            b"fox\ncat\n",
            "first line, 'fox', may be a header or a prompt; .* name it with prompt_column",
        ),
        ("p.csv", b"a red fox;photo\na cat;x\n", "no column named prompt .* among a red fox, photo; name it"),
        ("p.csv", "prompt\na".encode("utf-16")[:-1], "not UTF-16 at byte"),
        ("p.json", b"[1]", "item 1: int instead of a text or an object"),
        ("p.json", b'{"a": 1}', r"dict instead of a list; give \["),
        ("p.json", b'["a", "A"]', "item 2: duplicate of item 1"),
        ("p.json", b"[", "not JSON"),
        ("p.txt", b"one\ntwo\nONE \n", "line 3: duplicate of line 1"),
        ("p.txt", b"one\n\xff\xfe\n", "line 2: not UTF-8 at byte 1"),
        ("p.txt", b"one\x00two\n", "control character"),
        ("p.txt", b"x" * 20_001, "at most 20,000"),
        ("p.csv", b"prompt,style\na,b,c\n", "line 2: 3 fields, the header has 2"),
        ("p.csv", b'prompt,style\n"a,b\n', "line 2"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ("p.jsonl", b'["a"]\n', "line 1: list instead of a text or an object"),
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


def test_errors_name_the_option(tmp_path):
    for name, content, column, message in (
        ("a.txt", "a\na\n", None, r"^prompts = '.*a.txt', line 2: duplicate"),
        ("b.csv", "x,y\n1,2\n", None, r"^prompts = .*name it with prompt_column, or"),
        ("b.csv", "x,y\n1,2\n", "z", r"^prompt_column = 'z': '.*b.csv' has no such column"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=message):
            read_prompts(tmp_path / name, column)


def test_categories_of_the_file_win_and_others_are_guessed(tmp_path):
    (tmp_path / "p.csv").write_text(
        "prompt,Style\nA photo of a dog,vintage\nxyzzy,\nOil painting of a lighthouse,\n", encoding="utf-8"
    )
    assert [(p.content, p.style, p.subject) for p in read_prompts(tmp_path / "p.csv").prompts] == [
        ("photograph", "vintage", "animals"),
        ("uncategorised", "uncategorised", "uncategorised"),
        ("illustration", "painterly", "architecture"),
    ]


def test_duplicates_are_dropped_where_that_is_asked(tmp_path):
    (tmp_path / "p.txt").write_text("one\ntwo\nONE \nthree\ntwo\n")
    source = read_prompts(tmp_path / "p.txt", drop_duplicates=True)
    assert [prompt.caption for prompt in source.prompts] == ["one", "two", "three"]
    assert "2 duplicates left out, the first in line 3, of line 1" in source.notes[0]


def test_parti_prompts(tmp_path):
    """The table that its authors published: Prompt, Category, Challenge, Note."""
    (tmp_path / "PartiPrompts.tsv").write_text(
        "Prompt\tCategory\tChallenge\tNote\n"
        "a bowl of soup that looks like a monster made out of plasticine\tFood & Beverage\tImagination\t\n"
        "infinity\tAbstract\tBasic\t\n"
        "a tiger in the style of van gogh\tAnimals\tStyle & Format\t\n"
        '"No" is "no" twice\tWorld Knowledge\tWriting\tquotes are characters here\n'
        "Anubis wearing sunglasses\tWorld Knowledge\tSimple Detail\tan Egyptian god\n"
    )
    prompts = read_prompts(tmp_path / "PartiPrompts.tsv").prompts
    assert [prompt.subject for prompt in prompts] == [
        "objects",
        "abstract concepts",
        "animals",
        "uncategorised",
        "uncategorised",
    ]
    assert prompts[2].style == "painterly"
    assert prompts[3].caption == '"No" is "no" twice'
    assert prompts[0].caption == "a bowl of soup that looks like a monster made out of plasticine"


def test_a_parquet_like_diffusion_db(tmp_path):
    """Columns of DiffusionDB's metadata.parquet; its users sent the same and nearly the same again and again."""
    long = "a highly detailed matte painting of a ruined castle on a cliff above the sea at dawn, " * 2
    prompts = [f"{long} by artist {word}" for word in ("one", "two")] + ["a cat", "a dog", "a cat"]
    table = pa.table(
        {
            "image_name": [f"{i}.png" for i in range(5)],
            "prompt": prompts,
            "seed": list(range(5)),
            "cfg": [7.0] * 5,
            "width": [512] * 5,
            "user_name": ["hash"] * 5,
            "prompt_nsfw": [0.0] * 5,
        }
    )
    pq.write_table(table, tmp_path / "metadata.parquet")
    with pytest.raises(UsageError, match=r"duplicate of line 3: 'a cat'.*duplicates drop$"):
        read_prompts(tmp_path / "metadata.parquet", drop_duplicates=False)
    with pytest.raises(UsageError, match=r"do not tell prompts apart\)$"):
        read_prompts(tmp_path / "metadata.parquet")
    source = without_near_duplicates(read_prompts(tmp_path / "metadata.parquet", drop_duplicates=True), 5)
    assert [prompt.caption for prompt in source.prompts] == [prompts[0], "a cat", "a dog"]
    assert len(source.notes) == 2
    assert "near-duplicates" in source.notes[1]


@settings(deadline=None)  # a machine may be busy
@given(st.lists(st.sampled_from(range(8)), min_size=1, max_size=40), st.integers(1, 40), st.integers(1, 40))
def test_what_is_left_does_not_depend_on_how_much_is_wanted(numbers, fewer, more):
    texts = [" ".join([f"word{n % 4}x{i}" for i in range(30)] + [f"end{n // 4}"]) for n in range(8)]
    prompts = tuple(Prompt(f"{texts[n]} {'again' if i % 2 else 'once'}") for i, n in enumerate(numbers))
    source = PromptSource("p", "", prompts)
    short, long = (without_near_duplicates(source, count).prompts for count in sorted((fewer, more)))
    assert tuple(short) == long[: len(short)]
    assert len(without_near_duplicates(source, 40).prompts) == len({n % 4 for n in numbers})
