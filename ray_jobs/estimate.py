"""How much a build makes: counts from its plan, bytes from its settings."""

from ray_jobs.options import BuildOptions
from shards.plan import Plan

VL_PIXELS_PER_TOKEN = 32 * 32  # Qwen3-VL: patch 16, 2 x 2 patches merged into one token
HIDDEN_SIZE = 2560  # Qwen3-4B and Qwen3-VL-4B
TEMPLATE_TOKENS = 20  # chat template around image and caption, about
CAPTION_TOKENS = 55  # the built-in prompts have 42 words on average
PNG_BYTES_PER_PIXEL = 1.5  # generated photographs; flat graphics take less
REQUESTS_PER_SHARD = 3  # parquet, tar, commit; a multipart upload of the tar adds its parts


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
    states = 2 * hidden_size * (CAPTION_TOKENS + TEMPLATE_TOKENS + vl_tokens * len(build.layers))
    return states + int(build.height * build.width * PNG_BYTES_PER_PIXEL)


def estimated(made: Plan, build: BuildOptions) -> dict[str, int]:
    """Counts and sizes of a plan.

    Args:
        made: the plan.
        build: its settings.

    Returns:
        samples, train and val samples, shards, bytes (estimated for the 4B models), put requests.
    """
    per_sample = bytes_per_sample(build)
    held_out = sum(len(shard.samples) for shard in made.shards if shard.split == "val")
    return {
        "samples": len(made),
        "train_samples": len(made) - held_out,
        "val_samples": held_out,
        "shards": len(made.shards),
        "bytes": per_sample * len(made),
        "bytes_per_full_shard": per_sample * build.samples_per_shard,
        "put_requests": REQUESTS_PER_SHARD * len(made.shards) + 3,
    }
