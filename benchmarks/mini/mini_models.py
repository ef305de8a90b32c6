"""The miniature models before they have learnt anything: the real classes at small sizes."""

from typing import Any

import torch

from projector.models.tiny import SPECIAL_TOKENS

WIDTH = 128
BLOCKS = 8
HEADS = 4
TRANSFORMER_WIDTH = 96
LATENT_CHANNELS = 16
SIDE = 64


def make_text_encoder(tokenizer: Any) -> Any:
    """`Qwen3ForCausalLM`, width 128, eight blocks."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=320,
            num_hidden_layers=BLOCKS,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def make_decoder() -> Any:
    """`AutoencoderKL`, factor 8, 16 channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def make_transformer() -> Any:
    """`ZImageTransformer2DModel`, width 96, six blocks, whose gates are open and whose output is zero at first."""
    from diffusers import ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=TRANSFORMER_WIDTH,
        n_layers=6,
        n_refiner_layers=1,
        n_heads=HEADS,
        n_kv_heads=HEADS,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 8, 8],
        axes_lens=[1024, 64, 64],
    )
    with torch.no_grad():
        for block in (*transformer.noise_refiner, *transformer.layers):
            block.adaLN_modulation[0].weight.mul_(0.1)
            gates = block.adaLN_modulation[0].bias.view(4, -1)
            gates.zero_()
            gates[1], gates[3] = 0.5, 0.5
        last = transformer.all_final_layer["2-1"].linear
        last.weight.zero_()
        last.bias.zero_()
    return transformer


def make_reader(tokenizer: Any, text: Any) -> Any:
    """`Qwen3VLForConditionalGeneration` whose language model is the text encoder; 64 patches make 16 tokens."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    of_text = text.config
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "tie_word_embeddings",
        "eos_token_id",
        "bos_token_id",
    )
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config={name: getattr(of_text, name) for name in same}
            | {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_section": [8, 4, 4],
                    "mrope_interleaved": True,
                }
            },
            vision_config={
                "depth": 4,
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_heads": 4,
                "patch_size": 8,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "out_hidden_size": of_text.hidden_size,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1, 2],
            },
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=True,
        )
    )
    model.model.language_model.load_state_dict(text.model.state_dict())
    return model
