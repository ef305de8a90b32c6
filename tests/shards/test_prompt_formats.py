"""What a prompt file is found to be: delimiters, encodings, headers, types; what is none is named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import UsageError
from shards.prompts import file_readers
from shards.prompts.files import read_prompts


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
