"""The control to beat: Qwen3-VL writes a caption of the picture, and the text encoder encodes that.

Words are the obvious bridge between the two models. A projector that does not beat them is not needed.
"""

from collections.abc import Iterator
from itertools import dropwhile, islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from projector.inference.text_encoder import SampleError, TextEncoder
from projector.inference.vision_encoder import IMAGE_TOKEN_TYPE
from projector.models.int8 import Quantize, quantize_weights
from projector.models.resolve import ModelSources
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_samples
from shards.errors import CorruptShardError
from shards.format.sample import KIND_CAPTION, Sample, picture_of

INSTRUCTION = "Describe this image in one paragraph, as a prompt that an image generator could make it from."
NEW_TOKENS = 160  # about 120 words, the longest prompts of the built-in space
NOTHING = "an image"
BATCH = 4  # samples read ahead


class Captioner:
    """Qwen3-VL with its head, writing.

    Args:
        model: `Qwen3VLForConditionalGeneration`.
        tokenizer: with the model's chat template.
        image_processor: `Qwen2VLImageProcessorPil`.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        self.model, self.tokenizer, self.image_processor = model.eval(), tokenizer, image_processor
        content = [{"type": "image"}, {"type": "text", "text": INSTRUCTION}]
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        self._prompt: list[int] = tokenizer(prompt).input_ids

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        device: str,
        dtype: torch.dtype,
        revision: str | None = None,
        quantize: Quantize = "none",
    ) -> "Captioner":
        """Load from a Qwen3-VL folder or hub id."""
        from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

        model = Qwen3VLForConditionalGeneration.from_pretrained(
            path, revision=revision, dtype=dtype, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        quantize_weights(model.model, quantize)
        return cls(
            model.to(device), tokenizer, Qwen2VLImageProcessorPil.from_pretrained(path, revision=revision)
        )

    @torch.inference_mode()
    def write(self, image: Image.Image) -> str:
        """A caption of an RGB picture, greedily decoded."""
        device = self.model.device
        pixels = self.image_processor(images=[image], return_tensors="pt")
        grid = pixels["image_grid_thw"].to(device)
        count = int(grid.prod()) // self.image_processor.merge_size**2
        picture = self.model.config.image_token_id
        ids = [[token] * (count if token == picture else 1) for token in self._prompt]
        prompt = torch.tensor([[token for part in ids for token in part]], device=device)
        written = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            pixel_values=pixels["pixel_values"].to(device, self.model.dtype),
            image_grid_thw=grid,
            mm_token_type_ids=(prompt == picture).int() * IMAGE_TOKEN_TYPE,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        return str(self.tokenizer.decode(written[0, prompt.shape[1] :], skip_special_tokens=True)).strip()


class WrittenCaptions:
    """What the text encoder makes of the captions that Qwen3-VL writes of a dataset's pictures.

    Args:
        captioner: writes.
        encoder: encodes.
        dataset: holds the pictures.
        split: of the samples that will be asked for.
    """

    def __init__(self, captioner: Captioner, encoder: TextEncoder, dataset: Dataset, split: str) -> None:
        self._captioner, self._encoder = captioner, encoder
        self._root = dataset.storage.root
        self._samples: Iterator[Sample] = read_samples(dataset, split=split, tensors=())
        self._ready: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls, models: ModelSources, dataset: Dataset, split: str, *, device: str, dtype: torch.dtype
    ) -> "WrittenCaptions":
        """Load both models, their weights rounded as the dataset's were."""
        quantize = dataset.settings.get("quantize", "none")
        return cls(
            Captioner.from_pretrained(models.vl.here(), device=device, dtype=dtype, quantize=quantize),
            TextEncoder.from_pretrained(models.image.here(), device=device, dtype=dtype, quantize=quantize),
            dataset,
            split,
        )

    def __call__(self, key: str) -> Tensor:
        """(T, D) tokens of the written caption of a sample; samples are asked for in the order of the dataset.

        Raises:
            CorruptShardError: the dataset has no such sample after those asked for before.
        """
        if key not in self._ready:
            here = list(islice(dropwhile(lambda sample: sample.key != key, self._samples), BATCH))
            if not here:
                raise CorruptShardError(f"{self._root}: sample {key} is not there, or not in its order")
            self._ready = {
                sample.key: tokens for sample, tokens in zip(here, self._encode(here), strict=True)
            }
        return self._ready[key]

    def _encode(self, samples: list[Sample]) -> list[Tensor]:
        captions = [self._captioner.write(picture_of(sample)) for sample in samples]
        return [self._tokens(caption) for caption in captions]

    def _tokens(self, caption: str) -> Tensor:
        """Of a written caption; one that is empty or holds a special token says nothing."""
        for words in (caption, NOTHING):
            encoded = self._encoder.encode([words])[0] if words else None
            if encoded is not None and not isinstance(encoded, SampleError):
                return encoded.embeddings[(encoded.kind == KIND_CAPTION).to(encoded.embeddings.device)].cpu()
        raise AssertionError("the text encoder refuses plain words")
