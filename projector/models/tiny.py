"""Tiny random models with the real classes, so that the real loading code runs where no weights are.

`models: tiny` saves and loads them through the same `save_pretrained` / `from_pretrained` path as the real ones: a
complete Z-Image pipeline folder and a Qwen3-VL folder. They are random, but shaped so that there is something to
learn: the vision-language model's text weights are those of the text encoder plus a perturbation, and the images
depend strongly on the prompt's embedding.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN_SIZE = 64
LAYERS = 12  # so that -2, -6 and -8 exist with blocks to spare on both sides
LATENT_CHANNELS = 16
VOCABULARY = 1024
OUTLIER_DIMENSIONS = (4, 19)  # blown up like dims 4 and 396 of the 4B models
GAIN = 6.0  # of the last convolution, so that pictures use the range of colours without clipping too much
SINK_SCALE = 40.0  # of the first token's residual, so that it is an attention sink like the real one
RECIPE = 3  # counted up whenever the bytes made here change; part of the cache folder's name

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# The shape of Qwen3's template: with enable_thinking the assistant turn is left open, without it an empty think
# block is put there (https://huggingface.co/Qwen/Qwen3-4B, tokenizer_config.json).
TEXT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
# The shape of Qwen3-VL's template for one user turn of images and texts.
VL_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def make_tiny_models(folder: Path, *, seed: int = 0) -> Path:
    """Make both tiny model folders unless they are there.

    Args:
        folder: gets `image` (a Z-Image pipeline) and `vl` (a Qwen3-VL model).
        seed: of the random weights.

    Returns:
        the folder. Safe when several processes ask at once: the folder appears whole or not at all.
    """
    if folder.is_dir():
        return folder
    with drafted(folder, seed) as draft:
        tokenizer = tiny_tokenizer()
        text_encoder = _text_encoder(len(tokenizer), tokenizer.eos_token_id)
        _save_pipeline(draft / "image", tokenizer, text_encoder)
        _save_vision_language(draft / "vl", tokenizer, text_encoder)
    return folder


@contextmanager
def drafted(folder: Path, seed: int) -> Iterator[Path]:
    """Where models of a seed are saved before they appear, whole, under the folder's name; or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        # One thread: a factorisation's last bits depend on the number, and the bytes are part of every fingerprint.
        with _quiet(), _one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield draft
        try:
            os.rename(draft, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def tiny_tokenizer() -> Any:
    """The tokenizer of the tiny models, learnt from built-in prompts."""
    from shards.prompts.builtin import builtin_prompts

    return make_tokenizer([prompt.caption for prompt in builtin_prompts().prompts[:1000]], VOCABULARY)


def make_tokenizer(captions: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE trained on the spot, with Qwen's special tokens and chat template.

    Args:
        captions: to learn from.
        vocabulary: entries, special tokens included.
    """
    from transformers import Qwen2TokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(captions, trainer)
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",  # noqa: S106 - a vocabulary entry
        pad_token="<|endoftext|>",  # noqa: S106
        unk_token=None,
        bos_token=None,
        model_max_length=4096,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )
    tokenizer.chat_template = TEXT_TEMPLATE
    return tokenizer


def _text_encoder(vocabulary: int, eos: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=3 * HIDDEN_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        initializer_range=0.08,
        eos_token_id=eos,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        # The opening <|im_start|> is the same in every prompt and causal: blown up in two dimensions it is the
        # constant first token whose published values are 13,504 and -4,544.
        start = model.model.embed_tokens.weight[vocabulary - len(SPECIAL_TOKENS) + 1]
        start[OUTLIER_DIMENSIONS[0]] += SINK_SCALE
        start[OUTLIER_DIMENSIONS[1]] -= SINK_SCALE / 3
    return model


def _save_pipeline(folder: Path, tokenizer: Any, text_encoder: Any) -> None:
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        ZImagePipeline,
        ZImageTransformer2DModel,
    )

    transformer = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=96,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=HIDDEN_SIZE,
        axes_dims=[16, 16, 16],
        axes_lens=[1024, 64, 64],
    ).eval()
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=256,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    _let_the_prompt_show(transformer, vae)
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    ZImagePipeline(
        scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
    ).save_pretrained(folder)


def _let_the_prompt_show(transformer: Any, vae: Any) -> None:
    """Set random weights so that the prompt's embedding, not the noise, decides what is seen.

    The noisy latents enter almost as a constant; what the picture shows comes from the caption tokens that each
    patch attends to, which its position chooses; and the velocity is large beside the noise it starts from.
    """
    dim = transformer.dim
    with torch.no_grad():
        embed = transformer.all_x_embedder["2-1"]
        embed.weight.mul_(0.02)
        embed.bias.normal_(std=0.3)
        torch.nn.init.orthogonal_(transformer.cap_embedder[1].weight, gain=1.5)
        for block in (*transformer.noise_refiner, *transformer.layers):
            gates = block.adaLN_modulation[0].bias.view(4, dim)
            gates.zero_()
            gates[1], gates[3] = 1.2, 0.3  # tanh of it: attention counts, the feed-forward part a little
        last = transformer.all_final_layer["2-1"].linear
        last.bias.zero_()
        # The same output for the four latent pixels of a patch: areas of colour instead of a grid of dots.
        last.weight.copy_(2.5 * torch.randn(LATENT_CHANNELS, dim).repeat(4, 1))
        for name, parameter in vae.decoder.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()  # biases paint the same texture over every picture
        for convolution in (
            module for module in vae.decoder.modules() if isinstance(module, torch.nn.Conv2d)
        ):
            kernel = convolution.weight
            kernel.copy_(
                kernel.mean(dim=(2, 3), keepdim=True) + 0.5 * (kernel - kernel.mean(dim=(2, 3), keepdim=True))
            )
        colours = vae.decoder.conv_out.weight
        colours.sub_(colours.mean(dim=1, keepdim=True)).mul_(GAIN)  # no cast that all pictures share


def _save_vision_language(folder: Path, tokenizer: Any, text_encoder: Any) -> None:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = text_encoder.config
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": text.vocab_size,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": None,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_heads": 4,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": HIDDEN_SIZE,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1, 2],
            "initializer_range": 0.08,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    _share_ancestor(model, text_encoder)
    model.save_pretrained(folder)
    save_reader_processors(folder, tokenizer, patch_size=16, smallest=65536)


def save_reader_processors(folder: Path, tokenizer: Any, *, patch_size: int, smallest: int) -> None:
    """Write tokenizer and image processor of a Qwen3-VL model.

    Args:
        folder: of the model.
        tokenizer: gets the model's chat template.
        patch_size: pixels of a patch's side.
        smallest: pixels that a picture is enlarged to have at least.
    """
    from transformers import Qwen2VLImageProcessorPil

    tokenizer.chat_template = VL_TEMPLATE
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=patch_size,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": smallest, "longest_edge": 16777216},
    ).save_pretrained(folder)
    # The class name of the slow-free processor is ours to read, not the library's to resolve.
    config_file = folder / "preprocessor_config.json"
    settings = json.loads(config_file.read_text())
    settings["image_processor_type"] = "Qwen2VLImageProcessorFast"
    config_file.write_text(json.dumps(settings, indent=2) + "\n")


def _share_ancestor(model: Any, text_encoder: Any) -> None:
    """Give the vision-language model the text encoder's weights, perturbed, and image tokens with outliers."""
    ours = dict(text_encoder.model.named_parameters())
    with torch.no_grad():
        for name, parameter in model.model.language_model.named_parameters():
            source = ours[name]
            spread = source.std() if source.numel() > 1 else torch.tensor(0.0)
            parameter.copy_(source + 0.05 * spread * torch.randn_like(source))
        merger = model.model.visual.merger.linear_fc2
        for dimension in OUTLIER_DIMENSIONS:
            merger.weight[dimension] *= 30.0


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Saving says nothing: transformers and diffusers draw progress bars of their own."""
    import diffusers
    import transformers

    levels = (transformers.logging.get_verbosity(), diffusers.logging.get_verbosity())
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    diffusers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(levels[0])
        diffusers.logging.set_verbosity(levels[1])
        if bars:
            transformers.logging.enable_progress_bar()
