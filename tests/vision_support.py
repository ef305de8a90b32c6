"""Pictures for vision tests, and the library's own whole forward pass to compare with."""

import numpy as np
import torch
from PIL import Image


def pictures(count, size=(288, 256)):
    random = np.random.default_rng(1)
    small = random.integers(0, 255, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(picture).resize(size) for picture in small]


def full_forward(tiny, image, caption):
    """hidden_states of the library's whole model."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

    path = str(tiny / "vl")
    model = Qwen3VLForConditionalGeneration.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": caption}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    pixels = Qwen2VLImageProcessorPil.from_pretrained(path)(images=[image], return_tensors="pt")
    pads = "<|image_pad|>" * (int(pixels["image_grid_thw"].prod()) // 4)
    ids = tokenizer(text.replace("<|image_pad|>", pads), return_tensors="pt").input_ids
    with torch.no_grad():
        output = model(
            input_ids=ids,
            pixel_values=pixels["pixel_values"],
            image_grid_thw=pixels["image_grid_thw"],
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            output_hidden_states=True,
        )
    return [states[0] for states in output.hidden_states]
