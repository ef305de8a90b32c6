"""Pictures, with or without a caption, to Qwen3-VL's hidden states.

Only what is asked for is computed: the vision tower once per picture, one pass of the language model for all layers
and text modes, no block after the last wanted layer, no head.

Letters: B batch, V vision-language tokens, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from PIL import Image
from torch import nn

from projector.inference.copies import onto
from projector.inference.graft import graft_text_encoder
from projector.inference.patches import PatchMaker
from projector.inference.text_encoder import SampleError, caption_kinds, special_token_in, template_around
from projector.models.int8 import Quantize, quantize_weights
from shards.format.sample import KIND_IMAGE, KIND_MARKER, KIND_NAMES, KIND_TEMPLATE

IMAGE_PAD, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
IMAGE_TOKEN_TYPE = 1  # in `mm_token_type_ids`; text is 0
POSITIONS_TOGETHER = 512  # rows of up to so many tokens more have their positions calculated once


@dataclass(frozen=True)
class VisionEncoding:
    """One picture's hidden states.

    Attributes:
        states: (V, D) by text mode and layer.
        kind: (V,) uint8 by text mode.
    """

    states: Mapping[str, Mapping[int, torch.Tensor]]
    kind: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Tokens:
    ids: list[int]
    kinds: list[int]


@dataclass(frozen=True)
class _Packed:
    """All text modes of a picture in one row of tokens, what they begin with alike only once.

    Attributes:
        ids: of the row.
        places: (V,) where each mode's tokens stand in it.
    """

    ids: list[int]
    places: dict[str, torch.Tensor]

    @classmethod
    def of(cls, by_mode: Mapping[str, _Tokens]) -> "_Packed":
        """Pack; the first mode stands whole, the others share its beginning."""
        row: list[int] = []
        places: dict[str, torch.Tensor] = {}
        for mode, tokens in by_mode.items():
            first = next(iter(by_mode.values())).ids
            alike = next(
                (at for at, (a, b) in enumerate(zip(first, tokens.ids, strict=False)) if a != b),
                min(len(first), len(tokens.ids)),
            )
            shared = min(alike, len(row))  # nothing, for the first mode itself
            own = tokens.ids[shared:]
            places[mode] = torch.cat([torch.arange(shared), torch.arange(len(row), len(row) + len(own))])
            row += own
        return cls(row, places)


@dataclass(frozen=True)
class _Inputs:
    """What a pass of the language model takes, on its device.

    Attributes:
        ids: (B, S) tokens.
        positions: (3, B, S).
        mask: (B, 1, S, S) bool; None where causal attention does.
        grid: (B, 3) frames, rows and columns of the pictures.
        places: (V,) of each picture's text modes in its row.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor | None
    grid: torch.Tensor
    places: list[dict[str, torch.Tensor]]


class VisionLanguageEncoder:
    """Qwen3-VL cut down to the layers asked for.

    Args:
        model: `Qwen3VLForConditionalGeneration`.
        tokenizer: with the model's chat template.
        image_processor: `Qwen2VLImageProcessorPil`, which needs no torchvision.
        layers: counted from the end, as in the library's `hidden_states`; -1 is after the final norm.
        text_modes: `caption`, `none` or both.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        *,
        layers: Sequence[int],
        text_modes: Sequence[str],
    ) -> None:
        self.model = model.model.eval()
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self._patches = PatchMaker(image_processor)
        self.layers, self.text_modes = tuple(layers), tuple(text_modes)
        self._image_id = model.config.image_token_id
        self._templates = {
            "caption": template_around(
                tokenizer, lambda text: [{"type": "image"}, {"type": "text", "text": text}]
            ),
            "none": (_template_alone(tokenizer), ""),
        }
        # The library takes 6 ms for each row; pictures of one size have all but the length in common.
        self._row_positions = lru_cache(64)(self._library_positions)
        self._captured: dict[int, torch.Tensor] = {}
        self._cut(layers)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        device: str,
        dtype: torch.dtype,
        layers: Sequence[int],
        text_modes: Sequence[str],
        revision: str | None = None,
        quantize: Quantize = "none",
        language: str | None = None,
    ) -> "VisionLanguageEncoder":
        """Load from a Qwen3-VL folder or hub id; `language` is a pipeline whose text encoder is grafted in."""
        from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

        model = Qwen3VLForConditionalGeneration.from_pretrained(
            path, revision=revision, dtype=dtype, use_safetensors=True
        )
        if language is not None:
            graft_text_encoder(model, language)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(path, revision=revision)
        encoder = cls(model, tokenizer, image_processor, layers=layers, text_modes=text_modes)
        quantize_weights(encoder.model, quantize)  # before the device has to hold more
        encoder.to(device)
        return encoder

    def _cut(self, layers: Sequence[int]) -> None:
        """Drop every block after the last wanted state and hook the ones that give a wanted state."""
        text = self.model.language_model
        total = len(text.layers)
        # hidden_states has total + 1 entries: the embeddings, then each block's output; the last one is normed.
        index_of = {layer: total + 1 + layer for layer in layers}
        for layer, index in index_of.items():
            if not 1 <= index <= total:
                raise ValueError(f"layer {layer} of a model with {total} blocks; allowed are -{total} to -1")
        text.layers = text.layers[: max(index_of.values())]
        if -1 not in index_of:
            text.norm = nn.Identity()
        for layer, index in index_of.items():
            module = text.norm if layer == -1 else text.layers[index - 1]
            module.register_forward_hook(partial(self._capture, layer))

    def _capture(self, layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        self._captured[layer] = output[0] if isinstance(output, tuple) else output

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What the device's time goes to."""
        return (self.model.visual, self.model.language_model)

    def to(self, device: str) -> None:
        """Move the model."""
        self.model.to(device)

    @torch.inference_mode()
    def encode(
        self, images: Sequence[Image.Image], captions: Sequence[str]
    ) -> list[VisionEncoding | SampleError]:
        """Read pictures.

        Args:
            images: RGB, of any sizes.
            captions: one per picture; used in text mode `caption` only.

        Returns:
            an encoding per picture, or why there is none.
        """
        problems = [special_token_in(self.tokenizer, caption) for caption in captions]
        sound = [index for index, problem in enumerate(problems) if not problem]
        encodings = iter(
            self._encode([images[index] for index in sound], [captions[index] for index in sound])
            if sound
            else []
        )
        return [
            SampleError(f"caption holds the special token {problem!r}; remove it")
            if problem
            else next(encodings)
            for problem in problems
        ]

    def _encode(self, images: Sequence[Image.Image], captions: Sequence[str]) -> list[VisionEncoding]:
        device = self.model.language_model.embed_tokens.weight.device
        patches, grid = self._patches(images, device)
        image_tokens = (grid.prod(-1) // self.image_processor.merge_size**2).tolist()
        tokens = [
            {mode: self._tokenize(mode, caption, count) for mode in self.text_modes}
            for caption, count in zip(captions, image_tokens, strict=True)
        ]
        # All of this before the vision tower, which looks at the device: until then that is at the batch before.
        inputs = self._inputs(tokens, grid, device)
        seen = self.model.get_image_features(
            patches.to(self.model.visual.dtype), inputs.grid, return_dict=True
        )
        return [
            VisionEncoding(
                states, {mode: torch.tensor(of.kinds, dtype=torch.uint8) for mode, of in by_mode.items()}
            )
            for states, by_mode in zip(self._forward(inputs, seen), tokens, strict=True)
        ]

    def _tokenize(self, mode: str, caption: str, image_tokens: int) -> _Tokens:
        """Token ids of a templated picture, its placeholder expanded to one token per merged patch."""
        prefix, suffix = self._templates[mode]
        text = caption if mode == "caption" else ""
        encoded = self.tokenizer(f"{prefix}{text}{suffix}", return_offsets_mapping=True)
        of_text = caption_kinds(encoded.offset_mapping, len(prefix), len(text))
        markers = self.tokenizer.convert_tokens_to_ids([VISION_START, VISION_END])
        ids, kinds = [], []
        for token, kind in zip(encoded.input_ids, of_text, strict=True):
            if token == self._image_id:
                ids += [token] * image_tokens
                kinds += [KIND_IMAGE] * image_tokens
            else:
                ids.append(token)
                kinds.append(KIND_MARKER if kind == KIND_TEMPLATE and token in markers else kind)
        return _Tokens(ids, kinds)

    def _inputs(
        self, tokens: Sequence[Mapping[str, _Tokens]], grid: torch.Tensor, device: torch.device
    ) -> _Inputs:
        """A batch for one pass of the language model, padded on the right; all text modes of a picture in one row.

        Attention is causal, so what modes begin with alike, the whole picture, has the same states in all of them.
        It stands in the row once; behind it each mode's own end, which does not see the other modes' ends.
        """
        packed = [_Packed.of(by_mode) for by_mode in tokens]
        longest = max(len(row.ids) for row in packed)
        ids = torch.full((len(packed), longest), self.tokenizer.pad_token_id or 0)
        positions = torch.zeros(3, len(packed), longest, dtype=torch.long)
        for index, row in enumerate(packed):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
            for mode, where in row.places.items():
                positions[:, index, where] = self._positions(tokens[index][mode], grid[index])
        return _Inputs(
            ids=onto(device, ids),
            positions=onto(device, positions),
            # One mode needs no mask: attention is causal, and padding on the right is seen by nobody. Without a mask
            # it runs in the fastest kernel.
            mask=_packed_mask(packed, longest, device) if len(self.text_modes) > 1 else None,
            grid=onto(device, grid),
            places=[{mode: onto(device, where) for mode, where in row.places.items()} for row in packed],
        )

    def _forward(self, inputs: _Inputs, seen: Any) -> list[dict[str, dict[int, torch.Tensor]]]:
        """One pass of the language model over a batch; states of each picture by text mode and layer."""
        self._captured.clear()
        self.model(
            input_ids=inputs.ids,
            attention_mask=inputs.mask,
            position_ids=inputs.positions,
            image_grid_thw=inputs.grid,
            mm_token_type_ids=(inputs.ids == self._image_id).int() * IMAGE_TOKEN_TYPE,
            mm_encoder_outputs={"image": seen},
            use_cache=False,
        )
        states = [
            {
                mode: {layer: self._captured[layer][index, where] for layer in self.layers}
                for mode, where in places.items()
            }
            for index, places in enumerate(inputs.places)
        ]
        self._captured.clear()
        return states

    def _positions(self, tokens: _Tokens, grid: torch.Tensor) -> torch.Tensor:
        """(3, V) rotary positions of one picture in one mode, as the library gives them."""
        count = len(tokens.ids)
        room = -(-count // POSITIONS_TOGETHER) * POSITIONS_TOGETHER
        return self._row_positions(tokens.ids.index(self._image_id), tuple(grid.tolist()), room)[:, :count]

    def _library_positions(self, start: int, grid: tuple[int, int, int], length: int) -> torch.Tensor:
        """(3, length) positions of a row of text whose token `start` begins a picture; text is counted on behind it."""
        types = torch.zeros(1, length, dtype=torch.int32)
        image_tokens = grid[0] * grid[1] * grid[2] // self.image_processor.merge_size**2
        types[:, start : start + image_tokens] = IMAGE_TOKEN_TYPE
        ids = torch.where(types == IMAGE_TOKEN_TYPE, self._image_id, 0)
        positions: torch.Tensor = self.model.get_rope_index(ids, types, image_grid_thw=torch.tensor([grid]))[
            0
        ]
        return positions[:, 0]


def _packed_mask(packed: Sequence[_Packed], longest: int, device: torch.device) -> torch.Tensor:
    """(B, 1, S, S) bool: each token of a row sees its own text mode up to itself; padding sees itself."""
    modes = torch.zeros(len(packed), len(packed[0].places), longest, dtype=torch.bool)
    for of_row, row in zip(modes, packed, strict=True):
        for of_mode, where in zip(of_row, row.places.values(), strict=True):
            of_mode[where] = True
    modes = onto(device, modes)
    together = (modes[:, :, :, None] & modes[:, :, None]).any(1)
    return (together.tril() | torch.eye(longest, dtype=torch.bool, device=device))[:, None]


def _template_alone(tokenizer: Any) -> str:
    """The chat template around a picture and nothing else."""
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}]}], tokenize=False, add_generation_prompt=True
        )
    )


def pooled(encoding: VisionEncoding, vl_tokens: str) -> VisionEncoding:
    """Hidden states as a dataset keeps them.

    Args:
        encoding: of one picture.
        vl_tokens: `all`, or `pooled:N` to average each kind of token down to at most N.
    """
    if vl_tokens == "all":
        return encoding
    length = int(vl_tokens.removeprefix("pooled:"))
    states = {
        mode: {layer: pool_by_kind(state, encoding.kind[mode], length) for layer, state in by_layer.items()}
        for mode, by_layer in encoding.states.items()
    }
    kinds = {
        mode: pool_by_kind(kind[:, None].float(), kind, length)[:, 0].to(torch.uint8)
        for mode, kind in encoding.kind.items()
    }
    return VisionEncoding(states, kinds)


def pool_by_kind(state: torch.Tensor, kind: torch.Tensor, length: int) -> torch.Tensor:
    """Average neighbours of one kind until at most `length` of it are left.

    Args:
        state: (V, D).
        kind: (V,) uint8.
        length: most tokens of a kind.

    Returns:
        (V', D), kinds in the order of their number, tokens of a kind in order of position.
    """
    parts = []
    for number in range(len(KIND_NAMES)):
        rows = state[onto(state.device, torch.nonzero(kind == number)[:, 0])].float()
        if len(rows) > length:
            rows = torch.nn.functional.adaptive_avg_pool1d(rows.T[None], length)[0].T
        parts.append(rows)
    return torch.cat(parts).to(state.dtype)
