"""The miniature Qwen3-VL: starts from the text encoder's weights and learns to say what a picture shows.

Letters: B batch, P patches, S tokens of a sequence, D hidden size.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mini_models import make_reader
from PIL import Image
from scene_data import SceneData, scenes_of
from stepping import Learner
from torch import Tensor, nn
from torch.nn import functional as F

from projector.inference.patches import PatchMaker
from projector.inference.vision_encoder import IMAGE_PAD
from projector.models.tiny import save_reader_processors
from shards.scenes.captions import canonical
from shards.scenes.scene import ATTRIBUTES, Scene, attributes, numbered

PATCH = 8  # pixels
SIDE = 64
IMAGE_TOKENS = (SIDE // PATCH // 2) ** 2
DECODED = 1200  # pictures through the autoencoder, as generated ones have passed it
DECODED_SHARE = 0.3
LABELS = (
    "background",
    *(numbered(name, number) for number in (0, 1) for name in ATTRIBUTES if name != "background"),
)
HEAD_WEIGHT = 0.5  # of the loss on attributes beside that on words
BEFORE = "<|im_start|>user\n<|vision_start|>{pads}<|vision_end|><|im_end|>\n<|im_start|>assistant\n"


class AttributeHead(nn.Module):
    """Attributes from merged vision tokens; only training has it. Linear, so that the tokens say them plainly."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.ModuleList(nn.Linear(IMAGE_TOKENS * width, len(values_of(label))) for label in LABELS)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Logits by label of (B, tokens, D)."""
        return [layer(tokens.flatten(1)) for layer in self.out]


def values_of(label: str) -> tuple[str, ...]:
    """What an attribute may be."""
    return ATTRIBUTES[label.split(" ")[0]]


def labels_of(scene: Scene) -> list[int]:
    """Numbers of a scene's attributes; -100 for those of a second thing that is not there."""
    found = attributes(scene)
    return [values_of(label).index(found[label]) if label in found else -100 for label in LABELS]


def patches_of(pictures: Tensor) -> Tensor:
    """(B * P, C * 2 * patch * patch) float32 patches of (B, C, H, W) uint8 pictures, as `PatchMaker` cuts them."""
    batch, channels, height, width = pictures.shape
    rows, columns = height // PATCH // 2, width // PATCH // 2
    x = pictures.float() / 127.5 - 1
    x = x.view(batch, channels, rows, 2, PATCH, columns, 2, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    x = x.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)  # a picture is two equal frames
    return x.reshape(batch * 4 * rows * columns, -1)


def train_reader(
    output: Path,
    tokenizer: Any,
    data: SceneData,
    device: str,
    seconds: float,
    size: int,
    start: Path | None = None,
) -> None:
    """Train the model, from earlier weights where there are some, and save it as a Qwen3-VL folder."""
    from diffusers import AutoencoderKL
    from transformers import AutoModelForCausalLM, Qwen2VLImageProcessorPil

    vae = AutoencoderKL.from_pretrained(output / "image" / "vae", torch_dtype=torch.float32).to(device)
    text = AutoModelForCausalLM.from_pretrained(output / "image" / "text_encoder", dtype=torch.float32)
    model = _model(tokenizer, text, start).to(device)
    head = AttributeHead(text.config.hidden_size).to(device)
    draft = output / ".vl"
    save_reader_processors(draft, tokenizer, patch_size=PATCH, smallest=SIDE * SIDE)
    _check_patches(Qwen2VLImageProcessorPil.from_pretrained(draft), data.pictures[:2])
    scenes = scenes_of(data)
    ids, answer = (tensor.to(device) for tensor in _words(tokenizer, scenes))
    labels = torch.tensor([labels_of(scene) for scene in scenes], device=device)
    language = list(model.model.language_model.parameters())
    matrices = [
        weight
        for name, weight in model.model.visual.named_parameters()
        if weight.dim() == 2 and "pos_embed" not in name
    ]
    learner = Learner(
        _loss(model, head, ids[:1]), [model, head], 3e-3, matrices=matrices, slow=language, graphs=False
    )
    learner.run(seconds, _batches(vae, data.pictures.to(device), ids, answer, labels, size), "reader")
    print(f"drift from the text encoder: {drift(learner.average, text):.3f}", flush=True)
    learner.average.to("cpu", torch.bfloat16).save_pretrained(draft, safe_serialization=True)
    draft.rename(output / "vl")


def _model(tokenizer: Any, text: Any, start: Path | None) -> Any:
    """The model to train: the text encoder as its language model, its vision tower new or from earlier weights."""
    from transformers import Qwen3VLForConditionalGeneration

    model = make_reader(tokenizer, text)
    if start is not None:
        earlier = Qwen3VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
        model.model.visual.load_state_dict(earlier.model.visual.state_dict())
    return model


def _loss(model: Any, head: AttributeHead, ids: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """Of a batch: the words of the captions, and the attributes in the vision tokens.

    Args:
        model: learns to say the words.
        head: reads the attributes from the model's merged vision tokens.
        ids: (1, S) tokens of any one picture and caption; the picture's stand alike in all.
    """
    device = ids.device
    grid = torch.tensor([[1, SIDE // PATCH, SIDE // PATCH]], device=device)
    is_image = (ids == model.config.image_token_id).int()
    positions, _ = model.model.get_rope_index(ids.cpu(), is_image.cpu(), image_grid_thw=grid.cpu())
    positions = positions.to(device)
    seen: list[Tensor] = []
    model.model.visual.merger.register_forward_hook(lambda _module, _args, out: seen.append(out))

    def loss(batch: dict[str, Tensor]) -> Tensor:
        seen.clear()
        count = len(batch["ids"])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(
                input_ids=batch["ids"],
                pixel_values=batch["patches"],
                image_grid_thw=grid.expand(count, -1),
                mm_token_type_ids=is_image.expand(count, -1),
                position_ids=positions.expand(-1, count, -1),
                use_cache=False,
            ).logits
            guesses = head(seen[0].view(count, IMAGE_TOKENS, -1))
        wanted = torch.where(batch["answer"], batch["ids"], -100)[:, 1:]
        words = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted.flatten())
        read = torch.stack(
            [
                F.cross_entropy(guess.float(), label, ignore_index=-100)
                for guess, label in zip(guesses, batch["labels"].T, strict=True)
            ]
        )
        return words + HEAD_WEIGHT * read.mean()

    return loss


def _batches(
    vae: Any, pictures: Tensor, ids: Tensor, answer: Tensor, labels: Tensor, size: int
) -> Callable[[], dict[str, Tensor]]:
    """Random scenes, the first ones of each batch as they come out of the autoencoder."""
    through = _decoded(vae, pictures[:DECODED])
    passed = round(DECODED_SHARE * size)

    def batches() -> dict[str, Tensor]:
        chosen = torch.randint(len(ids), (size,), device=ids.device)
        chosen[:passed] %= len(through)
        shown = torch.cat([through[chosen[:passed]], pictures[chosen[passed:]]])
        return {
            "ids": ids[chosen],
            "answer": answer[chosen],
            "labels": labels[chosen],
            "patches": patches_of(shown),
        }

    return batches


def drift(model: Any, text: Any) -> float:
    """How far the language model is from the text encoder: |difference| / |weights| over all blocks."""
    ours = dict(text.model.named_parameters())
    pairs = [
        (weight.detach().cpu().float(), ours[name].float())
        for name, weight in model.model.language_model.named_parameters()
        if name.startswith("layers.")
    ]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    return (apart / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def _words(tokenizer: Any, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """(N, S) tokens of a picture and its canonical caption, and (N, S) bool where the caption is."""
    before = tokenizer(BEFORE.format(pads=IMAGE_PAD * IMAGE_TOKENS)).input_ids
    answers = tokenizer([f"{canonical(scene)}<|im_end|>" for scene in scenes]).input_ids
    longest = len(before) + max(map(len, answers))
    ids = torch.full((len(scenes), longest), tokenizer.pad_token_id)
    answer = torch.zeros(len(scenes), longest, dtype=torch.bool)
    for row, words in enumerate(answers):
        ids[row, : len(before)] = torch.tensor(before)
        ids[row, len(before) : len(before) + len(words)] = torch.tensor(words)
        answer[row, len(before) : len(before) + len(words)] = True
    return ids, answer


@torch.no_grad()
def _decoded(vae: Any, pictures: Tensor) -> Tensor:
    """Pictures through the autoencoder, (N, 3, H, W) uint8."""
    parts = []
    for part in pictures.split(64):
        latents = vae.encode(part.float() / 127.5 - 1).latent_dist.mode()
        parts.append(((vae.decode(latents).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def _check_patches(processor: Any, pictures: Tensor) -> None:
    """Training must see pictures as the product's loading path cuts them."""
    images = [Image.fromarray(np.moveaxis(picture.numpy(), 0, -1)) for picture in pictures]
    patches, _ = PatchMaker(processor)(images, "cpu")
    torch.testing.assert_close(patches_of(pictures), patches, rtol=0, atol=1e-6)
