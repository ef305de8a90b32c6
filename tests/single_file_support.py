"""Writes the parts of a diffusers folder as the single files that ComfyUI has: Z-Image's own names, the original VAE's.

The names are those of ComfyUI's `z_image_to_diffusers` (comfy/utils.py) and of the VAE of stable diffusion.
"""

import re

import torch
from safetensors.torch import load_file, save_file

TRANSFORMER = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_k.": ".attention.k_norm.",
    ".attention.norm_q.": ".attention.q_norm.",
}
VAE = (
    (r"coder\.mid_block\.resnets\.(\d)\.", lambda found: f"coder.mid.block_{int(found[1]) + 1}."),
    (r"coder\.mid_block\.attentions\.0\.", "coder.mid.attn_1."),
    (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)\.", r"encoder.down.\1.block.\2."),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"decoder\.up_blocks\.(\d)\.resnets\.(\d)\.", lambda found: f"decoder.up.{3 - int(found[1])}.block.{found[2]}."),
    (r"decoder\.up_blocks\.(\d)\.upsamplers\.0\.", lambda found: f"decoder.up.{3 - int(found[1])}.upsample."),
    (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
    (r"\.attn_1\.to_(q|k|v)\.", r".attn_1.\1."),
    (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)  # fmt: skip


def single_transformer(state):
    """Z-Image's own names; query, key and value as one; a last norm that nothing uses, as the published file has."""
    made = {}
    for key, value in state.items():
        if ".attention.to_q." in key:
            parts = [state[key.replace("to_q", name)] for name in ("to_q", "to_k", "to_v")]
            made[key.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".attention.to_k." not in key and ".attention.to_v." not in key:
            for ours, theirs in TRANSFORMER.items():
                key = key.replace(ours, theirs)
            made[key] = value
    width = state["cap_pad_token"].shape[-1]
    return made | {"norm_final.weight": torch.ones(width, dtype=state["cap_pad_token"].dtype)}


def single_vae(state):
    """The original names of a VAE of four blocks, its attention as convolutions."""
    made = {}
    for key, value in state.items():
        for pattern, theirs in VAE:
            key = re.sub(pattern, theirs, key)
        convolution = ".attn_1." in key and value.dim() == 2
        made[key] = value[:, :, None, None] if convolution else value
    return made


def write_single_files(image, folder):
    """The three files of a Z-Image folder, by part.

    Args:
        image: pipeline folder.
        folder: gets them, under the names of those that are published.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for part, name, convert in (
        ("transformer", "z_image_turbo_bf16.safetensors", single_transformer),
        ("text_encoder", "qwen_3_4b.safetensors", dict),
        ("vae", "ae.safetensors", single_vae),
    ):
        state = {}
        for file in sorted((image / part).glob("*.safetensors")):
            state |= load_file(file)
        made[part] = folder / name
        save_file({key: value.contiguous() for key, value in convert(state).items()}, made[part])
    return made
