"""Whether what is asked of an image model is what it was made for, by its files alone.

Z-Image and Z-Image-Turbo are one class: their schedulers tell them apart. Turbo has shift 3.0, is distilled to 8 steps
and takes no guidance; Z-Image has shift 6.0 and wants 28 to 50 steps and guidance of about 4, with the empty prompt as
its negative one and without `cfg_normalization`, the pipeline's default (the model cards of both).
"""

from collections.abc import Sequence
from pathlib import Path

from projector.inference.dense_transformer import MULTIPLE
from projector.models.model_folder import read_json
from projector.models.resolve import ModelSource
from shards.errors import OptionError

TURBO_SHIFT, BASE_SHIFT = 3.0, 6.0  # scheduler/scheduler_config.json
TURBO_STEPS = 8  # forwards; diffusers before 0.42 made as many of 9 steps
BASE_STEPS = (28, 50)
PATCH_PIXELS = 16  # VAE factor 8 times the transformer's patch of 2


def caption_rows(axes_lens: Sequence[int]) -> int:
    """The most rows of a conditioning that a transformer has rotary positions for.

    Rows are padded to a multiple of 32 and stand at positions 1 to L, the picture at L + 1: 1,504 rows with the 1,536
    positions of the published models. Beyond that diffusers raises an IndexError, on CUDA a device-side assert.

    Args:
        axes_lens: positions by axis, of transformer/config.json.
    """
    return (axes_lens[0] - 2) // MULTIPLE * MULTIPLE


def check_image_settings(
    model: ModelSource,
    *,
    height: int,
    width: int,
    steps: int,
    guidance: float,
    max_tokens: int,
) -> list[str]:
    """Check settings against a pipeline's transformer and scheduler.

    Args:
        model: the pipeline.
        height, width: of the pictures, in pixels.
        steps: of denoising.
        guidance: scale; 0 for none.
        max_tokens: longest templated caption.

    Returns:
        warnings, a line each.

    Raises:
        UsageError: captions or pictures for which the transformer has no positions, or no guidance where the model
            cannot do without.
    """
    check_max_tokens(Path(model.path), max_tokens)
    _check_size(model, height, width)
    return _check_scheduler(model, steps, guidance)


def _check_size(model: ModelSource, height: int, width: int) -> None:
    axes = _axes(Path(model.path))
    for name, pixels, places in (("height", height, axes[1]), ("width", width, axes[2])):
        if pixels > places * PATCH_PIXELS:
            raise OptionError(
                f"{name} = {pixels}: {model.id} has positions for {places * PATCH_PIXELS} pixels "
                f"(axes_lens {axes} in its transformer/config.json); use at most so many"
            )


def _check_scheduler(model: ModelSource, steps: int, guidance: float) -> list[str]:
    """Warnings about steps and guidance that the model was not distilled for."""
    if model.id.startswith("tiny/"):  # random: no number of steps is better than another
        return []
    folder = Path(model.path)
    file = folder / "scheduler" / "scheduler_config.json"
    shift = read_json(file, "models.image", folder).get("shift")
    if shift == TURBO_SHIFT and (steps != TURBO_STEPS or guidance > 0):
        return [
            f"{model.id} has the scheduler of Z-Image-Turbo (shift {shift}), which is distilled to {TURBO_STEPS} steps "
            f"without guidance; steps is {steps}, guidance {guidance:g}"
        ]
    if not isinstance(shift, int | float) or shift < BASE_SHIFT:
        return []
    wants = f"{BASE_STEPS[0]} to {BASE_STEPS[1]} steps and guidance of about 4"
    if guidance == 0:
        raise OptionError(
            f"guidance = 0: {model.id} has the scheduler of Z-Image (shift {shift}), which is not distilled "
            f"and wants {wants}; set guidance 4 and steps {BASE_STEPS[1]}, or give Z-Image-Turbo"
        )
    if not BASE_STEPS[0] <= steps <= BASE_STEPS[1]:
        return [
            f"{model.id} has the scheduler of Z-Image (shift {shift}), which wants {wants}; steps is {steps}"
        ]
    return []


def check_max_tokens(folder: Path, max_tokens: int) -> None:
    """UsageError where captions may be longer than a pipeline's transformer has positions for; unknown without one."""
    if not (folder / "transformer" / "config.json").is_file():  # an import needs the text encoder alone
        return
    axes = _axes(folder)
    most = caption_rows(axes)
    if max_tokens > most:
        raise OptionError(
            f"max_tokens = {max_tokens}: the image model has positions for captions of {most} tokens "
            f"(axes_lens {axes} in its transformer/config.json); use at most {most}"
        )


def _axes(folder: Path) -> list[int]:
    option, file = "models.image", folder / "transformer" / "config.json"
    axes = read_json(file, option, folder).get("axes_lens")
    if not isinstance(axes, list) or len(axes) != 3 or not all(type(length) is int for length in axes):
        raise OptionError(
            f"{option} = {str(folder)!r}: axes_lens in transformer/config.json is {axes!r}, expected three numbers; "
            "download it again"
        )
    return axes
