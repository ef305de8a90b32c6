"""The models of a run at three sizes, with random weights made on the device: no file is read.

`full` has the shapes of Z-Image-Turbo and Qwen3-VL-4B; `medium` keeps their proportions at a size for CPUs; `tiny`
shows that the benchmark runs.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import TextEncoder
from projector.inference.vision_encoder import VisionLanguageEncoder
from projector.models.tiny import SPECIAL_TOKENS, VL_TEMPLATE, tiny_tokenizer


@dataclass(frozen=True)
class Size:
    """Shapes of all three models."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    dit_width: int
    dit_layers: int
    dit_heads: int
    dit_axes: tuple[int, int, int]
    vae: tuple[int, int, int, int]
    vision_width: int
    vision_layers: int
    vision_heads: int


SIZES = {
    # https://huggingface.co/Tongyi-MAI/Z-Image-Turbo and https://huggingface.co/Qwen/Qwen3-VL-4B-Instruct, config.json
    "full": Size(
        2560, 9728, 36, 32, 8, 128, 151936, 3840, 30, 30, (32, 48, 48), (128, 256, 512, 512), 1024, 24, 16
    ),
    "medium": Size(512, 1920, 18, 8, 2, 64, 30000, 512, 8, 4, (32, 48, 48), (16, 32, 64, 64), 256, 8, 4),
    "tiny": Size(64, 192, 12, 4, 2, 16, 1024, 96, 2, 2, (16, 16, 16), (8, 8, 16, 16), 48, 4, 4),
}


@dataclass(frozen=True)
class Models:
    """Whole models, as the libraries make them."""

    pipeline: Any
    vl: Any
    vl_tokenizer: Any
    image_processor: Any

    def ours(
        self, height: int, width: int, steps: int, layers: list[int], modes: list[str]
    ) -> tuple[TextEncoder, ImageGenerator, VisionLanguageEncoder]:
        """This project's use of the same weights; what it cuts off is cut from copies that share them."""
        pipeline = copy.copy(self.pipeline)
        pipeline.transformer = sharing(self.pipeline.transformer)
        return (
            TextEncoder(sharing(self.pipeline.text_encoder), self.pipeline.tokenizer),
            ImageGenerator(pipeline, height=height, width=width, steps=steps),
            VisionLanguageEncoder(
                sharing(self.vl), self.vl_tokenizer, self.image_processor, layers=layers, text_modes=modes
            ),
        )


def sharing(model: Any) -> Any:
    """A copy whose weights are the original's."""
    weights = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, memo=weights)


def make_models(name: str, device: str, dtype: torch.dtype) -> Models:
    """All models of a size."""
    size, tokenizer, vl_tokenizer = SIZES[name], tiny_tokenizer(), tiny_tokenizer()
    vl_tokenizer.chat_template = VL_TEMPLATE
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    with torch.device(device), _default(dtype):
        torch.manual_seed(0)
        encoder = _text_encoder(size, ids)
        transformer = _transformer(size)
        vae = _autoencoder(size)
        vl = _vision_language(size, ids)
    for model in (encoder, transformer, vae, vl):
        model.to(device, dtype).requires_grad_(False)
    return Models(_pipeline(encoder, tokenizer, transformer, vae), vl, vl_tokenizer, _image_processor())


def _language(size: Size, ids: Mapping[str, int]) -> dict[str, Any]:
    """The language model of either encoder."""
    return {
        "vocab_size": size.vocabulary,
        "hidden_size": size.width,
        "intermediate_size": size.inner,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "eos_token_id": ids["<|im_end|>"],
        "bos_token_id": None,
    }


def _text_encoder(size: Size, ids: Mapping[str, int]) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_language(size, ids))).eval()


def _transformer(size: Size) -> Any:
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel(
        in_channels=16,
        dim=size.dit_width,
        n_layers=size.dit_layers,
        n_refiner_layers=2,
        n_heads=size.dit_heads,
        n_kv_heads=size.dit_heads,
        cap_feat_dim=size.width,
        axes_dims=list(size.dit_axes),
        axes_lens=[1536, 512, 512],
    ).eval()


def _autoencoder(size: Size) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=size.vae,
        layers_per_block=2,
        norm_num_groups=min(32, size.vae[0] // 2),
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def _vision_language(size: Size, ids: Mapping[str, int]) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    sections = [size.head // 2 - 2 * (size.head // 6), size.head // 6, size.head // 6]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True, "mrope_section": sections}
    vision = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_width,
        "intermediate_size": 4 * size.vision_width,
        "num_heads": size.vision_heads,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": size.width,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [size.vision_layers // 4 * at for at in (1, 2, 3)],
    }
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config=_language(size, ids) | {"rope_parameters": rope},
            vision_config=vision,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=True,
        )
    ).eval()


def _pipeline(encoder: Any, tokenizer: Any, transformer: Any, vae: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _image_processor() -> Any:
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 65536, "longest_edge": 16777216},
    )


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """New weights have a type, so that a full-size model is never there in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
