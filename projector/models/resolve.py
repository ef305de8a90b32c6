"""Which models: resolved, pinned, hashed and checked before a single weight is loaded."""

import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from projector.models.machine_records import sha256_once
from projector.models.model_folder import PICKLED_SUFFIXES, check_pipeline, check_vision_language, read_json
from projector.options import Models
from shards.errors import OptionError, UsageError

CACHE_VARIABLE = "Z_IMAGE_PROJECTOR_CACHE"
MINI = Path(__file__).parent / "mini"
MINIATURE = "mini/image"  # id of the model whose pictures are of scenes
OWN_MODELS = ("tiny", "mini")  # made on the spot at random, and trained weights that come with the package
HASHED_SUFFIXES = (".json", ".safetensors", ".txt", ".jinja", ".model")
# `org/name` or `org/name@revision`; a revision may have slashes, as in refs/pr/1.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?", re.ASCII)


@dataclass(frozen=True)
class ModelSource:
    """One model, pinned.

    Attributes:
        id: hub id, or the folder's name for local ones.
        path: local folder of the machine that found it.
        revision: the hub's commit; empty for local folders.
        files: SHA-256 by file name.
    """

    id: str
    path: str
    revision: str
    files: Mapping[str, str]

    def here(self) -> str:
        """The model's folder on this machine, which may not be the one that found it.

        Returns:
            `path` where that is there; elsewhere the same revision from the hub, fetched once per machine, or the
            tiny models, made on the spot.

        Raises:
            UsageError: none of these is to be had.
        """
        if self.path and Path(self.path).is_dir():
            return self.path
        family, _, part = self.id.partition("/")
        if family in OWN_MODELS and part in ("image", "vl"):
            return str(own_folder(family) / part)
        if self.revision:
            return str(self.cached() or locate("model", f"{self.id}@{self.revision}")[1])
        raise UsageError(
            f"model {self.id}: {self.path} is not on {socket.gethostname()}; copy the folder there, put it on a "
            "shared file system, or give a hub id"
        )

    def cached(self) -> Path | None:
        """Where the hub's cache of this machine has the whole model, if it has; the hub is not asked."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(self.id, revision=self.revision, local_files_only=True))
        except LocalEntryNotFoundError:
            return None
        return folder if all((folder / name).is_file() for name in self.files) else None

    def to_json(self) -> dict[str, Any]:
        """What goes into a dataset's settings: id, revision and hashes, not where the files happened to lie."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


@dataclass(frozen=True)
class ModelSources:
    """The two models of a run.

    Attributes:
        image: the Z-Image pipeline.
        vl: the vision-language model.
        hidden_size: width D that both share.
        vl_layers: blocks of the VL language model.
    """

    image: ModelSource
    vl: ModelSource
    hidden_size: int
    vl_layers: int

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse layers that the VL model has not."""
        VisionSource(self.vl, self.hidden_size, self.vl_layers).check_layers(layers)

    def to_json(self) -> dict[str, Any]:
        """Both models as they go into the dataset's settings."""
        return {"image": self.image.to_json(), "vl": self.vl.to_json()}


@dataclass(frozen=True)
class VisionSource:
    """The vision-language model of a run that makes no pictures.

    Attributes:
        model: the model.
        hidden_size: its width D.
        layers: blocks of its language model.
    """

    model: ModelSource
    hidden_size: int
    layers: int

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse layers that the model has not."""
        for layer in layers:
            if not -self.layers <= layer <= -1:
                raise OptionError(
                    f"layers = {list(layers)}: {self.model.id} has {self.layers} blocks, "
                    f"allowed are -{self.layers} to -1"
                )


def resolve_models(models: Models) -> ModelSources:
    """Find the models of a run and check that they fit together.

    Args:
        models: `tiny`, `mini`, or `image` and `vl` as local folders or hub ids (`id@revision`).

    Returns:
        both, pinned and hashed.

    Raises:
        UsageError: missing, incomplete, pickled, of the wrong class, or of different widths.
    """
    if isinstance(models, str):
        image, vl = own_folder(models) / "image", own_folder(models) / "vl"
        sources = {"image": (f"{models}/image", image, ""), "vl": (f"{models}/vl", vl, "")}
    else:
        sources = {name: locate(f"models.{name}", getattr(models, name)) for name in ("image", "vl")}
        image, vl = sources["image"][1], sources["vl"][1]
    check_pipeline(image, "models.image")
    check_vision_language(vl, "models.vl")
    width, layers = _check_fit(image, vl)
    pinned = {
        name: ModelSource(identity, str(folder), revision, file_hashes(folder))
        for name, (identity, folder, revision) in sources.items()
    }
    return ModelSources(pinned["image"], pinned["vl"], width, layers)


def resolve_vision(name: str, option: str) -> VisionSource:
    """Find a vision-language model alone; no Z-Image pipeline needs to be anywhere.

    Args:
        name: `tiny`, `mini`, a local folder or a hub id (`id@revision`).
        option: what errors call it, such as `models.vl`.

    Returns:
        the model, pinned and hashed.

    Raises:
        UsageError: missing, incomplete, pickled or of the wrong class.
    """
    identity, folder, revision = (
        (f"{name}/vl", own_folder(name) / "vl", "") if name in OWN_MODELS else locate(option, name)
    )
    check_vision_language(folder, option)
    language = read_json(folder / "config.json", option, folder).get("text_config", {})
    model = ModelSource(identity, str(folder), revision, file_hashes(folder))
    return VisionSource(model, int(language["hidden_size"]), int(language["num_hidden_layers"]))


def own_folder(family: str) -> Path:
    """The project's own models: `tiny` is made on first use in this machine's cache folder, `mini` is in the package.

    Raises:
        UsageError: this installation has no miniature models.
    """
    if family == "mini":
        if not MINI.is_dir():
            raise OptionError(f"models = 'mini': {MINI} is missing; install the package whole, or use tiny")
        return MINI
    from projector.models.tiny import RECIPE, make_tiny_models

    return make_tiny_models(cache_folder() / f"tiny-{RECIPE}")


def cache_folder() -> Path:
    """Where this machine keeps the models that the project makes itself."""
    default = Path.home() / ".cache" / "z-image-projector"
    return Path(os.environ.get(CACHE_VARIABLE) or default)


def locate(
    option: str, name: str, parts: Sequence[str] = (), *, files: Sequence[str] = (), token: str | None = None
) -> tuple[str, Path, str]:
    """Name, folder and revision of a model; a hub id is fetched into the hub's cache first.

    Args:
        option: what errors call it.
        name: a local folder or a hub id (`id@revision`).
        parts: folders of it that are fetched from the hub; none, and no files: all.
        files: files of it that are fetched from the hub.
        token: of the hub; None: the one of `hf auth login` or HF_TOKEN.

    Raises:
        UsageError: neither a folder nor to be had from the hub.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.name, folder.absolute(), ""
    if folder.suffix == ".safetensors" and folder.is_file():
        raise OptionError(
            f"{option} = {name!r}: is one file; give a model folder: of ComfyUI's files of Z-Image "
            "python -m projector.models.single_files makes one"
        )
    identity, _, revision = name.partition("@")
    looks_local = name.startswith(("/", ".", "~")) or folder.exists() or identity.count("/") != 1
    if looks_local:
        raise OptionError(
            f"{option} = {name!r}: no such folder; give a model folder or a hub id such as org/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = Path(
            snapshot_download(
                identity,
                revision=revision or None,
                allow_patterns=[*(f"{part}/*" for part in parts), *files] or None,
                ignore_patterns=[f"*{suffix}" for suffix in PICKLED_SUFFIXES],
                token=token,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise OptionError(
            f"{option} = {name!r}: neither a folder nor to be had from the hub ({type(error).__name__}: {reason}); "
            "check the name, the network and HF_TOKEN, or give a local folder"
        ) from None
    return identity, found, found.name  # the hub's cache names a snapshot's folder by its commit


def _check_fit(image: Path, vl: Path) -> tuple[int, int]:
    """The shared width and the VL model's depth."""
    text = read_json(image / "text_encoder" / "config.json", "models.image", image)
    transformer = read_json(image / "transformer" / "config.json", "models.image", image)
    language = read_json(vl / "config.json", "models.vl", vl).get("text_config", {})
    widths = {
        "the text encoder's hidden_size": text.get("hidden_size"),
        "the transformer's cap_feat_dim": transformer.get("cap_feat_dim"),
        "the VL model's hidden_size": language.get("hidden_size"),
    }
    if len(set(widths.values())) != 1:
        told = ", ".join(f"{name} is {width}" for name, width in widths.items())
        raise OptionError(
            f"models: the widths differ: {told}; use models of one width (2560 for the 4B ones)"
        )
    return int(language["hidden_size"]), int(language["num_hidden_layers"])


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that decides what the model computes, by relative name; large ones are read once."""
    paths = sorted(_model_files(folder))
    once = partial(sha256_once, records=cache_folder() / "hashes")
    with ThreadPoolExecutor(max_workers=8) as pool:  # hashing releases the GIL; disks like several readers
        return dict(
            zip((str(path.relative_to(folder)) for path in paths), pool.map(once, paths), strict=True)
        )


def read_ahead(path: str) -> None:
    """Ask the system to read a model's weights into its cache, while another one is being loaded."""
    if not hasattr(os, "posix_fadvise"):
        return
    for weights in filter(Path.is_file, sorted(Path(path).rglob("*.safetensors"))):
        with weights.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def _model_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix in HASHED_SUFFIXES and path.is_file() and not path.name.startswith("."):
            yield path
