"""How well the miniature models draw: attributes read back from pixels, through the product's own loading path."""

import json
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image
from reader import BEFORE, IMAGE_TOKENS

from projector.comparison.scores import SiglipScorer
from projector.inference.image_generator import ImageGenerator
from projector.inference.patches import PatchMaker
from projector.inference.text_encoder import TextEncoder, TextEncoding
from projector.inference.vision_encoder import IMAGE_PAD
from shards.scenes.captions import attributes_named, canonical, varied
from shards.scenes.draw import draw_scene
from shards.scenes.read_back import score
from shards.scenes.scene import Scene, attributes, sample_scene

STEPS = 8
SCENES = 128
TOGETHER = 32
CAPTION_TOKENS = 60  # of a canonical caption of two things


def scores(folder: Path, device: str, *, count: int = SCENES) -> dict[str, Any]:
    """Attribute accuracy of reconstructions and of pictures from captions; writes scores.json and a contact sheet."""
    found: dict[str, Any] = {"scenes": count, "steps": STEPS, "megabytes": round(weight_megabytes(folder), 2)}
    image = str(folder / "image")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    text = TextEncoder.from_pretrained(image, device=device, dtype=dtype)
    images = ImageGenerator.from_pretrained(
        image, device=device, dtype=dtype, height=64, width=64, steps=STEPS, guidance=0.0
    )
    sheet: list[list[Image.Image]] = []
    for title, objects, split, say in (
        ("one object", 1, "test", varied),
        ("one object, canonical", 1, "test", None),
        ("one object, held out", 1, "held_out", varied),
        ("two objects", 2, "test", varied),
    ):
        generator = np.random.default_rng(7)
        scenes = [sample_scene(generator, objects, split) for _ in range(count)]
        captions = [say(scene, generator) if say else canonical(scene) for scene in scenes]
        if say is varied:
            found[f"decoder, {title}"] = accuracy(reconstructed(images, scenes), scenes)
            found[f"captions, {title}"] = named(written(folder / "vl", scenes, device), scenes)
            found[f"similarity, {title}"] = chosen_captions(folder / "siglip", scenes, captions, device)
        begun = time.perf_counter()
        made = pictures_of(text, images, captions)
        found[title] = accuracy(made, scenes) | {
            "ms_a_picture": round(1e3 * (time.perf_counter() - begun) / count, 1)
        }
        sheet.append([Image.fromarray(draw_scene(scene)) for scene in scenes[:12]])
        sheet.append([Image.fromarray(picture) for picture in made[:12]])
    pasted(sheet).save(folder / "sheet.png")
    (folder / "scores.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def accuracy(pictures: list[Any], scenes: list[Scene]) -> dict[str, float]:
    """Mean share of attributes right, whole and by attribute."""
    rows = [score(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
    by_name = {name: round(mean(row[name] for row in rows), 3) for name in rows[0]}
    return {"accuracy": round(mean(mean(row.values()) for row in rows), 4), **by_name}


def pictures_of(text: TextEncoder, images: ImageGenerator, captions: list[str]) -> list[Any]:
    """(64, 64, 3) uint8 pictures of captions."""
    encodings = [item for item in text.encode(captions) if isinstance(item, TextEncoding)]
    made: list[Any] = []
    for start in range(0, len(encodings), TOGETHER):
        part = encodings[start : start + TOGETHER]
        drawn = images.generate([item.embeddings for item in part], list(range(start, start + len(part))))
        made += [np.asarray(picture) for picture in drawn]
    return made


@torch.no_grad()
def written(vl: Path, scenes: list[Scene], device: str) -> list[str]:
    """What the reader says of drawings."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration.from_pretrained(vl, dtype=torch.float32).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(vl)
    patches, grid = PatchMaker(Qwen2VLImageProcessorPil.from_pretrained(vl))(
        [Image.fromarray(draw_scene(scene)) for scene in scenes], device
    )
    question = BEFORE.format(pads=IMAGE_PAD * IMAGE_TOKENS)
    ids = tokenizer([question] * len(scenes), return_tensors="pt").input_ids.to(device)
    said = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=patches,
        image_grid_thw=grid,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        max_new_tokens=CAPTION_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts: list[str] = tokenizer.batch_decode(said[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def named(captions: list[str], scenes: list[Scene]) -> float:
    """Mean share of scenes' attributes that captions name."""
    shares = []
    for caption, scene in zip(captions, scenes, strict=True):
        said = attributes_named(caption)
        shares.append(mean(said.get(name) == value for name, value in attributes(scene).items()))
    return round(mean(shares), 4)


def chosen_captions(siglip: Path, scenes: list[Scene], captions: list[str], device: str) -> float:
    """Share of drawings to which, of all these captions, their own is the most similar."""
    scorer = SiglipScorer.from_pretrained(str(siglip), device=device)
    pictures = scorer.embed_pictures([Image.fromarray(draw_scene(scene)) for scene in scenes])
    words = torch.stack([scorer.embed_text(caption) for caption in captions])
    found = (pictures @ words.T).argmax(1)
    return round(float((found == torch.arange(len(scenes))).float().mean()), 4)


@torch.no_grad()
def reconstructed(images: ImageGenerator, scenes: list[Scene]) -> list[Any]:
    """Scenes through the autoencoder and back."""
    vae = images.pipeline.vae
    pixels = torch.from_numpy(np.stack([draw_scene(scene) for scene in scenes])).permute(0, 3, 1, 2)
    latents = vae.encode((pixels.to(vae.device) / 127.5 - 1).to(vae.dtype)).latent_dist.mode()
    seen = vae.decode(latents, return_dict=False)[0].float()
    levels = ((seen + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return list(levels.permute(0, 2, 3, 1).cpu().numpy())


def weight_megabytes(folder: Path) -> float:
    """Of all weights under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6


def pasted(rows: list[list[Image.Image]]) -> Image.Image:
    """Pictures in rows on one sheet, doubled in size."""
    sheet = Image.new("RGB", (130 * len(rows[0]), 130 * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture.resize((128, 128), Image.Resampling.NEAREST), (130 * x + 1, 130 * y + 1))
    return sheet
