"""Does a picture steer a picture? Projectors of every kind, judged by what the miniature model draws with them.

    python benchmarks/steering.py --models projector/models/mini --output benchmarks/results/steering.json

Pairs are made as `build` makes them: a varied caption of a scene, its conditioning, the picture from that very
conditioning, the picture read back. Each projector is trained by the product's own loop, with three seeds. Then each
held-out reference is drawn again from the projector's conditioning alone, and together with a prompt that names
attributes of another scene. Attributes are read back from pixels.

Reported: share of the reference's attributes in a picture without a prompt (`accuracy`); with a prompt, share of the
prompt's attributes where the two differ (`adherence`) and of the reference's others (`fidelity`). Intervals are 95%,
from a bootstrap over references, all seeds of a reference together.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from projector.data.pairs import Conditioning, Pair, PairPicture, PairSource, in_memory
from projector.data.template import Template, WholeSample, find_template, token_rms
from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import TextEncoder, TextEncoding
from projector.inference.vision_encoder import VisionEncoding, VisionLanguageEncoder
from projector.network.projector import Projector
from projector.options import TrainOptions
from projector.steering.modes import DIALLED, Mode, ReferenceRows, conditionings, projected
from projector.training.loop import train
from shards.format.sample import KIND_CAPTION, KIND_IMAGE, as_png
from shards.scenes.captions import partial, varied
from shards.scenes.read_back import read_scene
from shards.scenes.scene import Scene, attributes, sample_scene

SIDE, STEPS, LAYER = 64, 8, -2
TOGETHER = 50
RESAMPLES = 1000
# What the prompt names: much of the layout, or two colours.
TESTS = {"A": ("shape", "place", "size"), "B": ("colour", "background")}
DIALS = (0.3, 0.5, 0.7)
ARCHS = ("linear", "mlp", "attention")

# What a picture is drawn from; under guidance with a second conditioning.
Given = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, eq=False)
class Made:
    """One scene with its caption, its conditioning, and what the reader saw of the picture made from it."""

    scene: Scene
    caption: str
    text: TextEncoding
    vl: Tensor
    """(V, D) image tokens."""
    graft: Tensor
    """(V, D) image tokens as the text encoder reads them in Qwen3-VL's place."""
    seed: int
    picture: Image.Image


class World:
    """The miniature models and what they make."""

    def __init__(self, folder: Path, objects: int) -> None:
        image = str(folder / "image")
        self.objects = objects
        self.text = TextEncoder.from_pretrained(image, device="cpu", dtype=torch.float32)
        self.images = ImageGenerator.from_pretrained(
            image, device="cpu", dtype=torch.float32, height=SIDE, width=SIDE, steps=STEPS, guidance=0.0
        )
        self.reader, self.graft = (
            VisionLanguageEncoder.from_pretrained(
                str(folder / "vl"),
                device="cpu",
                dtype=torch.float32,
                layers=[LAYER],
                text_modes=["none"],
                language=language,
            )
            for language in (None, image)
        )

    def encode(self, captions: Sequence[str]) -> list[TextEncoding]:
        """Conditionings of captions."""
        return [item for item in self.text.encode(list(captions)) if isinstance(item, TextEncoding)]

    def draw(self, given: Sequence[Given], seeds: Sequence[int], weight: float = 1.0) -> list[Any]:
        """Pictures; all of them or none with a second conditioning, whose weight is given."""
        found: list[Any] = []
        for start in range(0, len(seeds), TOGETHER):
            part = slice(start, start + TOGETHER)
            second = [other for _, other in given[part] if other is not None]
            found += self.images.generate(
                [one for one, _ in given[part]],
                list(seeds[part]),
                references=second or None,
                weight=weight,
            )
        return found

    def make(self, count: int, split: str, seed: int) -> list[Made]:
        """Scenes of a split, as `build` would make them."""
        generator = np.random.default_rng(seed)
        scenes = [sample_scene(generator, self.objects, split) for _ in range(count)]
        captions = [varied(scene, generator) for scene in scenes]
        texts = self.encode(captions)
        seeds = [1000 * seed + number for number in range(count)]
        pictures = self.draw([(text.embeddings, None) for text in texts], seeds)
        made = []
        for start in range(0, count, TOGETHER):
            part = slice(start, start + TOGETHER)
            read, grafted = (image_tokens(reader, pictures[part]) for reader in (self.reader, self.graft))
            columns = (scenes[part], captions[part], texts[part], read, grafted, seeds[part], pictures[part])
            made += [Made(*row) for row in zip(*columns, strict=True)]
        return made

    def attributes_of(self, pictures: Sequence[Any]) -> list[dict[str, str]]:
        """What pictures show."""
        return [attributes(read_scene(np.asarray(picture), self.objects)) for picture in pictures]


def image_tokens(reader: VisionLanguageEncoder, pictures: Sequence[Any]) -> list[Tensor]:
    """(V, D) of each picture."""
    found = []
    for encoding in reader.encode(pictures, [""] * len(pictures)):
        assert isinstance(encoding, VisionEncoding)
        found.append(encoding.states["none"][LAYER][encoding.kind["none"] == KIND_IMAGE])
    return found


def source_of(made: Sequence[Made], template: Template, image: Path) -> PairSource:
    """Pairs by the product's rules: no template, no sinks."""
    pairs = []
    for number, item in enumerate(made):
        vl = item.vl[token_rms(item.vl) <= template.vl_limit]
        text = item.text.embeddings[item.text.kind == KIND_CAPTION]
        kinds = torch.full((len(vl),), KIND_IMAGE, dtype=torch.uint8)
        pairs.append(Pair(f"pair-{number}", vl, kinds, text[token_rms(text) <= template.text_limit]))
    made_from = [Conditioning(item.text.embeddings, item.seed, item.caption) for item in made]
    shown = [PairPicture(as_png(item.picture), None, item.seed) for item in made]
    return replace(
        in_memory(pairs, layer=LAYER, text_mode="none"),
        template=template,
        conditionings=lambda start, stop: iter(made_from[start:stop]),
        pictures=lambda start, stop: iter(shown[start:stop]),
        provenance={
            "models": {"image": {"id": image.name}},
            "picture": {"height": SIDE, "width": SIDE},
            "steps": STEPS,
        },
    )


def template_of(made: Sequence[Made]) -> Template:
    """What is the same in all prompts."""
    return find_template(
        WholeSample(
            item.text.embeddings,
            item.text.kind,
            item.vl,
            torch.full((len(item.vl),), KIND_IMAGE, dtype=torch.uint8),
        )
        for item in made[:64]
    )


Condition = Callable[[Made], Given]


def alone(projector: Projector, template: Template) -> Condition:
    """The picture alone; networks that do not predict the template's end get its mean, which is more than nothing."""
    return lambda item: conditionings(projected(projector, item.vl, template.suffix), "alone")


def unprojected(template: Template, reader: str) -> Condition:
    """A reader's tokens as they are, between the template's constant tokens and its mean end."""
    return lambda item: conditionings(as_rows(getattr(item, reader), template), "alone")


def as_rows(tokens: Tensor, template: Template) -> ReferenceRows:
    """Tokens as they are, with the template around them."""
    return ReferenceRows(template.prefix, tokens, template.suffix, tokens)


def share(found: Sequence[dict[str, str]], wanted: Sequence[dict[str, str]]) -> list[float]:
    """Of the attributes wanted of each picture, those found; NaN where none are wanted."""
    return [
        float(np.mean([seen.get(name) == value for name, value in want.items()])) if want else float("nan")
        for seen, want in zip(found, wanted, strict=True)
    ]


def figure(by_seed: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Mean over seeds and references, with its interval."""
    table = np.array(by_seed)  # (seeds, references)
    rows = np.random.default_rng(0).integers(table.shape[1], size=(RESAMPLES, table.shape[1]))
    means = np.nanmean(table[:, rows], axis=(0, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": round(float(np.nanmean(table)), 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
        "seeds": [round(float(row), 4) for row in np.nanmean(table, axis=1)],
    }


class Judge:
    """Draws with conditionings and reads the pictures."""

    def __init__(self, world: World, references: Sequence[Made], sheets: Path) -> None:
        self.world, self.references, self.sheets = world, references, sheets
        self.own = [attributes(item.scene) for item in references]
        self.seeds = [70_000 + number for number in range(len(references))]

    def alone(self, condition: Condition, name: str = "") -> list[float]:
        """Share of each reference's attributes in what is drawn from it alone."""
        pictures = self.world.draw([condition(item) for item in self.references], self.seeds)
        if name:
            self._keep(name, pictures)
        return share(self.world.attributes_of(pictures), self.own)

    def with_prompts(
        self,
        names: Sequence[str],
        conditioning: Callable[[Made, TextEncoding], Given],
        name: str = "",
        weight: float = 1.0,
    ) -> tuple[list[float], list[float]]:
        """Adherence and fidelity, by reference, with prompts that name some attributes of another scene."""
        generator = np.random.default_rng(5)
        others = [*self.references[1:], self.references[0]]
        prompts = self.world.encode([partial(other.scene, names, generator) for other in others])
        given = [conditioning(item, prompt) for item, prompt in zip(self.references, prompts, strict=True)]
        pictures = self.world.draw(given, self.seeds, weight)
        if name:
            self._keep(name, pictures)
        seen = self.world.attributes_of(pictures)
        asked, kept = [], []
        for own, other in zip(self.own, (attributes(item.scene) for item in others), strict=True):
            named = {key for key in own if key.split(" ")[0] in names}
            asked.append({key: other[key] for key in named if other[key] != own[key]})
            kept.append({key: value for key, value in own.items() if key not in named})
        return share(seen, asked), share(seen, kept)

    def _keep(self, name: str, pictures: Sequence[Any]) -> None:
        from mini.scores import pasted

        self.sheets.mkdir(parents=True, exist_ok=True)
        pasted([pictures[:12]]).save(self.sheets / f"{name}.png")


def trained(
    options: dict[str, Any], sources: tuple[PairSource, PairSource], models: Path, seed: int
) -> Projector:
    """A projector by the product's own loop."""
    with tempfile.TemporaryDirectory() as output:
        given = {"output": output, "log": [], "seed": seed, "layer": LAYER, "text_mode": "none", **options}
        if options.get("objective") == "response":
            given["models"] = {"image": str(models / "image"), "vl": str(models / "vl")}
        summary = train(TrainOptions(**given), *sources)
        print(
            f"{options} seed {seed}: {summary['seconds']} s, best {summary['best_val_loss']:.4f}", flush=True
        )
        return Projector.from_pretrained(output)


def methods(chosen: Sequence[str], changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of training by a method's name, with some of them changed."""
    table: dict[str, dict[str, Any]] = {
        "statistics": {"arch": "linear", "align": "statistics"},
        "ridge": {"arch": "ridge"},
        **{f"{arch} embedding": {"arch": arch, "length": 16, "objective": "embedding"} for arch in ARCHS},
        **{
            f"{arch} response": {"arch": arch, "length": 16, "objective": "response", "compose": 0.0}
            for arch in ARCHS
        },
        **{f"{arch} compose": {"arch": arch, "length": 16, "objective": "response"} for arch in ARCHS},
    }
    return {name: table[name] | changes for name in chosen or table}


class Trial:
    """Everything that is measured in a run of this file, written down as it is found.

    Args:
        world: what draws and reads.
        options: of the command line.
    """

    def __init__(self, world: World, options: argparse.Namespace) -> None:
        self.options = options
        self.made = {
            split: world.make(count, of, seed)
            for split, count, of, seed in (
                ("train", options.pairs, "train", 1),
                ("val", max(32, options.pairs // 10), "val", 2),
                ("test", options.references, "test", 3),
                ("held_out", options.references, "held_out", 4),
            )
        }
        self.template = template_of(self.made["train"])
        self.judges = {
            split: Judge(world, self.made[split], options.output.with_suffix(""))
            for split in ("test", "held_out")
        }
        self.found: dict[str, Any] = {
            **{name: getattr(options, name) for name in ("pairs", "references", "objects", "changes")},
            "alone": {},
            "prompts": {},
        }

    def keep(self) -> None:
        """Write down what is known so far."""
        self.options.output.write_text(json.dumps(self.found, indent=1) + "\n")

    def measure_alone(self, name: str, conditions: Callable[[str], Sequence[Condition]]) -> None:
        """Measure a method without prompts, by split with the conditions that this gives, one for each seed."""
        self.found["alone"][name] = {
            split: figure([judge.alone(condition, f"{name} {split}") for condition in conditions(split)])
            for split, judge in self.judges.items()
        }
        print(name, json.dumps(self.found["alone"][name]), flush=True)
        self.keep()

    def measure_untrained(self) -> None:
        """What needs no projector, alone and behind prompts."""
        template = self.template
        self.measure_alone("own caption", lambda _: [lambda item: (item.text.embeddings, None)])
        others = {
            item: split[number - 1] for split in self.made.values() for number, item in enumerate(split)
        }
        self.measure_alone("another's caption", lambda _: [lambda item: (others[item].text.embeddings, None)])
        for reader, name in (("vl", "identity"), ("graft", "graft")):
            condition = unprojected(template, reader)
            self.measure_alone(name, lambda _, condition=condition: [condition])

        def grafted(item: Made, prompt: TextEncoding) -> Given:
            return conditionings(as_rows(item.graft, template), "concat", prompt.embeddings, prompt.kind)

        for test, names in TESTS.items():
            for name, given in (
                ("text only", lambda _item, prompt: (prompt.embeddings, None)),
                ("graft concat", grafted),
            ):
                rows = self.judges["test"].with_prompts(names, given, f"{name} {test}")
                self.found["prompts"][f"{test} {name}"] = in_words(*([row] for row in rows))

    def measure_projectors(self) -> None:
        """Projectors of every chosen kind, alone and some of them behind prompts."""
        folder, template = self.options.models, self.template
        sources = tuple(source_of(self.made[split], template, folder / "image") for split in ("train", "val"))
        for name, how in methods(self.options.methods, self.options.changes).items():
            projectors = [trained(how, sources, folder, seed) for seed in range(self.options.seeds)]
            by_seed = [alone(projector, template) for projector in projectors]
            self.measure_alone(name, lambda _, by_seed=by_seed: by_seed)
            if name in self.options.prompts:
                self.found["prompts"] |= with_prompts(name, projectors, self.judges["test"], template)
                self.keep()


def in_words(asked: Sequence[Sequence[float]], kept: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Adherence and fidelity by seed and reference, as they are written down."""
    return {"adherence": figure(asked), "fidelity": figure(kept)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder with `image` and `vl`")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=800)
    parser.add_argument("--references", type=int, default=100)
    parser.add_argument("--objects", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="*", default=[], help="of the table in this file; all by default")
    parser.add_argument(
        "--prompts", nargs="*", default=["attention response"], help="methods to try with prompts"
    )
    parser.add_argument("--changes", type=json.loads, default={}, help="options of train as a JSON object")
    options = parser.parse_args()
    begun = time.monotonic()
    trial = Trial(World(options.models, options.objects), options)
    print(f"pairs: {time.monotonic() - begun:.0f} s", flush=True)
    trial.measure_untrained()
    trial.measure_projectors()
    trial.found["seconds"] = round(time.monotonic() - begun)
    trial.keep()


def with_prompts(
    name: str, projectors: Sequence[Projector], judge: Judge, template: Template
) -> dict[str, dict[str, Any]]:
    """Adherence and fidelity of a method in every mode; modes with a dial with the first seed's projector alone."""

    def condition(projector: Projector, mode: Mode, value: float) -> Callable[[Made, TextEncoding], Given]:
        def given(item: Made, prompt: TextEncoding) -> Given:
            rows = projected(projector, item.vl, template.suffix)
            return conditionings(rows, mode, prompt.embeddings, prompt.kind, value=value)

        return given

    modes: list[tuple[Mode, float]] = [("alone", 1.0), ("concat", 1.0)]
    modes += [(mode, value) for mode in DIALLED for value in DIALS]
    table = {}
    for test, names in TESTS.items():
        for mode, value in modes:
            called = f"{mode} {value}" if mode in DIALLED else mode
            pairs = [
                judge.with_prompts(
                    names, condition(projector, mode, value), f"{name} {test} {called}", weight=value
                )
                for projector in (projectors[:1] if mode in DIALLED else projectors)
            ]
            row = in_words([pair[0] for pair in pairs], [pair[1] for pair in pairs])
            table[f"{test} {name} {called}"] = row
            print(test, name, called, row["adherence"]["mean"], row["fidelity"]["mean"], flush=True)
    return table


if __name__ == "__main__":
    main()
