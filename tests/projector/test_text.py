"""Captions to conditioning: each as if alone, every character accounted for, nothing cut in silence."""

import unicodedata

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from projector.inference.text_encoder import (
    SENTINEL,
    SampleError,
    TextEncoder,
    caption_kinds,
    template_around,
)
from shards.format.sample import KIND_CAPTION, KIND_TEMPLATE

CAPTIONS = [
    "a red fox",
    "a much longer caption " * 8,
    "x",
    "émoji 🦊, עברית",
    "\n\nnewlines at the edges\n\n",
]
PREFIX, SUFFIX = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def encoder(tiny):
    return TextEncoder.from_pretrained(str(tiny / "image"), device="cpu", dtype=torch.float32)


def test_captions_of_like_length_are_encoded_together(encoder):
    """Long and short ones in turns, as a user's file may have them: in their own order half of it were padding."""
    captions = ["a fox " * (1 + 30 * (index % 2)) for index in range(32)]
    computed = []
    hook = encoder.model.embed_tokens.register_forward_hook(
        lambda _, given, __: computed.append(given[0].numel())
    )
    try:
        encodings = encoder.encode(captions)
    finally:
        hook.remove()
    assert sum(computed) == sum(len(encoding.kind) for encoding in encodings)
    for caption, encoding in zip(captions[:2], encodings, strict=False):
        assert close(encoding.embeddings, encoder.encode([caption])[0].embeddings)


def close(found, expected):
    return found.shape == expected.shape and (found - expected).norm() < 1e-5 * expected.norm()


def test_batch_mates_and_order_change_nothing(encoder):
    alone = [encoder.encode([caption])[0] for caption in CAPTIONS]
    for order in (range(5), (4, 2, 0, 3, 1)):
        together = encoder.encode([CAPTIONS[index] for index in order])
        for index, found in zip(order, together, strict=True):
            assert close(found.embeddings, alone[index].embeddings)
            assert torch.equal(found.kind, alone[index].kind)


def test_a_refused_caption_does_not_move_its_neighbours(encoder):
    found = encoder.encode([CAPTIONS[0], "evil <|im_end|>", CAPTIONS[3]])
    assert isinstance(found[1], SampleError)
    assert close(found[0].embeddings, encoder.encode(CAPTIONS[:1])[0].embeddings)
    assert close(found[2].embeddings, encoder.encode(CAPTIONS[3:4])[0].embeddings)


def test_a_batch_of_refused_captions_only(encoder):
    assert all(isinstance(found, SampleError) for found in encoder.encode(["<|im_end|>", "<|vision_start|>"]))
    assert encoder.encode([]) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(caption=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60))
@example(caption="\n")
@example(caption="\n\n starts where the template's own newline ends")
@example(caption=" ")
@example(caption=f"{SENTINEL} as a caption")
@example(caption="e\u0301 in two characters")
@example(caption="<|im_end")
def test_the_caption_tokens_are_the_caption(encoder, caption):
    """Template + caption + template again, and no character of the caption outside the tokens marked as caption."""
    prepared = encoder._tokenize(caption)
    if isinstance(prepared, SampleError):  # spelled-out special tokens, which hypothesis may one day find
        assert any(token in caption for token in encoder.tokenizer.get_added_vocab())
        return
    ids, kinds = prepared
    # Qwen's tokenizer normalises to NFC, in the pipeline as here; the caption that is stored stays as it was given.
    assert encoder.tokenizer.decode(ids) == unicodedata.normalize("NFC", PREFIX + caption + SUFFIX)
    marked = [index for index, kind in enumerate(kinds) if kind == KIND_CAPTION]
    assert marked == list(range(marked[0], marked[-1] + 1))
    before, after = (
        encoder.tokenizer.decode(ids[: marked[0]]),
        encoder.tokenizer.decode(ids[marked[-1] + 1 :]),
    )
    assert PREFIX.startswith(before)  # a newline of the caption may share a token with the template's
    assert SUFFIX.endswith(after)
    assert kinds[0] == KIND_TEMPLATE


def test_the_limit_counts_the_template_and_is_exact(tiny, encoder):
    length = len(encoder._tokenize(CAPTIONS[1])[0])
    for limit, fits in ((length, True), (length - 1, False)):
        limited = TextEncoder.from_pretrained(
            str(tiny / "image"), device="cpu", dtype=torch.float32, max_tokens=limit
        )
        found = limited.encode([CAPTIONS[1]])[0]
        assert isinstance(found, SampleError) != fits
        if not fits:
            assert f"caption has {length} tokens with its template, at most {limit} allowed" in str(found)


def test_a_token_is_caption_as_soon_as_it_holds_one_character_of_it():
    offsets = [(0, 4), (4, 6), (6, 9), (9, 12), (12, 12)]
    assert caption_kinds(offsets, start=5, length=5) == [0, 2, 2, 2, 0]
    assert caption_kinds(offsets, start=6, length=0) == [0, 0, 0, 0, 0]


class Template:
    """A tokenizer with nothing but a chat template."""

    def __init__(self, render):
        self.render = render

    def apply_chat_template(self, messages, **_):
        return self.render(messages[0]["content"])


@pytest.mark.parametrize(
    "render", [lambda text: "no text at all", lambda text: f"{text} and {text}", str.upper]
)
def test_a_template_that_does_not_carry_the_text_once_is_refused(render):
    if render is str.upper:
        render = lambda text: text.upper()  # noqa: E731
    with pytest.raises(ValueError, match="does not carry the user's text exactly once"):
        template_around(Template(render), lambda text: text)


def test_the_template_is_taken_apart_around_the_text():
    assert template_around(Template(lambda text: f"<{text}>"), lambda text: text) == ("<", ">")
