"""diffusers' Z-Image pipeline that takes pictures beside the prompt; needs the extra `diffusers`.

It is a class to import and not a `custom_pipeline`, which diffusers runs with `trust_remote_code=True` only.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline
from PIL import Image
from torch import Tensor

from projector.inference.image_settings import caption_rows
from projector.inference.text_encoder import SampleError, templated
from projector.network.projector import Mode, Projector
from projector.steering.extractor import VLEmbeddingExtractor
from projector.steering.references import steered
from shards.errors import UsageError

FOLDER = "projector"  # of the projector in a saved pipeline
Picture = Image.Image


class ZImageProjectorPipeline(ZImagePipeline):  # type: ignore[misc]  # diffusers has no types
    """`ZImagePipeline` with `reference=` pictures; without one it is that pipeline.

    Args:
        scheduler, vae, text_encoder, tokenizer, transformer: as in `ZImagePipeline`.
        vision: Qwen3-VL folder or Hub id, which is loaded when the first reference is read.
    """

    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        transformer: Any,
        vision: str | None = None,
    ) -> None:
        super().__init__(scheduler, vae, text_encoder, tokenizer, transformer)
        self.register_to_config(vision=vision)
        self.projector: Projector | None = None
        self._source: str | None = None
        self._extractor: VLEmbeddingExtractor | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        *,
        projector: str | Path | None = None,
        vision: str | None = None,
        **options: Any,
    ) -> "ZImageProjectorPipeline":
        """Load a Z-Image pipeline and a projector.

        Args:
            pretrained_model_name_or_path: folder or Hub id of Z-Image, or a folder that `save_pretrained` wrote.
            projector: folder, `.safetensors` file or Hub id; None: the one saved in that folder.
            vision: Qwen3-VL folder or Hub id; None: the one saved in that folder.
            options: of diffusers' `from_pretrained`.

        Raises:
            UsageError: no projector; nothing else was loaded then.
        """
        own = Path(pretrained_model_name_or_path) / FOLDER
        source = projector or (own if own.is_dir() else None)
        if source is None:
            raise UsageError(
                f"projector: {str(pretrained_model_name_or_path)!r} has none saved in it; "
                'give projector="org/name", a folder or a .safetensors file'
            )
        Projector.from_pretrained(source)  # before the large models load
        pipeline: ZImageProjectorPipeline = super().from_pretrained(pretrained_model_name_or_path, **options)
        pipeline.load_projector(source, vision=vision)
        return pipeline

    def load_projector(self, projector: str | Path, *, vision: str | None = None) -> None:
        """Take a projector, in place of an earlier one.

        Args:
            projector: folder, `.safetensors` file or Hub id.
            vision: Qwen3-VL folder or Hub id; None: the pipeline's own.
        """
        self._source = str(projector)
        self.projector = Projector.from_pretrained(projector, device=self._execution_device)
        self._extractor = None
        if vision is not None:
            self.register_to_config(vision=str(vision))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Save the pipeline, the projector in its folder, and the name of the vision-language model."""
        super().save_pretrained(save_directory, **options)
        if self.projector is not None:
            self.projector.save_pretrained(Path(save_directory) / FOLDER)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        reference: Picture | Sequence[Picture] | None = None,
        weights: Sequence[float] | None = None,
        alpha: float = 0.5,
        start: float = 0.0,
        end: float = 1.0,
        mode: Mode = "concat",
        **options: Any,
    ) -> Any:
        """Make pictures.

        Args:
            prompt: one, several, or None for the references alone.
            reference: a picture or several, which go with every prompt; None: the plain pipeline.
            weights: of each reference, above 0 and at most 1; see `projector.steering.references.steered`.
            alpha: share of the picture under mode `blend`.
            start, end: share of the steps from and until which the references act; the prompt alone conditions the
                others.
            mode: see `Projector.conditioning`.
            options: of `ZImagePipeline`, such as num_inference_steps and guidance_scale.

        Returns:
            what `ZImagePipeline` returns.

        Raises:
            UsageError: references that cannot be used, before a step is taken.
        """
        if reference is None:
            return super().__call__(prompt, **options)
        prompts = list(prompt) if isinstance(prompt, list) else [prompt or ""]
        pictures = [reference] if isinstance(reference, Picture) else list(reference)
        _check_call(options, pictures, start, end)
        plain, with_pictures = self._conditionings(
            prompts,
            pictures,
            options.get("max_sequence_length", 512),
            weights=weights,
            mode=mode,
            alpha=alpha,
        )
        schedule = _Schedule(
            plain,
            with_pictures,
            start,
            end,
            options.get("num_images_per_prompt", 1),
            options.pop("callback_on_step_end", None),
        )
        wanted = options.pop("callback_on_step_end_tensor_inputs", ["latents"])
        return super().__call__(
            prompts,
            prompt_embeds=schedule.at(0.0),
            callback_on_step_end=schedule.after_step,
            callback_on_step_end_tensor_inputs=wanted,
            **options,
        )

    def _conditionings(
        self, prompts: list[str], pictures: Sequence[Picture], longest: int, **how: Any
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of each prompt alone, and with the pictures."""
        projector = self.projector
        if projector is None:
            raise UsageError("reference: the pipeline has no projector; call load_projector first")
        kinds = [self._kinds(prompt, longest) for prompt in prompts]
        plain, _ = self.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=longest
        )
        steered_by = []
        for prompt, text, kind in zip(prompts, plain, kinds, strict=True):
            seen = [self._read(picture, prompt).to(text) for picture in pictures]
            given = (text, kind) if prompt else (None, None)
            steered_by.append(steered(projector, seen, *given, **how).to(text))
        most = caption_rows(self.transformer.config.axes_lens)
        if (rows := max(map(len, steered_by))) > most:
            raise UsageError(
                f"reference: the conditioning has {rows} rows, the image model takes at most {most}; "
                "give fewer references, lower weights, or mode='blend'"
            )
        return plain, steered_by

    def _kinds(self, prompt: str, longest: int) -> Tensor:
        found = templated(self.tokenizer, prompt, longest)
        if isinstance(found, SampleError):
            raise UsageError(str(found))
        return torch.tensor(found[1], dtype=torch.uint8)

    def _read(self, picture: Picture, prompt: str) -> Tensor:
        """(S, D) raw hidden states of a picture."""
        projector, device = self.projector, str(self._execution_device)
        assert projector is not None
        if self._extractor is None:
            if not self.config.vision:
                raise UsageError(
                    "vision: no vision-language model named; give vision='Qwen/Qwen3-VL-4B-Instruct'"
                )
            self._extractor = VLEmbeddingExtractor.from_pretrained(
                self.config.vision,
                self._source,
                device=device,
                dtype=self.transformer.dtype,
                language=self.name_or_path if projector.reader == "graft" else None,
            )
        self._extractor.to(device)
        beside = prompt if projector.text_mode == "caption" and projector.tokens != "image" else None
        return self._extractor.extract(picture, beside, hidden_layer=projector.layer).raw


class _Schedule:
    """Which conditionings each step has, as diffusers' callback at a step's end."""

    def __init__(
        self,
        plain: list[Tensor],
        with_pictures: list[Tensor],
        start: float,
        end: float,
        each: int,
        callback: Callable[..., Mapping[str, Any]] | None,
    ) -> None:
        self.plain, self.with_pictures, self.start, self.end = plain, with_pictures, start, end
        self.each, self.callback = each, callback

    def at(self, share: float) -> list[Tensor]:
        """The conditionings of the step before which this share of the steps is done, one for each prompt."""
        return self.with_pictures if self.start <= share < self.end else self.plain

    def after_step(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Give the next step its conditionings, one for each picture; the caller's own callback has the last word."""
        following = self.at((step + 1) / pipeline.num_timesteps)
        changed = {"prompt_embeds": [each for each in following for _ in range(self.each)]}
        if self.callback is not None:
            changed |= self.callback(pipeline, step, timestep, tensors)
        return changed


def _check_call(options: Mapping[str, Any], pictures: Sequence[Any], start: float, end: float) -> None:
    """Refuse references that are no pictures, and what would contradict them."""
    if others := [picture for picture in pictures if not isinstance(picture, Picture)]:
        raise UsageError(
            f"reference holds a {type(others[0]).__name__}; expected PIL pictures; open a file with PIL.Image.open"
        )
    if not 0 <= start < end <= 1:  # NaN fails this, too
        raise UsageError(f"start = {start}, end = {end}; expected 0 <= start < end <= 1, shares of the steps")
    if options.get("prompt_embeds") is not None:
        raise UsageError("prompt_embeds and reference exclude each other; give the prompt as text")
