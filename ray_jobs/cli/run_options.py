"""The options of the cluster jobs, one pydantic model per section; `projector.options` holds training's own."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from projector.options import SCENE_PIXELS, VL_TOKENS, Arch, Models, Reader

PIXEL_MULTIPLE = 16  # ZImagePipeline: VAE factor 8 times the DiT's patch of 2


def _multiple_of_16(value: int) -> int:
    if value % PIXEL_MULTIPLE:
        below = value // PIXEL_MULTIPLE * PIXEL_MULTIPLE
        nearest = f"{below} or {below + PIXEL_MULTIPLE}" if below else f"{PIXEL_MULTIPLE}"
        raise ValueError(f"must be a multiple of {PIXEL_MULTIPLE} pixels; use {nearest}")
    return value


Pixels = Annotated[int, Field(gt=0, le=8192), AfterValidator(_multiple_of_16)]
ScoredPixels = Annotated[Pixels, Field(ge=64)]  # what projector.comparison.blockiness can judge
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise ValueError(f"names something twice: {values}; list each once")
    return values


def _rising(values: list[int]) -> list[int]:
    if values[0] < 1 or sorted(set(values)) != values:
        raise ValueError(f"must grow from step to step, not {values}")
    return values


def _listed(places: object) -> object:
    """A single place as a list of one."""
    return [places] if isinstance(places, str) else places


def _from_the_end(layers: list[int]) -> list[int]:
    if any(layer >= 0 for layer in layers):
        raise ValueError(f"counts from the end, so every layer is negative (-8, -6, …), not {layers}")
    return layers


Layers = Annotated[list[int], AfterValidator(_distinct), AfterValidator(_from_the_end)]
TextModes = Annotated[list[Literal["caption", "none"]], AfterValidator(_distinct)]
Readers = Annotated[list[Reader], AfterValidator(_distinct)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values never change after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class WatchedOptions(Section):
    """How a run that makes a dataset tells how far it is."""

    log: Literal["text", "json"] = "text"
    """On standard output: lines for people, or every event and all figures as JSON, one object a line."""
    price_gpu_hour: float | None = Field(None, ge=0.0, lt=1e15)
    """Price of a GPU-hour, in any currency: the cost so far is told."""


class MakingOptions(WatchedOptions):
    """What `build`, `import` and `extract` share: how pictures are read, and how the run goes."""

    layers: Layers = Field([-8, -6], min_length=1)
    """Qwen3-VL layers to keep, counted from the end (-1 is after the final norm)."""
    text_modes: TextModes = Field(["caption", "none"], min_length=1)
    """Text in the VL input: the sample's caption, none, or both."""
    readers: Readers = Field(["vl"], min_length=1)
    """What reads the pictures: `vl`, Qwen3-VL, and `graft`, its vision tower before the pipeline's text encoder."""
    vl_tokens: str = Field("all", pattern=VL_TOKENS)
    """`all` VL tokens, or `pooled:N` to average each kind down to at most N."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of the models: auto is bfloat16 on a GPU and float32 on a CPU."""
    actors: int | None = Field(None, gt=0)
    """Builders at work at once; absent: one per gpus_per_actor of the cluster, of GPUs that join later too; without
    GPUs one per CPU."""
    gpus_per_actor: float | None = Field(None, ge=0.0)
    """GPUs each builder reserves; absent: 1 where the cluster has GPUs, 0 otherwise."""
    max_failed_fraction: Fraction = 0.05
    """The run fails when more than this share of the samples made so far failed (after the first 20)."""
    max_consecutive_failures: int = Field(25, gt=0)
    """The run fails when more than so many samples fail one after the other."""
    stuck_seconds: float = Field(1800.0, gt=0)
    """A builder that finishes no batch for so long is named and restarted."""
    spool: str | None = None
    """Local folder for shards under construction; absent: the system's temporary folder."""


class PlannedOptions(MakingOptions):
    """What `build` and `import` share: how samples are planned."""

    seed: int = 0
    """Run seed; each sample's own seed is a hash of it and the sample id."""
    val_fraction: float = Field(0.05, ge=0.0, lt=1.0)
    """Share that chooses a training's settings, by hash of the caption (imports: the picture's name); at least 32."""
    test_fraction: float = Field(0.05, ge=0.0, lt=1.0)
    """Share that figures are reported on, chosen likewise."""
    max_tokens: int = Field(512, gt=0)
    """Longest templated prompt in tokens; longer ones fail, they are not cut."""
    max_attempts: int = Field(3, gt=0)
    """Runs in which a failed sample is tried, the first one counted; what can never work is tried once."""
    append: bool = False
    """Grow an existing dataset to `samples`."""

    @model_validator(mode="after")
    def _train_is_left(self) -> Self:
        val, test = self.val_fraction, self.test_fraction
        if val + test >= 1:
            raise ValueError(
                f"val_fraction {val} + test_fraction {test} leave nothing to train on; their sum must be below 1"
            )
        return self


class BuildOptions(PlannedOptions):
    """What to build and where."""

    @model_validator(mode="before")
    @classmethod
    def _scenes_are_small(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("models") == "mini":
            return {"height": SCENE_PIXELS, "width": SCENE_PIXELS, **given}
        return given

    output: str = ""
    """Root of the dataset: a local folder or s3://bucket/prefix."""
    samples: int = Field(1000, gt=0)
    """Planned samples in all, all splits together."""
    prompts: str | None = None
    """Prompt file (.txt .tsv .csv .json .jsonl .parquet); absent means the built-in prompt space."""
    prompt_column: str | None = None
    """Column of the captions in a .tsv .csv .json .jsonl or .parquet prompt file."""
    language: Literal["en", "zh"] = "en"
    """Language of the built-in prompts: English or Chinese."""
    duplicates: Literal["refuse", "drop"] = "refuse"
    """Prompts of a file that say the same as an earlier one: an error, or left out."""
    near_duplicates: Literal["drop", "keep"] = "drop"
    """Prompts of a file that share nearly all runs of three words with an earlier one: left out, or kept."""
    models: Models = "tiny"
    """`tiny` (random test models made on the spot), `mini` (small trained ones), or a mapping with `image` and `vl`."""
    samples_per_shard: int = Field(64, gt=0, le=9999)
    """Samples in a full shard; aim at 5 to 15 device minutes."""
    height: Pixels = 1024
    """Image height in pixels; absent: 64 where models are `mini`, whose scenes have that size."""
    width: Pixels = 1024
    """Image width in pixels; absent: likewise."""
    steps: int = Field(8, gt=0, le=1000)
    """Denoising steps; Z-Image-Turbo is distilled to 8 (before diffusers 0.42, 9 steps ran the same 8)."""
    guidance: float = Field(0.0, ge=0.0)
    """Guidance scale; Z-Image-Turbo wants 0.0, Z-Image about 4 and 28 to 50 steps."""
    latents: bool = True
    """Keep what the pictures were decoded from, for trainings that go through the image model."""
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = 4
    """Images generated together on one device, halved when memory runs out; `auto` searches once for a GPU type."""
    compile: bool | None = None
    """Compile the transformer's blocks, after a check against uncompiled ones; absent: on GPUs."""
    quantize: Literal["none", "int8"] = "none"
    """Weights of the text encoder and the vision-language model: `int8` takes half of their memory, at an error that
    docs/performance.md tells."""
    placement: Literal["auto", "fused", "staged", "offload"] = "auto"
    """`fused`: all models on each device; `staged`: pictures read on other devices; `offload`: one model at a time."""
    reading_actors: int | None = Field(None, gt=0)
    """Staged only: actors that read pictures; absent: one for every 16 builders."""
    gpus_per_reader: float | None = Field(None, ge=0.0)
    """Staged only: GPUs each reader reserves; absent: as gpus_per_actor."""


class ExtractOptions(MakingOptions):
    """Which pictures to read again, how, and where to."""

    data: str = ""
    """Root of the dataset whose pictures, captions and text embeddings are taken over."""
    output: str = ""
    """Root of the new dataset: a local folder or s3://bucket/prefix."""
    vl: str | None = None
    """The vision-language model: `tiny`, `mini`, a folder or a hub id; absent: the source's, where that was `tiny` or
    `mini`."""
    image: str | None = None
    """For reader `graft`: the pipeline whose text encoder made the source; absent likewise."""
    batch_size: int = Field(4, gt=0)
    """Pictures read together on one device; halved when memory runs out."""


class CompareOptions(Section):
    """Which projector to make pictures with, of what, and how."""

    checkpoint: str = ""
    """Folder (local or s3://) of a trained or exported projector."""
    output: str = ""
    """Folder that gets compare.json, cases.json, pictures and grids; absent: `compare` in the checkpoint's."""
    models: Models = "tiny"
    """`tiny` (random test models made on the spot), `mini`, or a mapping with `image` and `vl`."""
    images: Annotated[list[str], BeforeValidator(_listed)] | None = None
    """Reference pictures: image files, or folders of them; absent: test samples of the dataset."""
    prompts: str | None = None
    """Prompt file as for `build`, one prompt for each picture or one for all; absent: another test sample's, whole
    and in part."""
    prompt_column: str | None = None
    """Column of the prompts in a .tsv .csv .json .jsonl or .parquet prompt file."""
    data: str = ""
    """Root of the dataset of test samples and of the baselines' statistics; absent: the checkpoint's own."""
    samples: int = Field(4, gt=0)
    """Test samples to use, the first in plan order, where no images are given."""
    alphas: Annotated[list[Fraction], AfterValidator(_distinct), AfterValidator(sorted)] = Field(
        [0.0, 0.3, 0.5, 0.7, 1.0], min_length=1
    )
    """Values of the modes `guidance`, `blend` and `interpolate`: 0 is the text, which is always made, 1 the picture."""
    modes: (
        Annotated[
            list[Literal["alone", "concat", "guidance", "blend", "interpolate"]], AfterValidator(_distinct)
        ]
        | None
    ) = Field(None, min_length=1)
    """How picture and prompt meet: `alone` is without a prompt; absent: all but `interpolate`, the guide's way."""
    methods: Annotated[list[str], AfterValidator(_distinct)] = Field(
        ["identity", "per_dim_norm", "graft", "projector"], min_length=1
    )
    """What is done with the picture's embeddings: `projector`, `identity` (nothing) or another baseline; `graft` reads
    the picture with the pipeline's own text encoder behind Qwen3-VL's vision tower."""
    blend: Literal["interpolate", "linear", "adain", "adain_per_dim"] = "interpolate"
    """How mode `blend` mixes: whole, cut off (`linear`), or first given the text's mean and spread (`adain…`)."""
    scorer: str | None = None
    """SigLIP folder or hub id, or `none`; absent: google/siglip2-base-patch16-224, for `tiny` models a random one, for
    `mini` one that has learnt captions of scenes."""
    scorers: Annotated[list[str], AfterValidator(_distinct)] = []
    """Further scorers, `module:attribute` each: a callable of PIL picture and prompt that returns a float."""
    seed: int = Field(0, ge=0)
    """Run seed; all pictures of a reference start from the same noise, whose seed is a hash of it and the reference."""
    height: ScoredPixels | None = None
    """Image height in pixels; absent: that of the training pictures, 1024 where they were imported."""
    width: ScoredPixels | None = None
    """Image width in pixels; absent: likewise."""
    steps: int = Field(8, gt=0, le=1000)
    """Denoising steps; Z-Image-Turbo is distilled to 8 (before diffusers 0.42, 9 steps ran the same 8)."""
    guidance: float = Field(0.0, ge=0.0)
    """Guidance scale; Z-Image-Turbo wants 0.0, Z-Image about 4 and 28 to 50 steps."""
    max_tokens: int = Field(512, gt=0)
    """Longest templated prompt in tokens; longer ones are refused, they are not cut."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of the models: auto is bfloat16 on a GPU and float32 on a CPU."""
    actors: int | None = Field(None, gt=0)
    """Workers at once; absent: one per gpus_per_actor of the cluster, or one per CPU without GPUs."""
    gpus_per_actor: float | None = Field(None, ge=0.0)
    """GPUs each worker reserves; absent: 1 where the cluster has GPUs, 0 otherwise."""


class PlanOptions(Section):
    """What `plan` does besides printing; what would be built is in the `build` section."""

    output: str = ""
    """Folder that gets plan.json and plan.parquet; absent: nothing is written."""
    calibrate: bool = False
    """Time four samples on one device, and tell hours, bytes and cost on the cluster as it is."""
    price_gpu_hour: float | None = Field(None, ge=0.0)
    """Price of a GPU-hour, in any currency; with `calibrate` the cost is told."""
    price_gb_month: float | None = Field(None, ge=0.0)
    """Price of a gigabyte stored for a month."""
    price_1000_puts: float | None = Field(None, ge=0.0)
    """Price of a thousand put requests."""


class RewriteOptions(Section):
    """Short prompts made long by a local language model, before they are built."""

    prompts: str = ""
    """Prompt file, as for `build`."""
    prompt_column: str | None = None
    """Column of the prompts in a .tsv .csv .json .jsonl or .parquet prompt file."""
    model: str = ""
    """An instruction-tuned causal language model: a folder or a hub id (`id@revision`)."""
    output: str = ""
    """The .jsonl file to write; give it to `build.prompts`. What it holds already is not made again."""
    words: int = Field(40, ge=5, le=300)
    """Prompts of fewer words are rewritten to at least so many; others stay as they are."""
    batch_size: int = Field(8, gt=0)
    """Prompts rewritten together."""


class ReportOptions(Section):
    """One HTML page from a run's files."""

    run: str
    """Root of the run, local or s3://: holds the dataset, the trained projectors and their evaluations."""
    output: str = ""
    """The page to write; absent: report.html in the run folder."""


class ExportOptions(Section):
    """A folder to publish: weights, config, card."""

    checkpoint: str = ""
    """Folder (local or s3://) of a trained projector, with its eval.json where it was evaluated."""
    output: str = ""
    """Folder to publish, local or s3://, empty or new; nothing is uploaded."""
    pictures: str = ""
    """Output of `compare` whose grids the card shows; absent: where `compare` puts it, in the checkpoint's folder."""
    license: str = Field("apache-2.0", pattern=r"^[a-z0-9][a-z0-9.-]{0,60}$")
    """The hub's identifier of the licence it is published under."""
    repository: str = Field("", pattern=r"^([A-Za-z0-9][\w.-]*/[\w.-]+)?$")
    """Hub id it is to be published under, org/name: stands in the card's lines and in the upload command."""
    dataset: str = Field("", pattern=r"^([A-Za-z0-9][\w.-]*/[\w.-]+)?$")
    """Hub id of the dataset it was trained on, for the card; absent: known where that was read from the hub's cache."""
    program: bool = True
    """Also as a torch.export program, projector.pt2."""
    onnx: bool = False
    """Also as projector.onnx; needs the extra `onnx`."""


class LadderOptions(Section):
    """Linear on few pairs, MLP on more, attention on most; `build` and `train` say how pairs are made and used."""

    output: str = ""
    """Root of the run, local or s3://: gets data/, a folder for each step, curve/ and ladder.json."""
    samples: Annotated[list[int], AfterValidator(_rising)] = Field(
        [1000, 5000, 10_000], min_length=1, max_length=3
    )
    """Planned samples of the dataset at each step: linear, mlp, attention."""
    gates: Literal["stop", "report"] = "stop"
    """When a step fails its gate: `stop` before the next one makes more pairs, or only `report` it."""
    curve_arch: Arch = "linear"
    """Network of the learning curve."""
    curve_points: int = Field(4, ge=3, le=8)
    """Numbers of pairs on the learning curve: all, half, a quarter and so on; what twice as many would bring is not
    known from fewer than four."""
    curve_seeds: int = Field(3, gt=0, le=20)
    """Trainings at each point."""


class PreflightOptions(Section):
    """Whether the cluster is fit; what for is in the `build` and `train` sections."""

    output: str = ""
    """Folder (local or s3://) that gets preflight.json; absent: nothing is written."""


class DemoOptions(Section):
    """The whole chain on the miniature models."""

    output: str = "runs/demo"
    """Where everything the demo makes goes: a folder or s3://bucket/prefix."""
    samples: int = Field(320, ge=96)
    """Pairs to build."""
