"""Reference pictures: other people's files, refused by name or taken as they look."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from projector.comparison import cases
from projector.comparison.cases import (
    Case,
    Column,
    name_of,
    paired,
    reference_pictures,
    user_pictures,
)
from shards.errors import UsageError
from shards.format.sample import as_png, open_image

RANDOM = np.random.default_rng(1)


def a_picture(width=40, height=30):
    return Image.fromarray(RANDOM.integers(0, 255, (height, width, 3), dtype=np.uint8))


def test_a_folder_gives_its_pictures_in_the_order_of_names(tmp_path):
    pictures = {name: a_picture() for name in ("b, c.PNG", "a'; rm -rf ~.webp", "<img src=x>.png")}
    for name, picture in pictures.items():
        picture.save(tmp_path / name, lossless=True)
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    (tmp_path / "folder.png").mkdir()
    found = user_pictures([str(tmp_path)])
    assert [picture.tobytes() for picture in found] == [pictures[name].tobytes() for name in sorted(pictures)]
    one = user_pictures([str(tmp_path / "b, c.PNG")])
    assert [picture.tobytes() for picture in one] == [pictures["b, c.PNG"].tobytes()]


def test_pictures_are_turned_upright_made_rgb_and_kept_below_a_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    a_picture(40, 30).save(tmp_path / "a.jpg", exif=exif)
    Image.new("LA", (3000, 1500)).save(tmp_path / "b.png")
    first, second = user_pictures([str(tmp_path)])
    assert (first.size, first.mode) == ((30, 40), "RGB")
    assert (second.size, second.mode) == ((1024, 512), "RGB")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def a_png_that_claims(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not decode"),
        (b"<svg onload=alert(1)>", "does not decode"),
        (a_png_that_claims(9000, 9000), "claims 9000 x 9000 pixels"),
        (a_png_that_claims(60000, 60000), "does not decode"),
        (a_png_that_claims(400, 400), "does not decode"),
        (as_png(a_picture(4, 500)), "4 x 500 pixels is too narrow"),
        (as_png(a_picture())[:-200], "does not decode"),
    ],
)
def test_what_is_no_sound_picture_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "bad one.png").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        user_pictures([str(tmp_path)])
    assert str(caught.value).startswith(f"images = {str(tmp_path / 'bad one.png')!r}: ")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused_unread(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "none.png"):
        with pytest.raises(UsageError, match=f"{name}': no such file"):
            user_pictures([str(tmp_path / name)])
    with pytest.raises(UsageError, match=r"no .png, .jpg, .jpeg, .webp, .*.bmp files in that folder"):
        user_pictures([str(tmp_path)])
    a_picture().save(tmp_path / "large.png")
    monkeypatch.setattr(cases, "MAX_BYTES", 1000)
    with pytest.raises(UsageError, match=r"large.png': .* bytes; at most 1,000"):
        user_pictures([str(tmp_path / "large.png")])


def test_each_picture_gets_its_prompt_or_all_the_only_one():
    pictures = [a_picture(), a_picture(), a_picture()]
    assert [prompt for _, prompt in paired(pictures, ["a"])] == ["a"] * 3
    assert paired(pictures, ["a", "b", "c"]) == list(zip(pictures, "abc", strict=True))
    for prompts in (["a", "b"], list("abcd")):
        with pytest.raises(UsageError, match=f"{len(prompts)} prompts for 3 pictures; give one for each"):
            paired(pictures, prompts)


def test_names_are_safe_keys_that_say_picture_and_prompt():
    picture, other = a_picture(), a_picture()
    names = {name_of(*pair) for pair in ((picture, "a"), (other, "a"), (picture, "../../b"))}
    assert len(names) == 3
    assert all(len(name) == 16 and set(name) <= set("0123456789abcdef") for name in names)
    turned = Image.frombytes(
        "RGB", (picture.height, picture.width), picture.tobytes()
    )  # the same bytes, another shape
    assert name_of(turned, "a") != name_of(picture, "a") == name_of(picture.copy(), "a")
    column = Column("identity", "blend", 0.3)
    assert Case("0f", "x", 1, "0e").picture(column) == "pictures/0f/identity.blend.0.3.png"


def test_a_reference_is_kept_without_loss():
    picture = a_picture()
    assert open_image(as_png(picture)).convert("RGB").tobytes() == picture.tobytes()


def test_reference_pictures_are_the_first_of_the_plan(make_dataset):
    dataset, plan = make_dataset()
    tested = [sample for shard in plan.shards if shard.split == "test" for sample in shard.samples]
    found = reference_pictures(dataset, 3)
    assert [caption for _, caption in found] == [sample.caption for sample in tested[:3]]
    assert {picture.mode for picture, _ in found} == {"RGB"}
    assert len(reference_pictures(dataset, 1000)) == len(tested)


def test_a_dataset_without_test_samples(make_dataset):
    dataset, _ = make_dataset(shards=[])
    with pytest.raises(UsageError, match="holds no test samples"):
        reference_pictures(dataset, 3)
