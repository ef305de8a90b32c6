"""What a comparison is made on: references, users' or of `test`, with prompts and without; checked and named."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from projector.steering.modes import DIALLED, WITH_PROMPT, Mode
from projector.steering.reference_size import UNRECORDED, to_training_size
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_samples
from shards.errors import OptionError, UsageError
from shards.format.plan import sample_seed
from shards.format.sample import picture_of
from shards.scenes.captions import partial, scene_named
from shards.scenes.scene import ATTRIBUTES
from shards.sources.picture import MAX_BYTES, SUFFIXES, ImageError, open_picture

TEXT = "text"  # the method that knows the prompt alone
PROJECTED = "projector"
HELD_OUT = "test"  # the split whose samples are references where no images are given
CLAUSE = re.compile(r"[,;:.](?=\s|$)|[，；：。、]")
NAMED = 3  # attributes of a scene in a prompt that names part of them


class Column(NamedTuple):
    """What tells the pictures of a case apart."""

    method: str
    """`text`, `projector` or a baseline's name."""
    mode: Mode
    """`alone` for the text, which nothing is mixed with."""
    value: float
    """Of the mode's dial; 1 where it has none."""

    @property
    def value_text(self) -> str:
        """The value as files and JSON keys spell it: 1, 0.3."""
        return str(float(self.value)).removesuffix(".0")


@dataclass(frozen=True)
class Case:
    """One reference picture with one prompt or none, and under which keys what is made of it is stored.

    Attributes:
        name: 16 hexadecimal digits, a hash of picture and prompt: safe as a key, whatever the user's names are.
        prompt: exactly as it was given; empty for none.
        seed: of the noise that all pictures start from; the same in all cases of a reference.
        group: hash of the picture, which all cases of a reference have in common.
        things: in a reference of the miniature world.
    """

    name: str
    prompt: str
    seed: int
    group: str
    things: int = 1

    @property
    def reference(self) -> str:
        """Key of the reference picture."""
        return f"pictures/{self.name}/reference.png"

    @property
    def grid(self) -> str:
        """Key of the labelled grid."""
        return f"grids/{self.name}.png"

    def picture(self, column: Column) -> str:
        """Key of one picture."""
        return f"pictures/{self.name}/{column.method}.{column.mode}.{column.value_text}.png"

    def columns(self, methods: Sequence[str], modes: Sequence[Mode], alphas: Sequence[float]) -> list[Column]:
        """The pictures of the case; the text alone is what every dial gives at 0, and is made once."""
        if not self.prompt:
            return [Column(method, "alone", 1.0) for method in methods if "alone" in modes]
        return [Column(TEXT, "alone", 1.0)] + [
            Column(method, mode, value)
            for mode in modes
            if mode in WITH_PROMPT
            for value in (alphas if mode in DIALLED else (1.0,))
            if value > 0
            for method in methods
        ]


def cases_of(
    picture: Image.Image, prompts: Sequence[str], run_seed: int, *, alone: bool, things: int = 1
) -> list[Case]:
    """The cases of one reference.

    Args:
        picture: RGB, the reference.
        prompts: a case each; what is there twice makes one.
        run_seed: of the run.
        alone: whether there is a case without a prompt, too.
        things: in the picture, where it is of the miniature world.
    """
    group = name_of(picture, "")
    wanted = ([""] if alone else []) + [prompt for prompt in prompts if prompt]
    return [
        Case(name_of(picture, prompt), prompt, sample_seed(run_seed, group), group, things)
        for prompt in dict.fromkeys(wanted)
    ]


def part_of(caption: str, seed: int) -> str:
    """A prompt that names part of what a caption does.

    Args:
        caption: of any picture.
        seed: the same one gives the same part.

    Returns:
        of a scene's caption another wording of some of its attributes; of other captions their first clause.
    """
    scene = scene_named(caption)
    if scene is None:
        return CLAUSE.split(caption.strip(), maxsplit=1)[0].strip() or caption
    generator = np.random.default_rng(seed)
    return partial(scene, generator.choice(list(ATTRIBUTES), NAMED, replace=False).tolist(), generator)


def user_pictures(places: Sequence[str], size: Mapping[str, int] | None = None) -> list[Image.Image]:
    """Pictures of a user, turned upright and brought to the size of a projector's training pictures.

    Args:
        places: image files, or folders of which all image files are taken in the order of their names.
        size: of the training pictures, as `Projector.picture_size`; None or empty: unrecorded.

    Returns:
        RGB pictures.

    Raises:
        UsageError: nothing there, or a file that is no sound picture; names it.
    """
    wanted = size or UNRECORDED
    return [
        to_training_size(_opened(path), wanted)
        for place in places
        for path in _files(Path(place).expanduser())
    ]


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    found = sorted(
        path
        for path in place.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise OptionError(
            f"images = {str(place)!r}: no {', '.join(SUFFIXES)} files in that folder; give one with pictures"
        )
    return found


def _opened(path: Path) -> Image.Image:
    where = f"images = {str(path)!r}"
    if not path.is_file():  # a pipe or a device would be read for ever
        raise OptionError(f"{where}: no such file; give image files, or folders of them")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise OptionError(f"{where}: {size:,} bytes; at most {MAX_BYTES:,}, make it smaller")
        picture = open_picture(path.read_bytes())
    except OSError as error:
        raise OptionError(f"{where}: cannot be read: {error.strerror or error}") from None
    except ImageError as error:
        raise OptionError(f"{where}: {' '.join(str(error).split())}; give another, or leave it out") from None
    return picture


def reference_pictures(dataset: Dataset, count: int) -> list[tuple[Image.Image, str]]:
    """The first test samples of a dataset: RGB pictures with their captions.

    Raises:
        UsageError: it has none.
    """
    samples = islice(read_samples(dataset, split=HELD_OUT, tensors=()), count)
    found = [(picture_of(sample), sample.caption) for sample in samples]
    if not found:
        raise UsageError(
            f"{dataset.storage.root}: holds no test samples; build some (test_fraction), "
            "or give images and prompts"
        )
    return found


def paired(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[tuple[Image.Image, str]]:
    """Picture i with prompt i, or every picture with the only prompt.

    Raises:
        UsageError: another number of prompts.
    """
    if len(prompts) not in (1, len(pictures)):
        raise OptionError(
            f"prompts: {len(prompts)} prompts for {len(pictures)} pictures; give one for each, in their "
            "order, or one for all"
        )
    return [(picture, prompts[index % len(prompts)]) for index, picture in enumerate(pictures)]


def name_of(picture: Image.Image, prompt: str) -> str:
    """A case's name: the same picture with the same prompt has the same one wherever it came from."""
    digest = hashlib.sha256(f"{picture.width}x{picture.height}:".encode())
    digest.update(picture.tobytes())
    digest.update(b"\0" + prompt.encode())
    return digest.hexdigest()[:16]
