"""How much a build makes: counts from its plan, bytes from its settings."""

from ray_jobs.cli.run_options import BuildOptions
from shards.format.plan import Plan
from shards.format.splits import SPLITS
from shards.stores.s3 import requests_to_put

VL_PIXELS_PER_TOKEN = 32 * 32  # Qwen3-VL: patch 16, 2 x 2 patches merged into one token
HIDDEN_SIZE = 2560  # Qwen3-4B and Qwen3-VL-4B
TEMPLATE_TOKENS = 20  # chat template around image and caption, about
CAPTION_TOKENS = 55  # the built-in prompts have 42 words on average
LATENT_CHANNELS, LATENT_PIXELS = 16, 8  # of Z-Image's autoencoder; pixels along a latent's side
PNG_BYTES_PER_PIXEL = 1.5  # generated photographs; flat graphics take less
SMALL_OBJECTS = 2  # of a shard, beside the tar: parquet and commit, a request each
OBJECTS_OF_ITS_OWN = 3  # of a dataset: settings, plan, manifest


def bytes_per_sample(build: BuildOptions, hidden_size: int = HIDDEN_SIZE) -> int:
    """Bytes of one sample in its shard, about: bfloat16 states of text and picture, and the PNG.

    Args:
        build: image size, layers, text modes and pooling.
        hidden_size: D of the models.
    """
    image_tokens = build.height * build.width // VL_PIXELS_PER_TOKEN
    if build.vl_tokens != "all":
        image_tokens = min(image_tokens, int(build.vl_tokens.removeprefix("pooled:")))
    vl_tokens = sum(
        image_tokens + TEMPLATE_TOKENS + (CAPTION_TOKENS if mode == "caption" else 0)
        for mode in build.text_modes
    )
    read = vl_tokens * len(build.layers) * len(build.readers)
    states = 2 * hidden_size * (CAPTION_TOKENS + TEMPLATE_TOKENS + read)
    if build.latents:
        states += 2 * LATENT_CHANNELS * (build.height // LATENT_PIXELS) * (build.width // LATENT_PIXELS)
    return states + int(build.height * build.width * PNG_BYTES_PER_PIXEL)


def estimated(made: Plan, build: BuildOptions) -> dict[str, int]:
    """Counts and sizes of a plan.

    Args:
        made: the plan.
        build: its settings.

    Returns:
        samples, of those in each split, shards, bytes (estimated for the 4B models), requests to put it all into S3.
    """
    per_sample = bytes_per_sample(build)
    of_split = {
        split: sum(len(shard.samples) for shard in made.shards if shard.split == split) for split in SPLITS
    }
    return {
        "samples": len(made),
        **{f"{split}_samples": count for split, count in of_split.items()},
        "shards": len(made.shards),
        "bytes": per_sample * len(made),
        "bytes_per_full_shard": per_sample * build.samples_per_shard,
        "put_requests": OBJECTS_OF_ITS_OWN
        + sum(SMALL_OBJECTS + requests_to_put(per_sample * len(shard.samples)) for shard in made.shards),
    }
