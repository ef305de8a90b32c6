"""The miniature image model: pictures of scenes from the text encoder's conditionings.

Letters: N scenes, V wordings of each, B batch, D hidden size, C latent channels, h and w latent pixels.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from attribute_heads import NOTHING, AttributeHeads, labels_of
from mini_models import TRANSFORMER_WIDTH, make_transformer
from safetensors.torch import load_file, save_file
from scene_data import ROWS, SceneData, scenes_of
from stepping import Learner, matrices_of, save
from torch import Tensor, nn

from projector.inference.dense_transformer import dense_velocities
from shards.scenes.scene import Scene

SHIFT = 3.0
CONDITIONED = {"cuda": 50_000, "cpu": 12_000}  # scenes whose wordings the transformer learns from
LENGTHS, LENGTH_SHARES = (32, 64, ROWS), (0.4, 0.5, 0.1)  # rows that conditionings are padded to
PICTURE_ROWS = 32  # 16 picture tokens, padded to the transformer's multiple
WHOLE_WORDINGS = 4  # of a scene's wordings, those that name every attribute
WORDING_SHARES = (0.07, 0.23, 0.23, 0.23, 0.12, 0.12)  # the canonical one is soon learnt
HALFWAY, HEADS_WEIGHT = 2, 1.0  # the block that attribute heads read, and their loss beside the velocities'
HEADS_FROM = 0.8  # share of noise from which on the heads learn


@torch.no_grad()
def encoded(vae: Any, pictures: Tensor) -> Tensor:
    """(N, C, h, w) latents of (N, 3, H, W) uint8 pictures, as the autoencoder gives them."""
    return torch.cat(
        [vae.encoder(part.float() / 127.5 - 1).chunk(2, 1)[0] for part in pictures.split(64)]
    ).contiguous()


@torch.no_grad()
def conditionings(model: Any, data: SceneData, device: str) -> Tensor:
    """(N * V, ROWS, D) bfloat16 hidden_states[-2] of all wordings."""
    ids, lengths = data.prompts.flatten(0, 1), data.prompt_lengths.flatten()
    rows = torch.zeros(len(ids), ROWS, model.config.hidden_size, dtype=torch.bfloat16, device=device)
    for part in lengths.argsort().split(256):  # of like length: padding costs as much as words
        longest = int(lengths[part].max())
        rows[part.to(device), :longest] = (
            model(
                input_ids=ids[part, :longest].to(device),
                use_cache=False,
                output_hidden_states=True,
                logits_to_keep=1,
            )
            .hidden_states[-2]
            .to(torch.bfloat16)
        )
    return rows


def train_transformer(options: argparse.Namespace, data: SceneData, size: int, seconds: float) -> None:
    """The transformer learns the flow from noise to latents under the text encoder's conditionings.

    Args:
        options: output, device and start of the command.
        data: scenes to learn from.
        size: of a batch with conditionings of 64 rows.
        seconds: of training.
    """
    from diffusers import ZImageTransformer2DModel

    device, image = options.device, options.output / "image"
    scenes = scenes_of(data)[: CONDITIONED[device]]  # of all data: they are made anew by their number
    data = SceneData(*(tensor[: CONDITIONED[device]] for tensor in vars(data).values()))
    rows, latents = _inputs(options, data)
    transformer = make_transformer()
    if options.start:
        earlier = ZImageTransformer2DModel.from_pretrained(
            options.start / "image" / "transformer", torch_dtype=torch.float32
        )
        transformer.load_state_dict(earlier.state_dict())
    transformer.to(device)
    heads = AttributeHeads(transformer.layers[HALFWAY], TRANSFORMER_WIDTH).to(device)
    blocks = nn.ModuleList([*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers])
    if device == "cpu":  # half of a step is small kernels, which the compiler joins
        torch._dynamo.config.recompile_limit = 64
        for block in blocks:
            block.compile(dynamic=False)
    learner = Learner(
        _loss(transformer, heads, device), [transformer, heads], 1.5e-3, matrices=matrices_of(blocks)
    )
    learner.run(seconds, _batches(scenes, data, rows, latents, size), "transformer")
    save(learner.average, image / "transformer")
    finish_pipeline(options)


def _inputs(options: argparse.Namespace, data: SceneData) -> tuple[Tensor, Tensor]:
    """Conditionings and latents of the scenes; computed once and kept in the output."""
    from diffusers import AutoencoderKL
    from transformers import AutoModelForCausalLM

    device, image = options.device, options.output / "image"
    kept = options.output / "encoded.safetensors"
    if not kept.is_file():
        vae = AutoencoderKL.from_pretrained(image / "vae").to(device)
        text = AutoModelForCausalLM.from_pretrained(image / "text_encoder", dtype=torch.float32).to(device)
        latents = (
            encoded(vae, data.pictures.to(device)) - vae.config.shift_factor
        ) * vae.config.scaling_factor
        print(f"{len(latents)} pictures encoded", flush=True)
        save_file({"rows": conditionings(text, data, device), "latents": latents}, kept)
    held = load_file(kept, device)
    return held["rows"], held["latents"]


def _loss(transformer: Any, heads: AttributeHeads, device: str) -> Callable[[dict[str, Tensor]], Tensor]:
    """Of a batch: the velocities, and the attributes halfway through the transformer."""

    def loss(batch: dict[str, Tensor]) -> Tensor:
        clean = batch["latents"]
        noise, uniform = torch.randn_like(clean), torch.rand(len(clean), device=device)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            found = dense_velocities(transformer, noisy, 1 - sigma, batch["rows"], batch["exists"])
        error = (found.float() - (clean - noise)).square().mean()
        # Where the picture shows, heads would read it there.
        labels = torch.where(sigma[:, None] > HEADS_FROM, batch["labels"], NOTHING)
        return error + HEADS_WEIGHT * heads(labels, batch["shares"])

    return loss


def _batches(
    scenes: Sequence[Scene], data: SceneData, rows: Tensor, latents: Tensor, size: int
) -> Callable[[], dict[str, Tensor]]:
    """Random wordings of random scenes, those of a batch padded to one length.

    Args:
        scenes: N of them.
        data: their words.
        rows: (N * V, ROWS, D) their conditionings.
        latents: (N, C, h, w) their pictures.
        size: of a batch with conditionings of 64 rows.
    """
    device, wordings = rows.device, data.prompts.shape[1]
    lengths = data.prompt_lengths.flatten().to(device)
    labels, shares = (tensor.to(device) for tensor in labels_of(scenes))
    drawn_by = torch.tensor(WORDING_SHARES, device=device).repeat(len(scenes))
    odds = [torch.where(lengths <= length, drawn_by, 0.0) for length in LENGTHS]

    def batches() -> dict[str, Tensor]:
        kind = int(torch.multinomial(torch.tensor(LENGTH_SHARES), 1))
        length = LENGTHS[kind]
        count = size * (64 + PICTURE_ROWS) // (length + PICTURE_ROWS)
        chosen = torch.multinomial(odds[kind], count, replacement=True)
        exists = torch.arange(length, device=device) < lengths[chosen][:, None]
        said = (chosen % wordings < WHOLE_WORDINGS)[:, None]
        return {
            "latents": latents[chosen // wordings],
            "labels": torch.where(said, labels[chosen // wordings], NOTHING),
            "shares": shares[chosen // wordings],
            "rows": rows[chosen, :length].float(),
            "exists": exists,
        }

    return batches


def finish_pipeline(options: argparse.Namespace) -> None:
    """Write what a pipeline folder has beside its models."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    image = options.output / "image"
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT).save_pretrained(
        image / "scheduler"
    )
    index = {
        "_class_name": "ZImagePipeline",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (image / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
