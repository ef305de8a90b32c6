"""Captions to the tensors that condition Z-Image, as `ZImagePipeline.encode_prompt` makes them.

Letters: B batch, S padded sequence, T text tokens, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from projector.inference.copies import onto
from projector.models.int8 import Quantize, quantize_weights
from shards.format.sample import KIND_CAPTION, KIND_TEMPLATE

BATCH = 16  # captions of like length together; more give nothing once the device is busy
SENTINEL = "\ue000caption\ue000"  # private-use characters: no template and no caption holds them


class SampleError(ValueError):
    """One sample cannot be made; its batch mates can."""


@dataclass(frozen=True)
class TextEncoding:
    """One caption's conditioning.

    Attributes:
        embeddings: (T, D), hidden_states[-2] of the text encoder, padding removed.
        kind: (T,) uint8, template or caption.
    """

    embeddings: torch.Tensor
    kind: torch.Tensor


class TextEncoder:
    """The text encoder of a Z-Image pipeline without what its conditioning never uses.

    `hidden_states[-2]` is the output of the last block but one, so the last block, the final norm and the head are
    dropped (35 of 36 blocks for Qwen3-4B).

    Args:
        model: `Qwen3ForCausalLM` or its base model.
        tokenizer: the pipeline's.
        max_tokens: longest templated caption.
    """

    def __init__(self, model: Any, tokenizer: Any, max_tokens: int = 512) -> None:
        self.model = getattr(model, "model", model).eval()
        self.model.layers = self.model.layers[:-1]
        self.model.config.num_hidden_layers = len(self.model.layers)
        self.model.norm = nn.Identity()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        device: str,
        dtype: torch.dtype,
        max_tokens: int = 512,
        revision: str | None = None,
        quantize: Quantize = "none",
    ) -> "TextEncoder":
        """Load from a Z-Image pipeline folder or hub id."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(path, subfolder="tokenizer", revision=revision)
        model = AutoModelForCausalLM.from_pretrained(
            path, subfolder="text_encoder", revision=revision, dtype=dtype, use_safetensors=True
        )
        encoder = cls(model, tokenizer, max_tokens)
        quantize_weights(encoder.model, quantize)  # before the device has to hold more
        encoder.to(device)
        return encoder

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What the device's time goes to."""
        return (self.model,)

    def to(self, device: str) -> None:
        """Move the model."""
        self.model.to(device)

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> list[TextEncoding | SampleError]:
        """Encode captions, each one as if alone; many are sorted by length first, so that little is padding.

        Args:
            captions: left untouched.

        Returns:
            an encoding per caption, or why there is none.
        """
        results: list[Any] = [self._tokenize(caption) for caption in captions]
        sound = [index for index, item in enumerate(results) if not isinstance(item, SampleError)]
        sound.sort(key=lambda index: len(results[index][0]))
        for start in range(0, len(sound), BATCH):
            batch = sound[start : start + BATCH]
            for index, encoding in zip(batch, self._forward([results[i] for i in batch]), strict=True):
                results[index] = encoding
        return results

    def _tokenize(self, caption: str) -> tuple[list[int], list[int]] | SampleError:
        return templated(self.tokenizer, caption, self.max_tokens)

    def rows(self, caption: str) -> int:
        """Rows of a caption's conditioning; 0 where there is none."""
        found = self._tokenize(caption)
        return 0 if isinstance(found, SampleError) else len(found[0])

    def empty_prompt(self) -> torch.Tensor:
        """(T, D) conditioning of the empty prompt, which guidance steers away from."""
        encoding = self.encode([""])[0]
        assert isinstance(encoding, TextEncoding)
        return encoding.embeddings

    def _forward(self, items: Sequence[tuple[list[int], list[int]]]) -> list[TextEncoding]:
        device = self.model.embed_tokens.weight.device
        longest = max(len(ids) for ids, _ in items)
        padding = self.tokenizer.pad_token_id or 0
        # On the right, as the pipeline pads: causal attention then never sees it.
        ids = onto(device, torch.tensor([ids + [padding] * (longest - len(ids)) for ids, _ in items]))
        lengths = onto(device, torch.tensor([len(ids) for ids, _ in items]))
        mask = torch.arange(longest, device=device)[None] < lengths[:, None]
        states = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return [
            TextEncoding(state[: len(kinds)].clone(), torch.tensor(kinds, dtype=torch.uint8))
            for state, (_, kinds) in zip(states, items, strict=True)
        ]


def templated(tokenizer: Any, caption: str, max_tokens: int) -> tuple[list[int], list[int]] | SampleError:
    """A caption in its template as token ids and their kinds, or why it cannot be encoded."""
    problem = special_token_in(tokenizer, caption)
    if problem:
        return SampleError(f"caption holds the special token {problem!r}; remove it from the prompt")
    prefix, suffix = template_around(tokenizer, lambda text: text)
    tokens = tokenizer(f"{prefix}{caption}{suffix}", return_offsets_mapping=True)
    if len(tokens.input_ids) > max_tokens:
        return SampleError(
            f"caption has {len(tokens.input_ids)} tokens with its template, at most {max_tokens} allowed; "
            "shorten it, or raise max_tokens"
        )
    return tokens.input_ids, caption_kinds(tokens.offset_mapping, len(prefix), len(caption))


def template_around(tokenizer: Any, content_of: Any) -> tuple[str, str]:
    """What a chat template puts before and after a user's text.

    Args:
        tokenizer: with a chat template.
        content_of: makes the message content from the text.

    Returns:
        prefix and suffix.

    Raises:
        ValueError: the template changes or repeats the text.
    """
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content_of(SENTINEL)}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
    )
    prefix, found, suffix = rendered.partition(SENTINEL)
    if not found or SENTINEL in suffix:
        raise ValueError("the chat template does not carry the user's text exactly once")
    return prefix, suffix


def special_token_in(tokenizer: Any, caption: str) -> Literal[""] | str:
    """A special token spelled out in a caption, or an empty string: it would act as markup, not as text."""
    return next((token for token in tokenizer.get_added_vocab() if token in caption), "")


def caption_kinds(offsets: Sequence[tuple[int, int]], start: int, length: int) -> list[int]:
    """Kind of each token: caption where it covers a character of the caption, template elsewhere."""
    return [
        KIND_CAPTION if first < start + length and last > start else KIND_TEMPLATE for first, last in offsets
    ]
