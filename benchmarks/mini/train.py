"""Train the miniature models: words, then pictures of scenes from them.

    python benchmarks/mini/train.py --output runs/mini --minutes 3 --device cuda       one GPU
    python benchmarks/mini/train.py --output runs/mini --minutes 40 --device cpu       two cores
    python benchmarks/mini/train.py --output runs/mini --only scores                   a stage by itself

Stages: `text` and `decoder` side by side, then `transformer` and `reader`, then `similarity`, then `scores`. Each ends
with its folder under the output in the layout of the real models, so a run that is cut short goes on with what is
missing.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mini_models import make_decoder, make_text_encoder
from picture_model import encoded, train_transformer
from reader import train_reader
from safetensors.torch import load_file, save_file
from scene_data import ANSWER, SceneData, make_data, scene_tokenizer
from similarity import train_similarity
from stepping import Learner, matrices_of, save
from torch import Tensor
from torch.nn import functional as F

SHARES = {
    "text": 0.15,
    "decoder": 0.33,
    "transformer": 0.67,
    "reader": 0.3,
    "similarity": 0.2,
}  # of the minutes; the first four in two pairs side by side
BATCH = {
    "cuda": {"text": 512, "decoder": 256, "transformer": 1024, "reader": 512, "similarity": 512},
    "cpu": {"text": 32, "decoder": 8, "transformer": 32, "reader": 24, "similarity": 128},
}
SCENES = {"cuda": 50_000, "cpu": 12_000}
ANSWER_LENGTHS, ANSWER_SHARES = (48, 64, ANSWER), (0.25, 0.5, 0.25)  # tokens of captions with answers
CAPTION_WEIGHT = 0.1  # of a caption's tokens, which are chance to the most part, beside its answer's
NOISE = 0.1  # on latents while the decoder learns


def main(words: list[str]) -> None:
    """Run the stages that are missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40.0, help="of training, all stages together")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scenes", type=int, help="that are drawn and worded to train on")
    parser.add_argument(
        "--start",
        type=Path,
        help="folder of earlier weights that text, transformer and the reader's vision tower go on from",
    )
    parser.add_argument(
        "--only", choices=("text", "decoder", "transformer", "reader", "similarity", "scores")
    )
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
    side_by_side(options, words, {"similarity": options.output / "siglip"})
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
    from transformers import AutoModelForCausalLM

    device, size = options.device, BATCH[options.device]["text"]
    model = make_text_encoder(tokenizer_of(options))
    if options.start:
        earlier = AutoModelForCausalLM.from_pretrained(
            options.start / "image" / "text_encoder", dtype=torch.float32
        )
        model.load_state_dict(earlier.state_dict())
    model.to(device)
    tokens = data.answers.flatten(0, 1).to(device)
    begins, lengths = (each.flatten().to(device) for each in (data.prompt_lengths, data.answer_lengths))
    by_length = [torch.nonzero(lengths <= length).flatten() for length in ANSWER_LENGTHS]

    def loss(batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=batch["ids"], use_cache=False).logits
        errors = F.cross_entropy(
            logits[:, :-1].transpose(1, 2).float(), batch["ids"][:, 1:], reduction="none"
        )
        weights = batch["weights"][:, 1:]
        return (errors * weights).sum() / weights.sum()

    def batches() -> dict[str, Tensor]:
        kind = int(torch.multinomial(torch.tensor(ANSWER_SHARES), 1))
        length = ANSWER_LENGTHS[kind]
        chosen = by_length[kind][torch.randint(len(by_length[kind]), (size * 64 // length,), device=device)]
        ids = tokens[chosen, :length]
        places = torch.arange(length, device=device)
        weights = torch.where(places < begins[chosen][:, None], CAPTION_WEIGHT, 1.0)
        return {"ids": ids, "weights": weights * (places < lengths[chosen][:, None])}

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


def train_pictures(options: argparse.Namespace, data: SceneData) -> None:
    """The transformer learns to draw scenes."""
    seconds = 60 * options.minutes * SHARES["transformer"]
    train_transformer(options, data, BATCH[options.device]["transformer"], seconds)


def train_vl(options: argparse.Namespace, data: SceneData) -> None:
    """The vision-language model learns to say what a picture shows."""
    seconds, size = 60 * options.minutes * SHARES["reader"], BATCH[options.device]["reader"]
    start = options.start / "vl" if options.start else None
    train_reader(options.output, tokenizer_of(options), data, options.device, seconds, size, start)


def train_siglip(options: argparse.Namespace, data: SceneData) -> None:
    """The SigLIP learns which caption goes with which picture."""
    seconds, size = 60 * options.minutes * SHARES["similarity"], BATCH[options.device]["similarity"]
    train_similarity(options.output, tokenizer_of(options), data, options.device, seconds, size)


STAGES = {
    "text": train_text,
    "decoder": train_decoder,
    "transformer": train_pictures,
    "reader": train_vl,
    "similarity": train_siglip,
}

if __name__ == "__main__":
    main(sys.argv[1:])
