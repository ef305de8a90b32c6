"""Runs in a real ComfyUI on the CPU: our nodes with its own encoders, at the size of the tiny models.

Arguments: this repository, a work folder, and `--cpu` for ComfyUI. Only sizes that ComfyUI keeps as constants are
changed; both sides have the same weights and ComfyUI's own tokenizer. Prints what was found as JSON.
"""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT, WORK = map(Path, sys.argv[1:3])
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import comfy.text_encoders.qwen3vl as qwen3vl  # noqa: E402
import comfy.text_encoders.z_image as z_image  # noqa: E402
import execution  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402
from comfy.text_encoders import llama  # noqa: E402

sys.path.insert(1, str(ROOT / "tests"))
from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM, Qwen3VLForConditionalGeneration  # noqa: E402

from projector import Projector, VLEmbeddingExtractor  # noqa: E402
from projector.models import tiny  # noqa: E402
from projector.models.text_encoder import TextEncoder  # noqa: E402
from projector.steering.references import steered  # noqa: E402
from steering_support import a_picture, a_steering_projector  # noqa: E402

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": tiny.LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PROMPT = "a red fox in the snow"


def tokenizer():
    """ComfyUI's own vocabulary with the chat template of the model."""
    folder = Path(z_image.__file__).parent / "qwen25_tokenizer"
    made = Qwen2TokenizerFast.from_pretrained(folder)
    made.chat_template = tiny.TEXT_TEMPLATE
    return made


def models():
    """Tiny models of ComfyUI's vocabulary in folders, as transformers has them."""
    torch.manual_seed(0)
    words = tokenizer()
    text = tiny._text_encoder(151936, words.convert_tokens_to_ids("<|im_end|>"))
    tiny._save_pipeline(WORK / "image", words, text)
    tiny._save_vision_language(WORK / "vl", words, text)


def a_clip(module, name, config, folder, model):
    """ComfyUI's CLIP with the weights of a folder."""

    target = SimpleNamespace(
        params={},
        clip=module.te() if name == "qwen3_4b" else module.te(model_type=name),
        tokenizer=module.ZImageTokenizer if name == "qwen3_4b" else module.tokenizer(model_type=name),
    )
    options = {f"{name}_model_config": config, "dtype": torch.float32}
    weights = model.from_pretrained(folder, dtype=torch.float32).state_dict()
    renamed = {key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value
               for key, value in weights.items() if key != "lm_head.weight"}  # fmt: skip
    clip = comfy.sd.CLIP(target, model_options=options)
    found = getattr(clip.cond_stage_model, name).load_sd(renamed)
    left = [key for key in (*found.missing_keys, *found.unexpected_keys) if "lm_head" not in key]
    assert not left, left
    return clip


def distance(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def main():
    for config in (llama.Qwen3_4BConfig, llama.Qwen3_8BConfig):
        config.head_dim = 16
    llama.Qwen3VL_8BConfig.rope_dims = [4, 2, 2]
    qwen3vl.QWEN3VL_VISION["qwen3vl_4b"] = {
        "hidden_size": 48, "intermediate_size": 96, "depth": 4, "deepstack_visual_indexes": [0, 1, 2]
    }  # fmt: skip
    qwen3vl.QWEN3VL_VISION_COMMON |= {"num_heads": 4, "num_position_embeddings": 256}
    models()
    projector_folder = a_steering_projector(WORK, WORK / "projector")
    projector = Projector.from_pretrained(projector_folder)
    text_clip = a_clip(z_image, "qwen3_4b", SIZES, WORK / "image" / "text_encoder", Qwen3ForCausalLM)
    vl_clip = a_clip(qwen3vl, "qwen3vl_4b", SIZES, WORK / "vl", Qwen3VLForConditionalGeneration)

    loaded = asyncio.run(nodes.load_custom_node(str(ROOT / "comfyui")))
    made = {
        name: nodes.NODE_CLASS_MAPPINGS[name]() for name in ("LoadZImageProjector", "ReadZImageReference")
    }
    apply = nodes.NODE_CLASS_MAPPINGS["ApplyZImageReference"]()
    (held,) = made["LoadZImageProjector"].load(str(projector_folder))
    picture = a_picture()
    image = (
        torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, 128, 128, 3).float() / 255
    )
    (by_clip,) = made["ReadZImageReference"].read(held, image, clip=vl_clip)
    (by_folder,) = made["ReadZImageReference"].read(held, image, vision=str(WORK / "vl"))
    extractor = VLEmbeddingExtractor.from_pretrained(
        str(WORK / "vl"), str(projector_folder), dtype=torch.float32
    )
    raw = extractor.extract(picture).raw
    (conditioning,) = nodes.CLIPTextEncode().encode(text_clip, PROMPT)
    encoder = TextEncoder.from_pretrained(str(WORK / "image"), device="cpu", dtype=torch.float32)
    (text,) = encoder.encode([PROMPT])
    found = {}
    for mode in ("concat", "blend"):
        (applied,) = apply.apply(conditioning, by_clip, mode=mode, alpha=0.3, end=0.6)
        expected = steered(projector, [raw], text.embeddings, text.kind, mode=mode, alpha=0.3)
        found[mode] = {
            "distance": distance(applied[0][0][0], expected),
            "mask": int(applied[0][1]["attention_mask"].sum()) if "attention_mask" in applied[0][1] else None,
            "rows": len(expected),
            "ranges": [(one[1].get("start_percent"), one[1].get("end_percent")) for one in applied],
            "outside_is_the_prompt": applied[1][0] is conditioning[0][0],
        }
    prompt = json.loads((ROOT / "comfyui" / "workflow_api.json").read_text())
    for file in ("nodes_sd3.py", "nodes_model_advanced.py"):  # of which the workflow has a node each
        assert asyncio.run(nodes.load_custom_node(str(Path(nodes.__file__).parent / "comfy_extras" / file)))
    _, refused, _, by_node = asyncio.run(execution.validate_prompt("1", prompt, None))
    wrong = [error for node in by_node.values() for error in node["errors"]]
    print(json.dumps({
        "loaded": loaded,
        "prompt": distance(conditioning[0][0][0], text.embeddings),
        "states": distance(by_clip.states[0], raw),
        "states_of_folder": distance(by_folder.states[0], raw),
        "modes": found,
        "refused": refused["type"],
        "workflow": sorted({(error["type"], error.get("extra_info", {}).get("input_name")) for error in wrong}),
    }))  # fmt: skip


with torch.no_grad():
    main()
