"""Users' prompt files: captions kept exactly, categories taken or guessed, duplicates and near-duplicates."""

import errno
import hashlib
import json
import pickle
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UsageError
from shards.prompts import file_readers, spooled
from shards.prompts.builtin import builtin_prompts
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


def test_many_lines(tmp_path):
    space = builtin_prompts().prompts
    (tmp_path / "p.txt").write_text("".join(f"{i} {space[i % 500].caption}\n" for i in range(20_000)))
    source = read_prompts(tmp_path / "p.txt")
    assert len(source.prompts) == 20_000
    kept = without_near_duplicates(source, 500).prompts
    assert tuple(kept) == source.prompts[:500]


def test_a_large_file_is_not_held_in_memory(tmp_path):
    """16 MB of prompts take 45 MB where each is held."""
    with (tmp_path / "p.txt").open("w") as file:
        file.writelines(f"{number} {'red fox ' * 50}{number}\n" for number in range(40_000))
    script = (
        "import resource, sys; from pathlib import Path; from shards.prompts.files import read_prompts\n"
        "grown = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = grown(); source = read_prompts(Path(sys.argv[1]))\n"
        "print(len(source.prompts), source.prompts[37_777].caption[:6], grown() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "p.txt"], capture_output=True, text=True, check=True
    )
    count, begins, grown = done.stdout.split()
    assert (count, begins) == ("40000", "37777")
    assert int(grown) < 32


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(file_readers, "MOST_OF_LINE", 1000)
    (tmp_path / "p.jsonl").write_bytes(f'"a cat"\n{"x" * 200_000}'.encode(encoding))
    with pytest.raises(UsageError, match=r"more than 1,000 (bytes|characters); break it into lines"):
        read_prompts(tmp_path / "p.jsonl")


def test_a_text_that_is_cut_within_a_character_is_decoded_across_pieces(tmp_path):
    captions = [f"{'a' * (number % 3)}\U0001f98a {number}" for number in range(9000)]
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        (tmp_path / "p.txt").write_bytes("\r\n".join(["plain", *captions]).encode(encoding))
        assert [p.caption for p in read_prompts(tmp_path / "p.txt").prompts[1:]] == captions
    data = "\n".join(["plain", *captions]).encode("utf-16-le")
    (tmp_path / "p.txt").write_bytes(data + b"\n\0\x00\xdc")
    with pytest.raises(UsageError, match=f"not UTF-16-LE at byte {len(data) + 3};"):
        read_prompts(tmp_path / "p.txt")


@settings(deadline=None)  # a machine may be busy
@given(st.lists(st.sampled_from(range(8)), min_size=1, max_size=40), st.integers(1, 40), st.integers(1, 40))
def test_what_is_left_does_not_depend_on_how_much_is_wanted(numbers, fewer, more):
    texts = [" ".join([f"word{n % 4}x{i}" for i in range(30)] + [f"end{n // 4}"]) for n in range(8)]
    prompts = tuple(Prompt(f"{texts[n]} {'again' if i % 2 else 'once'}") for i, n in enumerate(numbers))
    source = PromptSource("p", "", prompts)
    short, long = (without_near_duplicates(source, count).prompts for count in sorted((fewer, more)))
    assert tuple(short) == long[: len(short)]
    assert len(without_near_duplicates(source, 40).prompts) == len({n % 4 for n in numbers})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", b"prompt;category\na cat;x\na dog, small;y\n"),
        ("p.csv", b"category;prompt\r\nx;a cat\r\ny;a dog, small\r\n"),
        ("p.csv", b"prompt\tcategory\na cat\tx\na dog, small\ty\n"),
        ("p.csv", b"sep=;\nprompt;category\na cat;x\na dog, small;y\n"),
        ("p.csv", b'prompt,category\na cat,x\n"a dog, small",y\n'),
        ("p.tsv", b'prompt,category\na cat,x\n"a dog, small",y\n'),
        ("p.csv", "\ufeffprompt;x\na cat;1\na dog, small;2\n".encode("utf-8")),
        ("p.csv", "prompt\tx\r\na cat\t1\r\na dog, small\t2\r\n".encode("utf-16")),
        ("p.csv", "prompt;x\na cat;1\na dog, small;2\n".encode("utf-16-le")),
        ("p.txt", "a cat\r\na dog, small\r\n".encode("utf-16")),
        ("p.txt", "a cat\na dog, small".encode("utf-16-be")),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog, small"}\n'.encode("utf-16")),
        ("p.csv", b'prompt,x\ra cat,1\r"a dog, small",2\r'),
        ("p.txt", b"a cat\ra dog, small\r"),
        ("p.txt", "a cat\ra dog, small".encode("utf-16")),
        ("p.json", b'["a cat", "a dog, small"]'),
        ("p.jsonl", b'"a cat"\n"a dog, small"\n'),
        ("p.csv", b' Prompt , x\na cat,1\n"a dog, small",2\n'),
        ("p.json", b'[{"prompt": "a cat"}, {"prompt": "a dog, small"}]'),
        ("p.json", b'{"version": 1, "prompts": ["a cat", "a dog, small"]}'),
    ],
)
def test_a_delimiter_and_an_encoding_are_found(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    source = read_prompts(tmp_path / name)
    assert [prompt.caption for prompt in source.prompts] == ["a cat", "a dog, small"]
    assert source.notes == ()


def test_a_named_column_tells_the_delimiter(tmp_path):
    (tmp_path / "p.csv").write_text("id|words\n1|a cat\n")
    assert [p.caption for p in read_prompts(tmp_path / "p.csv", "words").prompts] == ["a cat"]


def test_a_table_without_a_header_loses_no_prompt(tmp_path):
    (tmp_path / "p.csv").write_text("a red fox\na cat\n")
    source = read_prompts(tmp_path / "p.csv")
    assert [prompt.caption for prompt in source.prompts] == ["a red fox", "a cat"]
    assert "no header; line 1 is taken as the first prompt" in source.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("p.txt", b"\n<!DOCTYPE HTML><html>\n", "is a web page"),
        ("p.csv", b"PK\3\4\x14\0\0\0abc", "is a zip, as spreadsheets are; save it as .csv"),
        ("p.csv", b"\x1f\x8b\x08\0", "is compressed .gzip"),
        ("p.csv", b"PAR1\n", "is parquet; name it .parquet"),
        ("p.txt", b"Prompt\tcategory\na cat\tx\n", "is one of a .tsv file; name it .tsv"),
        ("p.csv", b"a red fox,animals\na cat,x\n", "or put a header line before it if that is the first"),
        ("p.csv", b"prompt,x\na cat,1\na dog\n", "line 3: 1 fields, the header has 2; give it as many"),
        ("p.json", b'{"prompt": "a"}\n{"prompt": "b"}\n', "of one object a line, name it .jsonl"),
        ("p.txt", b"a cat\ncaf\xe9\n", "line 2: not UTF-8 at byte 4; convert the file to UTF-8"),
    ],
)
def test_what_is_no_prompt_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_a_parquet_s_captions_of_any_type_and_its_nulls(tmp_path, kind):
    captions = pa.array(["a cat", None, "a d\u00f6g", ""])
    captions = captions.dictionary_encode() if pa.types.is_dictionary(kind) else captions.cast(kind)
    pq.write_table(pa.table({"prompt": captions}), tmp_path / "p.parquet")
    source = read_prompts(tmp_path / "p.parquet")
    assert [prompt.caption for prompt in source.prompts] == ["a cat", "a d\u00f6g"]
    assert "2 blank prompts skipped, the first in line 2" in source.notes[0]


def test_a_parquet_s_captions_that_are_no_text_have_their_type_named(tmp_path):
    for column, message in (
        (pa.array([b"caf\xe9"]), "row 1: not UTF-8 at byte 4"),
        (pa.array([{"en": "a"}]), "row 1: 'prompt' is struct<en: string>, not text"),
    ):
        pq.write_table(pa.table({"prompt": column}), tmp_path / "p.parquet")
        with pytest.raises(UsageError, match=message):
            read_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("p.txt", "a cat\n\n \na dog\n\n", "line 2"),
        ("p.csv", "\nprompt,x\na cat,1\n\n,\na dog,2\n\n", "line 4"),
        ("p.tsv", "prompt\tx\na cat\t1\n\n\t\na dog\t2\n\n", "line 3"),
        ("p.csv", "prompt,x\na cat,1\n ,3\na dog,2\n\n\n", "line 3"),
        ("p.jsonl", '{"prompt": "a cat"}\n\n{"prompt": " "}\n{"prompt": "a dog"}\n\n', "line 2"),
        ("p.json", '["a cat", "", " ", "a dog", ""]', "item 2"),
        ("p.json", '["a cat", null, {"prompt": null}, "a dog", ""]', "item 2"),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": null}\nnull\n"a dog"\n""\n', "line 2"),
    ],
)
def test_blank_prompts_are_skipped_and_counted(tmp_path, name, content, first):
    (tmp_path / name).write_text(content)
    source = read_prompts(tmp_path / name)
    assert [prompt.caption for prompt in source.prompts] == ["a cat", "a dog"]
    assert f"3 blank prompts skipped, the first in {first}" in source.notes[0]


def test_an_object_without_the_key_of_the_others_gives_no_caption_from_another(tmp_path):
    rows = [{"prompt": "a cat", "id": "1"}, {"id": "2"}, {"file_name": "x.jpg"}, {"prompt": "a dog"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    for name in ("a.jsonl", "b.json"):
        source = read_prompts(tmp_path / name)
        assert [prompt.caption for prompt in source.prompts] == ["a cat", "a dog"]
        assert any("2 blank prompts skipped" in note for note in source.notes)


def test_a_parquet_with_two_columns_of_one_name_is_named(tmp_path):
    columns = pa.schema([("prompt", pa.string()), ("prompt", pa.string())])
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], schema=columns), tmp_path / "a.parquet"
    )
    with pytest.raises(UsageError, match="cannot be read as parquet"):
        read_prompts(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("first", "suffix"),
    [
        ("prompt,category", ".csv"),
        ("prompt;category", ".csv"),
        ("id\tprompt", ".tsv"),
        ('{"prompt": "a cat"}', ".jsonl"),
        ('["a cat", "a dog"]', ".json"),
        ("a prompt, in oils", ""),
        ("text, caption and prompt", ""),
        ("{braces} in a prompt", ""),
    ],
)
def test_a_text_that_is_another_format_is_named(tmp_path, first, suffix):
    (tmp_path / "a.txt").write_text(f"{first}\na dog\n")
    if not suffix:
        assert read_prompts(tmp_path / "a.txt").prompts[0].caption == first
        return
    with pytest.raises(UsageError, match=f"is one of a \\{suffix} file; name it \\{suffix}"):
        read_prompts(tmp_path / "a.txt")


def test_a_table_with_two_columns_of_captions_of_one_name_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,style,prompt\na cat,x,a dog\n")
    with pytest.raises(UsageError, match="two columns are called 'prompt'; rename one"):
        read_prompts(tmp_path / "a.csv")
