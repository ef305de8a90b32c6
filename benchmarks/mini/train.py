"""Train the miniature models: words, then pictures of scenes from them.

    python benchmarks/mini/train.py --output runs/mini --minutes 3 --device cuda       one GPU
    python benchmarks/mini/train.py --output runs/mini --minutes 40 --device cpu       two cores
    python benchmarks/mini/train.py --output runs/mini --only scores                   a stage by itself

Stages: `text` and `decoder` side by side, then `transformer` and `reader`, then `scores`. Each ends with its folder
under the output in the layout of the real models, so a run that is cut short goes on with what is missing.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from attribute_heads import NOTHING, AttributeHeads, labels_of
from mini_models import TRANSFORMER_WIDTH, make_decoder, make_text_encoder, make_transformer
from reader import train_reader
from safetensors.torch import load_file, save_file
from scene_data import ANSWER, ROWS, SceneData, make_data, scene_tokenizer, scenes_of
from stepping import Learner
from torch import Tensor, nn
from torch.nn import functional as F

from projector.models.dense_transformer import dense_velocities

SHIFT = 3.0
SHARES = {
    "text": 0.15,
    "decoder": 0.33,
    "transformer": 0.67,
    "reader": 0.3,
}  # of the minutes, in two pairs side by side
BATCH = {
    "cuda": {"text": 512, "decoder": 256, "transformer": 1024, "reader": 512},
    "cpu": {"text": 32, "decoder": 8, "transformer": 32, "reader": 24},
}
SCENES = {"cuda": 50_000, "cpu": 12_000}
CONDITIONED = {"cuda": 50_000, "cpu": 12_000}  # scenes whose wordings the transformer learns from
LENGTHS, LENGTH_SHARES = (32, 64, ROWS), (0.4, 0.5, 0.1)  # rows that conditionings are padded to
PICTURE_ROWS = 32  # 16 picture tokens, padded to the transformer's multiple
WHOLE_WORDINGS = 4  # of a scene's wordings, those that name every attribute
HALFWAY, HEADS_WEIGHT = 2, 0.2  # the block that attribute heads read, and their loss beside the velocities'
ANSWER_LENGTHS, ANSWER_SHARES = (48, 64, ANSWER), (0.25, 0.5, 0.25)  # tokens of captions with answers
NOISE = 0.1  # on latents while the decoder learns


def main(words: list[str]) -> None:
    """Run the stages that are missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40.0, help="of training, all stages together")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scenes", type=int, help="that are drawn and worded to train on")
    parser.add_argument(
        "--start", type=Path, help="folder of earlier weights that transformer and reader go on from"
    )
    parser.add_argument("--only", choices=("text", "decoder", "transformer", "reader", "scores"))
    options = parser.parse_args(words)
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    if options.only == "scores":
        from scores import scores

        print(json.dumps(scores(options.output, options.device), indent=1))
    elif options.only:
        STAGES[options.only](options, data_of(options))
    else:
        whole(options, words)


def whole(options: argparse.Namespace, words: list[str]) -> None:
    """All stages, those that need nothing of each other side by side."""
    begun = time.monotonic()
    data_of(options)
    print(f"data: {time.monotonic() - begun:.0f} s", flush=True)
    image = options.output / "image"
    side_by_side(options, words, {"text": image / "text_encoder", "decoder": image / "vae"})
    side_by_side(options, words, {"transformer": image / "transformer", "reader": options.output / "vl"})
    from scores import scores

    print(json.dumps(scores(options.output, options.device), indent=1), flush=True)


def side_by_side(options: argparse.Namespace, words: list[str], stages: dict[str, Path]) -> None:
    """Run the stages whose folder is missing, each in a process of its own."""
    running = [
        subprocess.Popen([sys.executable, __file__, *words, "--only", stage])
        for stage, folder in stages.items()
        if not (folder / "config.json").is_file()
    ]
    codes = [stage.wait() for stage in running]
    if any(codes):
        raise SystemExit("a stage failed; its error is above")


def data_of(options: argparse.Namespace) -> SceneData:
    """The training scenes, made once and kept beside the models."""
    path, count = options.output / "scenes.safetensors", options.scenes or SCENES[options.device]
    tokenizer_folder = options.output / "image" / "tokenizer"
    if not path.is_file():
        tokenizer = scene_tokenizer()
        tokenizer.save_pretrained(tokenizer_folder)
        data = make_data(tokenizer, count)
        save_file(dict(vars(data)), path)
    return SceneData(**load_file(path))


def tokenizer_of(options: argparse.Namespace) -> Any:
    """The tokenizer that goes with the scenes."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(options.output / "image" / "tokenizer")


def train_text(options: argparse.Namespace, data: SceneData) -> None:
    """The text encoder learns to go on with a caption, and to say in fixed words what it says."""
    device, size = options.device, BATCH[options.device]["text"]
    model = make_text_encoder(tokenizer_of(options)).to(device)
    tokens = data.answers.flatten(0, 1).to(device)
    lengths = data.answer_lengths.flatten().to(device)
    places = [torch.nonzero(lengths <= length).flatten() for length in ANSWER_LENGTHS]

    def loss(batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=batch["ids"], use_cache=False).logits
        wanted = torch.where(batch["inside"], batch["ids"], -100)[:, 1:]
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted.flatten())

    def batches() -> dict[str, Tensor]:
        kind = int(torch.multinomial(torch.tensor(ANSWER_SHARES), 1))
        length = ANSWER_LENGTHS[kind]
        chosen = places[kind][torch.randint(len(places[kind]), (size * 64 // length,), device=device)]
        ids = tokens[chosen, :length]
        inside = torch.arange(ids.shape[1], device=device) < lengths[chosen][:, None]
        return {"ids": ids, "inside": inside}

    learner = Learner(loss, [model], 3e-3, matrices=matrices_of(model.model.layers), graphs=False)
    learner.run(60 * options.minutes * SHARES["text"], batches, "text")
    save(learner.average, options.output / "image" / "text_encoder")


def train_decoder(options: argparse.Namespace, data: SceneData) -> None:
    """The autoencoder learns to give scenes back, from latents with a little noise on them."""
    device, size = options.device, BATCH[options.device]["decoder"]
    vae = make_decoder().to(device)
    pictures = data.pictures.to(device)

    def loss(batch: dict[str, Tensor]) -> Tensor:
        wanted = batch["pictures"]
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            mean = vae.encoder(wanted).chunk(2, 1)[0].float()
            seen = vae.decoder(mean + NOISE * torch.randn_like(mean)).float()
        error = seen - wanted
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        colours = F.avg_pool2d(error, 4).abs().mean()
        return (
            error.abs().mean() + error.square().mean() + 0.5 * edges + colours + 1e-4 * mean.square().mean()
        )

    def batches() -> dict[str, Tensor]:
        chosen = torch.randint(len(pictures), (size,), device=device)
        return {"pictures": pictures[chosen].float() / 127.5 - 1}

    learner = Learner(loss, [vae], 2e-3, matrices=matrices_of(vae))
    learner.run(60 * options.minutes * SHARES["decoder"], batches, "decoder")
    vae = learner.average
    latents = encoded(vae, pictures[:4096])
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))
    save(vae, options.output / "image" / "vae")


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


def train_transformer(options: argparse.Namespace, data: SceneData) -> None:
    """The transformer learns the flow from noise to latents under the text encoder's conditionings."""
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import AutoModelForCausalLM

    device, size, image = options.device, BATCH[options.device]["transformer"], options.output / "image"
    vae = AutoencoderKL.from_pretrained(image / "vae").to(device)
    text = AutoModelForCausalLM.from_pretrained(image / "text_encoder", dtype=torch.float32).to(device)
    scenes = scenes_of(data)[: CONDITIONED[device]]
    data = SceneData(*(tensor[: CONDITIONED[device]] for tensor in vars(data).values()))
    kept = options.output / "encoded.safetensors"
    if not kept.is_file():
        latents = (
            encoded(vae, data.pictures.to(device)) - vae.config.shift_factor
        ) * vae.config.scaling_factor
        print(f"{len(latents)} pictures encoded", flush=True)
        save_file({"rows": conditionings(text, data, device), "latents": latents}, kept)
    rows, latents = (load_file(kept, device)[name] for name in ("rows", "latents"))
    lengths = data.prompt_lengths.flatten().to(device)
    transformer = make_transformer()
    if options.start:
        earlier = ZImageTransformer2DModel.from_pretrained(
            options.start / "image" / "transformer", torch_dtype=torch.float32
        )
        transformer.load_state_dict(earlier.state_dict())
    transformer.to(device)
    heads = AttributeHeads(transformer.layers[HALFWAY], TRANSFORMER_WIDTH).to(device)
    labels, shares = (tensor.to(device) for tensor in labels_of(scenes))
    places = [torch.nonzero(lengths <= length).flatten() for length in LENGTHS]
    wordings = data.prompts.shape[1]

    def loss(batch: dict[str, Tensor]) -> Tensor:
        clean = batch["latents"]
        noise, uniform = torch.randn_like(clean), torch.rand(len(clean), device=device)
        sigma = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            found = dense_velocities(transformer, noisy, 1 - sigma, batch["rows"], batch["exists"])
        error = (found.float() - (clean - noise)).square().mean()
        return error + HEADS_WEIGHT * heads(batch["labels"], batch["shares"])

    def batches() -> dict[str, Tensor]:
        kind = int(torch.multinomial(torch.tensor(LENGTH_SHARES), 1))
        length = LENGTHS[kind]
        count = size * (64 + PICTURE_ROWS) // (length + PICTURE_ROWS)
        chosen = places[kind][torch.randint(len(places[kind]), (count,), device=device)]
        exists = torch.arange(length, device=device) < lengths[chosen][:, None]
        said = (chosen % wordings < WHOLE_WORDINGS)[:, None]
        return {
            "latents": latents[chosen // wordings],
            "labels": torch.where(said, labels[chosen // wordings], NOTHING),
            "shares": shares[chosen // wordings],
            "rows": rows[chosen, :length].float(),
            "exists": exists,
        }

    blocks = nn.ModuleList([*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers])
    if device == "cpu":  # half of a step is small kernels, which the compiler joins
        torch._dynamo.config.recompile_limit = 64
        for block in (*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers):
            block.compile(dynamic=False)
    learner = Learner(loss, [transformer, heads], 1.5e-3, matrices=matrices_of(blocks))
    learner.run(60 * options.minutes * SHARES["transformer"], batches, "transformer")
    save(learner.average, image / "transformer")
    finish_pipeline(options)


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


def matrices_of(module: nn.Module) -> list[Tensor]:
    """The weights that Muon trains: matrices and convolutions, not those that see pixels."""
    return [
        weight
        for name, weight in module.named_parameters()
        if weight.dim() > 1 and weight.shape[1] > 3 and "adaLN" not in name and "conv_out" not in name
    ]


def save(model: Any, folder: Path) -> None:
    """Write weights in bfloat16, whole or not at all."""
    draft = folder.with_name(f".{folder.name}")
    model.to("cpu", torch.bfloat16).save_pretrained(draft, safe_serialization=True)
    draft.rename(folder)


def train_vl(options: argparse.Namespace, data: SceneData) -> None:
    """The vision-language model learns to say what a picture shows."""
    seconds, size = 60 * options.minutes * SHARES["reader"], BATCH[options.device]["reader"]
    start = options.start / "vl" if options.start else None
    train_reader(options.output, tokenizer_of(options), data, options.device, seconds, size, start)


STAGES = {"text": train_text, "decoder": train_decoder, "transformer": train_transformer, "reader": train_vl}

if __name__ == "__main__":
    main(sys.argv[1:])
