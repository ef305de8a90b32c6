"""`export`: a folder to publish, with nothing in it of the machine that made it. Nothing is uploaded."""

import io
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError

from projector.network.checkpoint import CONFIG, EVALUATION, WEIGHTS, put_json, put_network
from projector.network.model_card import (
    CARD,
    FILES,
    CardPicture,
    Published,
    dataset_id,
    model_card,
)
from projector.network.projector import Projector
from projector.network.publishing import (
    FOLDED,
    ONNX,
    PROGRAM,
    check_onnx,
    folded_bytes,
    onnx_bytes,
    program_bytes,
    program_of,
    without_places,
)
from ray_jobs.cli.option_errors import options_of
from ray_jobs.cli.run_options import ExportOptions
from shards.errors import NotFoundError, UsageError
from shards.stores.local import open_storage
from shards.stores.store import Storage, check_key, read_json_object
from shards.tools.dataset_card import are_random

COMPARISON, PICTURES = "compare.json", "pictures/"
LINEAR = ("ridge", "linear")
MOST_PICTURES, LARGEST_SIDE = 4, 1600  # of a card: grids are thousands of pixels wide


@options_of("export", ExportOptions)
def export(options: ExportOptions) -> int:
    """Write the folder.

    Args:
        options: checkpoint, output and forms.

    Returns:
        exit code 0.

    Raises:
        UsageError: no projector there, an extra that is missing, or an output that holds something else.
    """
    if options.onnx:
        check_onnx()
    projector = Projector.from_pretrained(options.checkpoint)
    source, target = open_storage(options.checkpoint), open_storage(options.output)
    stale = set(_own_files(source, target))
    config = without_places(projector.config)
    written = set(_put_forms(projector, config, options, target))
    put_json(target, CONFIG, config)
    evaluation = _evaluation(source)
    if evaluation is not None:
        put_json(target, EVALUATION, evaluation)
        written.add(EVALUATION)
    pictures = []
    for picture, data in _pictures(options, source):
        target.put_bytes(picture.file, data)
        pictures.append(picture)
    files = {name: text for name, text in FILES.items() if name in written | {CONFIG}}
    dataset = options.dataset or dataset_id(projector.config)
    published = Published(
        config,
        evaluation,
        pictures,
        files,
        options.license,
        projector.restore,
        options.repository,
        dataset,
    )
    target.put_bytes(CARD, model_card(published).encode())
    stale |= {
        entry.key for entry in target.abandoned()
    }  # of an export that was killed: copies of the weights
    for key in stale - files.keys() - {picture.file for picture in pictures} - {CARD}:
        target.delete(key)
    print(
        f"exported {', '.join(sorted(files))}, {CARD} and {len(pictures)} pictures to {target.root}",
        flush=True,
    )
    print(_how_to_publish(config, options.repository, target.root), flush=True)
    return 0


def _how_to_publish(config: Mapping[str, Any], repository: str, root: str) -> str:
    """The command that uploads the folder; why not to, where it steers nothing."""
    if are_random(config.get("base_models")):
        return "not offered for upload: its models are random test models, so it steers nothing"
    remote = "://" in root
    words = ["hf", "upload", repository or "YOU/REPOSITORY", "FOLDER" if remote else root, "."]
    how = "to publish, once it is copied to a local FOLDER" if remote else "to publish"
    return f"{how}: {shlex.join(words)}"


def _own_files(source: Storage, target: Storage) -> Iterator[str]:
    """What an earlier export left in the output; UsageError where it holds anything else, which would be published."""
    if source.root.rstrip("/") == target.root.rstrip("/"):
        raise UsageError(f"export.output = {target.root!r} is the checkpoint itself; give another folder")
    for entry in target.list():
        if entry.key not in {*FILES, CARD} and not entry.key.startswith(PICTURES):
            raise UsageError(
                f"export.output = {target.root!r} holds {entry.key!r}, which no export wrote and publishing the folder "
                "would show; give an empty or new folder"
            )
        yield entry.key


def _put_forms(
    projector: Projector, config: Mapping[str, Any], options: ExportOptions, target: Storage
) -> Iterator[str]:
    """Write the weights in every form asked for; yields the names."""
    network = projector.network
    put_network(target, network, config)
    yield WEIGHTS
    if network.shape.arch in LINEAR and not network.shape.suffix:  # positions do not fold into a layer
        target.put_bytes(FOLDED, folded_bytes(network))
        yield FOLDED
    if options.program or options.onnx:
        program = program_of(network)
    if options.program:
        target.put_bytes(PROGRAM, program_bytes(program))
        yield PROGRAM
    if options.onnx:
        target.put_bytes(ONNX, onnx_bytes(program))
        yield ONNX


def _evaluation(source: Storage) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = without_places(read_json_object(source, EVALUATION))
    except NotFoundError:
        return None
    return content


def _pictures(options: ExportOptions, source: Storage) -> Iterator[tuple[CardPicture, bytes]]:
    """The first grids that `compare` made with this checkpoint, and what they are; made anew, without metadata."""
    for place in [options.pictures] if options.pictures else [f"{source.root}/compare", source.root]:
        storage = open_storage(place)
        try:
            content = read_json_object(storage, COMPARISON)
        except NotFoundError:
            continue
        cases = content.get("cases")
        told = [one for one in cases if isinstance(one, dict)] if isinstance(cases, list) else []
        for number, one in enumerate(told[:MOST_PICTURES], 1):
            picture = CardPicture(
                f"{PICTURES}{number:02d}.webp",
                str(one.get("case", "")),
                str(one.get("prompt", "")) or "without a prompt",
            )
            yield picture, _smaller(storage, str(one.get("grid", "")))
        return
    if options.pictures:
        raise UsageError(
            f"export.pictures = {options.pictures!r}: no {COMPARISON} there; give the output of `compare`"
        )


def _smaller(storage: Storage, key: str) -> bytes:
    """A picture as WebP of at most `LARGEST_SIDE` pixels a side."""
    try:
        with Image.open(io.BytesIO(storage.get_bytes(check_key(key))), formats=["PNG", "WEBP"]) as image:
            small = image.convert("RGB")
    except (
        ValueError,
        NotFoundError,
        OSError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise UsageError(
            f"{storage.root}/{COMPARISON}: its grid {key!r} cannot be read: {error}; compare again"
        ) from None
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=85)
    return buffer.getvalue()
