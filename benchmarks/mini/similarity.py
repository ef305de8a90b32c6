"""The miniature SigLIP: learns which caption, in any wording, goes with which picture.

Letters: B batch, S tokens of a caption, E width of embeddings.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scene_data import SceneData, scenes_of
from stepping import Learner, matrices_of, save
from torch import Tensor

from shards.scenes.captions import canonical, varied

WIDTH = 40
SIDE, PATCH = 64, 8  # pixels
TOKENS = 64  # of a caption, as every SigLIP has them; what is longer is cut off
WORDINGS = 4  # of each scene


def make_similarity(tokenizer: Any) -> Any:
    """`SiglipModel` with a tower of three blocks for pictures and one of one block for words."""
    from transformers import SiglipConfig, SiglipModel

    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    model = SiglipModel(
        SiglipConfig(
            text_config={
                **tower,
                "num_hidden_layers": 1,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": TOKENS,
                "projection_size": WIDTH,
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
            },
            vision_config={**tower, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": PATCH},
        )
    )
    with (
        torch.no_grad()
    ):  # where SigLIP's own training begins: Zhai et al., 2023, https://arxiv.org/abs/2303.15343
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model


def train_similarity(
    output: Path, tokenizer: Any, data: SceneData, device: str, seconds: float, size: int
) -> None:
    """Train the model with the sigmoid loss and save it with its tokenizer and image processor."""
    from transformers import SiglipImageProcessorPil

    model = make_similarity(tokenizer).to(device)
    words = _words(tokenizer, data).to(device)
    pictures = data.pictures.to(device)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = model(
            input_ids=batch["ids"], pixel_values=batch["pictures"].float() / 127.5 - 1, return_loss=True
        ).loss
        return found

    def batches() -> dict[str, Tensor]:
        chosen = torch.randint(len(words), (size,), device=device)
        wording = torch.randint(WORDINGS, (size,), device=device)
        return {"ids": words[chosen, wording], "pictures": pictures[chosen]}

    blocks = [model.text_model.encoder, model.vision_model.encoder]
    matrices = [weight for block in blocks for weight in matrices_of(block)]
    learner = Learner(loss, [model], 3e-3, matrices=matrices, graphs=False)
    learner.run(seconds, batches, "similarity")
    folder = output / "siglip"
    draft = folder.with_name(".siglip")
    tokenizer.save_pretrained(draft)
    SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2
    ).save_pretrained(draft)
    save(learner.average, folder)


def _words(tokenizer: Any, data: SceneData) -> Tensor:
    """(N, WORDINGS, TOKENS) ids, in lower case and padded as the product's scorer does it."""
    generator = np.random.default_rng(3)
    captions = [
        caption.lower()
        for scene in scenes_of(data)
        for caption in (canonical(scene), *(varied(scene, generator) for _ in range(WORDINGS - 1)))
    ]
    ids = tokenizer(
        captions,
        padding="max_length",
        padding_side="right",
        max_length=TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids.view(-1, WORDINGS, TOKENS)
