"""What a comparison is made on: reference pictures, users' or of `test`, each with a prompt; checked and named."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image

from projector.steering.reference_size import UNRECORDED, to_training_size
from shards.dataset.dataset import Dataset
from shards.dataset.read import read_samples
from shards.errors import UsageError
from shards.format.sample import picture_of
from shards.sources.picture import MAX_BYTES, SUFFIXES, ImageError, open_picture


@dataclass(frozen=True)
class Case:
    """One reference picture with one prompt, and under which keys what is made of it lies.

    Attributes:
        name: 16 hexadecimal digits, a hash of picture and prompt: safe as a key, whatever the user's names are.
        prompt: exactly as it was given.
        seed: of the noise that all pictures of the case start from.
    """

    name: str
    prompt: str
    seed: int

    @property
    def reference(self) -> str:
        """Key of the reference picture."""
        return f"references/{self.name}.webp"

    @property
    def grid(self) -> str:
        """Key of the labelled grid."""
        return f"grids/{self.name}.png"

    def picture(self, method: str, alpha: float) -> str:
        """Key of one picture."""
        return f"pictures/{self.name}/{method}-{alpha}.png"


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
        raise UsageError(
            f"compare.images = {str(place)!r}: no {', '.join(SUFFIXES)} files in that folder; give one with pictures"
        )
    return found


def _opened(path: Path) -> Image.Image:
    where = f"compare.images = {str(path)!r}"
    if not path.is_file():  # a pipe or a device would be read for ever
        raise UsageError(f"{where}: no such file; give image files, or folders of them")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UsageError(f"{where}: {size:,} bytes; at most {MAX_BYTES:,}, make it smaller")
        picture = open_picture(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror or error}") from None
    except ImageError as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())}; give another, or leave it out") from None
    return picture


def reference_pictures(dataset: Dataset, count: int) -> list[tuple[Image.Image, str]]:
    """The first test samples of a dataset: RGB pictures with their captions.

    Raises:
        UsageError: it has none.
    """
    samples = islice(read_samples(dataset, split="test", tensors=()), count)
    found = [(picture_of(sample), sample.caption) for sample in samples]
    if not found:
        raise UsageError(
            f"{dataset.storage.root}: holds no test samples; build some (build.test_fraction), "
            "or give compare.images and compare.prompts"
        )
    return found


def paired(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[tuple[Image.Image, str]]:
    """Picture i with prompt i, or every picture with the only prompt.

    Raises:
        UsageError: another number of prompts.
    """
    if len(prompts) not in (1, len(pictures)):
        raise UsageError(
            f"compare.prompts: {len(prompts)} prompts for {len(pictures)} pictures; give one for each, in their "
            "order, or one for all"
        )
    return [(picture, prompts[index % len(prompts)]) for index, picture in enumerate(pictures)]


def name_of(picture: Image.Image, prompt: str) -> str:
    """A case's name: the same picture with the same prompt has the same one wherever it came from."""
    digest = hashlib.sha256(f"{picture.width}x{picture.height}:".encode())
    digest.update(picture.tobytes())
    digest.update(b"\0" + prompt.encode())
    return digest.hexdigest()[:16]


def as_webp(picture: Image.Image) -> bytes:
    """A picture as lossless WebP: what is read back is what was read from the user."""
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", lossless=True, method=2)
    return buffer.getvalue()
