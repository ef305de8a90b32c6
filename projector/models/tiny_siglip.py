"""A tiny random SigLIP in the real classes, so that scoring runs where no weights are; its scores mean nothing."""

from pathlib import Path

from projector.models.tiny import drafted, tiny_tokenizer

WIDTH = 32
IMAGE_SIZE = 64  # pixels
RECIPE = 1  # counted up whenever the bytes made here change; part of the cache folder's name


def make_tiny_siglip(folder: Path, *, seed: int = 0) -> Path:
    """Make the model folder unless it is there.

    Args:
        folder: gets model, tokenizer and image processor, as `AutoModel.from_pretrained` reads them.
        seed: of the random weights.

    Returns:
        the folder. Safe when several processes ask at once: the folder appears whole or not at all.
    """
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    if folder.is_dir():
        return folder
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    with drafted(folder, seed) as draft:
        tokenizer = tiny_tokenizer()
        config = SiglipConfig(
            text_config={**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 64},
            vision_config={**tower, "image_size": IMAGE_SIZE, "patch_size": 16},
        )
        SiglipModel(config).eval().save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        SiglipImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            resample=2,
        ).save_pretrained(draft)
    return folder
