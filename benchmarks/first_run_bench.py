"""What the questions of `first_run.py` share: the models, pictures that are drawn once, and how alike two are.

N prompts, T text rows, V vision-language tokens, R rows of a conditioning, D hidden.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from first_run_likeness import Looks, likeness
from PIL import Image
from torch import Tensor

from projector.data.template import Template, WholeSample, find_template, token_rms
from projector.evaluation.baselines import TrainStatistics
from projector.inference.frozen_transformer import FrozenTransformer
from projector.inference.image_generator import ImageGenerator
from projector.inference.rotary import use_complex_rotations
from projector.inference.text_encoder import TextEncoder, TextEncoding
from projector.inference.vision_encoder import VisionEncoding, VisionLanguageEncoder
from projector.models.offload import Residence
from projector.models.resolve import ModelSources
from projector.teaching.compose import draw_edit
from shards.errors import UsageError
from shards.format.sample import KIND_CAPTION, KIND_IMAGE
from shards.format.statistics import RunningStatistics
from shards.prompts.prompt_edits import Edit

LAYERS = (-2, -6, -8)
TEXT_LAYER = -2  # of the text encoder's states, which condition the image model
LOOKED_AT = -8  # the layer whose states say how alike two pictures are
TOGETHER = 4  # pictures drawn or read at once
ROOMY = 60e9  # bytes of a device that holds all four models and what a batch needs
EDIT_DRAWS = 8  # in which a caption's edit has to change something


class TimeIsUpError(Exception):
    """A step ran out of minutes; what it has drawn is kept."""


class Bench:
    """The models of a run and what was made with them.

    Args:
        sources: both models.
        output: of the run.
        prompts: at least as many as `count`.
        side: of the pictures, pixels.
        steps: of denoising.
        count: prompts in use; may be lowered once the speed is known.
        left: seconds that are left.
    """

    def __init__(
        self,
        sources: ModelSources,
        output: Path,
        prompts: Sequence[str],
        *,
        side: int,
        steps: int,
        count: int,
        left: Callable[[], float],
    ) -> None:
        self.sources, self.output, self.side, self.steps, self.count = sources, output, side, steps, count
        self.left = left
        self.seconds_a_picture = self.seconds_a_caption = 0.0
        self._prompts = prompts
        self._looks: dict[str, Looks] = {}
        on_gpu = torch.cuda.is_available()
        self.dtype = torch.bfloat16 if on_gpu else torch.float32
        roomy = not on_gpu or torch.cuda.get_device_properties(0).total_memory >= ROOMY
        self.residence = Residence(one_at_a_time=not roomy)

    @property
    def prompts(self) -> Sequence[str]:
        """Those in use."""
        return self._prompts[: self.count]

    @cached_property
    def edits(self) -> dict[int, Edit]:
        """A prompt that changes some of what a picture shows, by the picture's number; where its words are known."""
        found = {}
        for number, prompt in enumerate(self._prompts):
            drawn = (draw_edit(prompt, np.random.default_rng([draw, number])) for draw in range(EDIT_DRAWS))
            if edit := next((each for each in drawn if each and each.caption != prompt), None):
                found[number] = edit
        return found

    @property
    def edited(self) -> list[int]:
        """Numbers of the pictures in use that have an edit."""
        return [number for number in self.edits if number < self.count]

    @cached_property
    def _texts(self) -> dict[str, TextEncoding]:
        """Every caption's conditioning, rounded as `build` rounds it, on the CPU; the encoder is then let go."""
        encoder = TextEncoder.from_pretrained(
            self.sources.image.path, device=self.residence.loading_device, dtype=self.dtype
        )
        self.residence.let_in(encoder)
        captions = [
            *self._prompts,
            *(text for edit in self.edits.values() for text in (edit.prompt, edit.caption)),
        ]
        begun = time.perf_counter()
        encoded = encoder.encode(captions)
        found = {}
        for caption, item in zip(captions, encoded, strict=True):
            if not isinstance(item, TextEncoding):
                raise UsageError(f"a prompt cannot be encoded: {item}")
            found[caption] = TextEncoding(item.embeddings.to("cpu", torch.bfloat16).float(), item.kind)
        self.seconds_a_caption = (time.perf_counter() - begun) / len(captions)
        return found

    def text(self, caption: str) -> TextEncoding:
        """A prompt's, an edit's or an edited caption's conditioning."""
        return self._texts[caption]

    def texts(self) -> list[TextEncoding]:
        """Of the prompts in use."""
        return [self.text(prompt) for prompt in self.prompts]

    @cached_property
    def _images(self) -> ImageGenerator:
        return ImageGenerator.from_pretrained(
            self.sources.image.path,
            device=self.residence.loading_device,
            dtype=self.dtype,
            height=self.side,
            width=self.side,
            steps=self.steps,
        )

    def images(self) -> ImageGenerator:
        """The image model, on the device."""
        self.residence.let_in(self._images)
        return self._images

    def frozen(self) -> FrozenTransformer:
        """The image model as training looks through it; call `drawn_with_again` before it draws again."""
        pipeline = self.images().pipeline
        return FrozenTransformer(
            pipeline.transformer, pipeline.scheduler, height=self.side, width=self.side, steps=self.steps
        )

    def drawn_with_again(self) -> None:
        """Let the image model rotate as diffusers does, so that a second run draws what the first one would have."""
        use_complex_rotations(self._images.pipeline.transformer)

    @cached_property
    def _vl(self) -> VisionLanguageEncoder:
        return self._reader(LAYERS, ("none",))

    @cached_property
    def _graft(self) -> VisionLanguageEncoder:
        return self._reader((TEXT_LAYER,), ("none", "caption"), language=self.sources.image.path)

    def _reader(self, layers: Sequence[int], modes: Sequence[str], **more: Any) -> VisionLanguageEncoder:
        return VisionLanguageEncoder.from_pretrained(
            self.sources.vl.path,
            device=self.residence.loading_device,
            dtype=self.dtype,
            layers=layers,
            text_modes=modes,
            **more,
        )

    def read(self, pictures: Sequence[Image.Image]) -> list[VisionEncoding]:
        """Hidden states of pictures alone, by the VL model; on the CPU."""
        return self._read_by(self._vl, pictures, [""] * len(pictures))

    def read_by_graft(self, numbers: Sequence[int], prompts: Sequence[str]) -> list[VisionEncoding]:
        """Hidden states of references, alone and with a prompt behind, by the graft; on the CPU."""
        return self._read_by(self._graft, [self.reference(number) for number in numbers], prompts)

    def _read_by(
        self, reader: VisionLanguageEncoder, pictures: Sequence[Image.Image], prompts: Sequence[str]
    ) -> list[VisionEncoding]:
        self.residence.let_in(reader)
        found: list[VisionEncoding] = []
        for start in range(0, len(pictures), TOGETHER):
            part = slice(start, start + TOGETHER)
            for item in reader.encode(pictures[part], prompts[part]):
                if not isinstance(item, VisionEncoding):
                    raise UsageError(f"a picture cannot be read: {item}")
                states = {
                    mode: {layer: state.float().cpu() for layer, state in by_layer.items()}
                    for mode, by_layer in item.states.items()
                }
                found.append(VisionEncoding(states, item.kind))
        return found

    @cached_property
    def states(self) -> list[VisionEncoding]:
        """Of the references."""
        return self.read([self.reference(number) for number in range(self.count)])

    @cached_property
    def templates(self) -> dict[int, Template]:
        """What is constant and what is a sink, by layer of the VL side."""
        return {
            layer: find_template(
                WholeSample(text.embeddings, text.kind, vl.states["none"][layer], vl.kind["none"])
                for text, vl in zip(self.texts(), self.states, strict=True)
            )
            for layer in LAYERS
        }

    def picture_rows(self, number: int, layer: int) -> Tensor:
        """(V, D) a reference's own VL tokens at a layer, without sinks."""
        return _ordinary(self.states[number], layer, self.templates[layer].vl_limit)

    def statistics(self, layer: int) -> TrainStatistics:
        """Of the references' VL tokens and of the prompts' own rows, sinks left out."""
        width, limit = self.sources.hidden_size, self.templates[layer].text_limit
        found = TrainStatistics(RunningStatistics(width), RunningStatistics(width))
        for number, text in enumerate(self.texts()):
            own = (text.kind == KIND_CAPTION) & (token_rms(text.embeddings) <= limit)
            found.inputs.update(self.picture_rows(number, layer).numpy())
            found.targets.update(text.embeddings[own].numpy())
        return found

    def whole(self, rows: Tensor, layer: int) -> Tensor:
        """(R, D) rows between the template's constant tokens and the mean of its end."""
        template = self.templates[layer]
        return torch.cat([template.prefix, rows.float(), template.suffix])

    def reference(self, number: int) -> Image.Image:
        """The picture of a prompt."""
        return self.pictures("reference", [number])[0]

    def file(self, name: str, number: int) -> Path:
        """Of a drawn picture."""
        return self.output / "pictures" / name / f"{number:02d}.png"

    def pictures(self, name: str, numbers: Sequence[int]) -> list[Image.Image]:
        """Pictures that were drawn."""
        return [Image.open(self.file(name, number)).convert("RGB") for number in numbers]

    def draw(self, name: str, conditionings: Mapping[int, Tensor], *, steps: int | None = None) -> None:
        """Draw what is not there, each picture from the noise of its reference.

        Args:
            name: a folder's, under `pictures`.
            conditionings: (R, D) by number.
            steps: of denoising, where they are not the run's.

        Raises:
            TimeIsUpError: the next ones would not be finished; those that are stay for a second run.
        """
        numbers = sorted(conditionings)
        for start in range(0, len(numbers), TOGETHER):
            part = numbers[
                start : start + TOGETHER
            ]  # the same ones each time: mates move a picture's last bits
            if all(self.file(name, number).is_file() for number in part):
                continue
            if self.left() <= self.seconds_a_picture * len(part):
                raise TimeIsUpError(f"time was up after {start} of {len(numbers)} pictures of {name}")
            images = self.images()
            images.steps = steps or self.steps
            device = images.pipeline.transformer.device
            made = images.generate([conditionings[number].to(device) for number in part], part)
            for number, picture in zip(part, made, strict=True):
                _save(picture, self.file(name, number))

    def looks(self, name: str, numbers: Sequence[int]) -> Looks:
        """How drawn pictures look, read once."""
        if name not in self._looks:
            pictures = self.pictures(name, numbers)
            read = self.states if name == "reference" else self.read(pictures)
            limit = self.templates[LOOKED_AT].vl_limit
            means = [_ordinary(states, LOOKED_AT, limit).mean(0) for states in read]
            self._looks[name] = Looks.of(torch.stack(means), pictures)
        return self._looks[name]

    def scored(self, name: str, numbers: Sequence[int], target: str = "reference") -> dict[str, Any]:
        """How alike drawn pictures and their targets are (`likeness`).

        Args:
            name: of the drawn pictures.
            numbers: of them.
            target: of what they should look like.
        """
        references = self.looks("reference", range(self.count))
        wanted = references.of_these(numbers) if target == "reference" else self.looks(target, numbers)
        return likeness(self.looks(name, numbers), wanted, references, numbers)


def _ordinary(states: VisionEncoding, layer: int, limit: float) -> Tensor:
    """(V, D) image tokens without attention sinks."""
    tokens = states.states["none"][layer]
    return tokens[(states.kind["none"] == KIND_IMAGE) & (token_rms(tokens) <= limit)]


def _save(picture: Image.Image, path: Path) -> None:
    """Whole or not at all: a picture that is there is not drawn again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    picture.save(draft, format="PNG")
    draft.replace(path)
