"""What makes a sample sound, and its tensors as bytes."""

import io
import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from shards.format.sample import (
    Failure,
    check_image,
    check_sample,
    decode_tensors,
    encode_tensors,
    group_of,
    open_image,
)
from tests_support import EXPECTED, a_plan, a_sample

PLANNED = a_plan().shards[0].samples[0]


@given(
    hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6)),
    hnp.arrays(np.uint8, st.integers(1, 9)),
)
def test_tensors_come_back_bit_for_bit(bits, kinds):
    tensors = {"text": bits.view(ml_dtypes.bfloat16), "text.kind": kinds}
    data = encode_tensors(tensors)
    assert data == encode_tensors(dict(reversed(tensors.items())))
    again = decode_tensors(data)
    assert again["text"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(again["text"].view(np.uint16), bits)
    np.testing.assert_array_equal(again["text.kind"], kinds)


def test_only_the_tensors_asked_for_are_decoded():
    data = encode_tensors(a_sample(PLANNED).tensors)
    assert set(decode_tensors(data, ["text", "vl.none.-8"])) == {"text", "vl.none.-8"}
    with pytest.raises(KeyError):
        decode_tensors(data, ["vl.none.-1"])


def test_torch_and_the_library_read_the_same():
    import safetensors.torch
    import torch

    sample = a_sample(PLANNED)
    read = safetensors.torch.load(encode_tensors(sample.tensors))
    assert set(read) == set(sample.tensors)
    assert read["text"].dtype == torch.bfloat16
    np.testing.assert_array_equal(
        read["text"].view(torch.uint16).numpy(), sample.tensors["text"].view(np.uint16)
    )


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_decoder(data):
    with pytest.raises(ValueError):
        decode_tensors(data)


@pytest.mark.parametrize(
    "header",
    [
        {"text": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [0, 8]}},
        {"text": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 800]}},
        {"text": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [-8, 0]}},
        {"text": {"dtype": "BF16", "shape": [-2, -2], "data_offsets": [0, 8]}},
        {"text": {"dtype": "BF16", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}},
        {"text": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}},
        {"text": 3},
        [],
    ],
)
def test_headers_that_lie_are_refused(header):
    text = json.dumps(header).encode()
    with pytest.raises(ValueError):
        decode_tensors(len(text).to_bytes(8, "little") + text + bytes(16))


def test_a_sound_sample_tells_its_width():
    assert check_sample(a_sample(PLANNED), PLANNED, EXPECTED) == 8


def test_the_json_member_tells_everything():
    metadata = a_sample(PLANNED).metadata
    assert metadata["caption"] == PLANNED.caption
    assert metadata["tokens"] == {"text": 5, "vl.caption": 11, "vl.none": 8}
    assert metadata["image_span"] == {"caption": [2, 6], "none": [2, 6]}
    assert (metadata["layers"], metadata["text_modes"]) == ([-8, -6], ["caption", "none"])
    assert (metadata["width"], metadata["height"], metadata["seed"]) == (32, 32, PLANNED.seed)


def with_value(name, value):
    tensor = a_sample(PLANNED).tensors[name].copy()
    tensor.reshape(-1)[-1] = value
    return {name: tensor}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (with_value("text", np.nan), "text: NaN or infinite"),
        (with_value("vl.none.-6", np.inf), "vl.none.-6: NaN or infinite"),
        (with_value("text.kind", 9), "kind 9 does not exist"),
        ({"text": np.zeros((5, 8), np.float32)}, "text: float32"),
        ({"text": np.zeros((4, 8), ml_dtypes.bfloat16)}, r"expected bfloat16 \(5, 8\)"),
        ({"vl.none.-8": np.zeros((8, 4), ml_dtypes.bfloat16)}, r"vl.none.-8: .*expected bfloat16 \(8, 8\)"),
        ({"text.kind": np.array([0, 0, 0, 0, 0], np.uint8)}, "no caption tokens"),
        ({"vl.none.kind": np.zeros(8, np.uint8)}, "vl.none: no image tokens"),
        ({"vl.none.-2": np.zeros((8, 8), ml_dtypes.bfloat16)}, "vl.none.-2.*instead of"),
    ],
)
def test_unsound_embeddings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_sample(a_sample(PLANNED, **changes), PLANNED, EXPECTED)


BOTH = replace(EXPECTED, readers=("vl", "graft"), latents=True)
LATENTS = np.ones((16, 4, 4), ml_dtypes.bfloat16)


def with_both(**changes):
    """A sample with what both readers saw, and its latents."""
    plain = a_sample(PLANNED)
    grafted = {
        name.replace("vl.", "graft."): tensor for name, tensor in plain.tensors.items() if "vl." in name
    }
    return a_sample(PLANNED, **{**grafted, "latents": LATENTS, **changes})


def test_the_grafted_reader_and_the_latents_are_part_of_the_format_where_settings_say_so():
    sample = with_both()
    assert check_sample(sample, PLANNED, BOTH) == 8
    told = sample.metadata
    assert told["tokens"] == {"text": 5, "vl.caption": 11, "vl.none": 8, "graft.caption": 11, "graft.none": 8}
    assert (told["layers"], told["text_modes"]) == ([-8, -6], ["caption", "none"])
    assert told["image_span"] == {"caption": [2, 6], "none": [2, 6]}
    with pytest.raises(ValueError, match="instead of"):
        check_sample(sample, PLANNED, EXPECTED)
    with pytest.raises(ValueError, match="instead of"):
        check_sample(a_sample(PLANNED), PLANNED, BOTH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": np.ones((16, 4), ml_dtypes.bfloat16)}, r"expected bfloat16 \(channels, height, width\)"),
        ({"latents": np.ones((16, 4, 4), np.float32)}, "latents: float32"),
        ({"latents": np.ones((16, 0, 4), ml_dtypes.bfloat16)}, r"latents: bfloat16 \(16, 0, 4\)"),
        ({"latents": np.full((16, 4, 4), np.nan, ml_dtypes.bfloat16)}, "latents: NaN or infinite"),
        ({"graft.none.kind": np.zeros(8, np.uint8)}, "graft.none: no image tokens"),
        (
            {"graft.none.-8": np.zeros((7, 8), ml_dtypes.bfloat16)},
            r"graft.none.-8: .*expected bfloat16 \(8, 8\)",
        ),
    ],
)
def test_unsound_optional_tensors_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_sample(with_both(**changes), PLANNED, BOTH)


def test_zero_tokens_are_refused():
    empty = {"text": np.zeros((0, 8), ml_dtypes.bfloat16), "text.kind": np.zeros(0, np.uint8)}
    with pytest.raises(ValueError, match="with a token"):
        check_sample(a_sample(PLANNED, **empty), PLANNED, EXPECTED)


def test_another_sample_in_its_place_is_refused():
    with pytest.raises(ValueError, match="is not the planned"):
        check_sample(a_sample(a_plan().shards[0].samples[1]), PLANNED, EXPECTED)


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(Image.new("RGB", (32, 32))), r"one colour, RGB \(0, 0, 0\)"),
        (png(Image.new("RGB", (32, 32), (9, 8, 7))), "one colour"),
        (png(Image.linear_gradient("L").resize((16, 32))), r"image is \(16, 32\), expected \(32, 32\)"),
        (b"not a picture", "does not decode: no PNG, WEBP or JPEG$"),
        (png(Image.linear_gradient("L").resize((32, 32)))[:-30], "does not decode"),
    ],
)
def test_unsound_pictures_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        check_image(data, EXPECTED)


def test_a_decompression_bomb_is_refused_by_its_header():
    honest = png(Image.linear_gradient("L"))
    import zlib

    size = (60_000).to_bytes(4, "big") * 2
    header = b"IHDR" + size + honest[24:29]
    bomb = honest[:12] + header + zlib.crc32(header).to_bytes(4, "big") + honest[33:]
    with pytest.raises(ValueError, match=r"claims|does not decode"):
        open_image(bomb)


def test_a_failure_is_one_line_and_tells_causes_apart():
    def fail(error):
        try:
            raise error
        except Exception as caught:
            return Failure.from_exception("image", caught)

    first = fail(RuntimeError("two\nlines"))
    assert (first.stage, first.error_class, first.message, first.attempts) == (
        "image",
        "RuntimeError",
        "two lines",
        1,
    )
    assert first.traceback_sha256 != fail(ValueError("two\nlines")).traceback_sha256
    assert len(fail(RuntimeError("x" * 9999)).message) == 2000


def test_other_dtypes_of_the_library_are_no_part_of_the_format():
    data = safetensors.numpy.save({"text": np.zeros((2, 2), np.float64)})
    with pytest.raises(ValueError, match="dtype F64"):
        decode_tensors(data)


def test_image_format_is_kept():
    assert replace(a_sample(PLANNED), image_format="webp").image_format == "webp"


def test_captions_of_one_picture_are_one_group():
    sample = a_sample(PLANNED)
    others = [replace(sample, caption=f"  {sample.caption.upper()}"), replace(sample, caption="another")]
    assert [group_of(other) == group_of(sample) for other in others] == [True, False]
    imported = [
        replace(sample, caption=caption, metadata={"source": {"picture": picture}})
        for caption, picture in (("one", "7.jpg"), ("two", "7.jpg"), ("one", "8.jpg"))
    ]
    assert [group_of(other) == group_of(imported[0]) for other in imported] == [True, True, False]
