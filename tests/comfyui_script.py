"""Runs in a real ComfyUI on the CPU: `workflow_api.json` with its own loaders, encoders and sampler, on tiny models.

Arguments: this repository and a work folder. The models are single files under the workflow's names. Only sizes that
ComfyUI keeps as constants are changed; both sides have the same weights and ComfyUI's own tokenizer. Prints what was
found as JSON.
"""

import asyncio
import json
import shutil
import sys
from dataclasses import make_dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

ROOT, WORK = map(Path, sys.argv[1:3])
BASE = WORK / "comfyui"  # of ComfyUI's models, input and output
(BASE / "input").mkdir(parents=True)
sys.argv = [sys.argv[0], "--cpu", "--fp32-unet", "--fp32-vae", "--base-directory", str(BASE)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_detection as model_detection  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.text_encoders.qwen3vl as qwen3vl  # noqa: E402
import comfy.text_encoders.z_image as z_image  # noqa: E402
import execution  # noqa: E402
import nodes  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.lumina import model as lumina  # noqa: E402
from comfy.text_encoders import llama  # noqa: E402

sys.path.insert(1, str(ROOT / "tests"))
from diffusers import AutoencoderKL  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import Qwen2TokenizerFast  # noqa: E402

from projector import Projector, VLEmbeddingExtractor, ZImageProjectorPipeline  # noqa: E402
from projector.inference.text_encoder import TextEncoder  # noqa: E402
from projector.models import tiny  # noqa: E402
from projector.steering.references import steered  # noqa: E402
from single_file_support import write_single_files  # noqa: E402
from steering_support import a_picture, a_steering_projector  # noqa: E402

PICTURES = {"first.png": a_picture(3), "second.png": a_picture(4)}
SIDE = 128
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": tiny.LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {"hidden_size": 48, "intermediate_size": 96, "depth": 4, "deepstack_visual_indexes": [0, 1, 2]}
TRANSFORMER = {
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [16, 16, 16],
    "axes_lens": [1024, 64, 64],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # but for the sizes what ComfyUI sets for Z-Image


def make_models():
    """Tiny models of ComfyUI's vocabulary as folders, and as single files where the workflow looks for them."""
    torch.manual_seed(0)
    words = Qwen2TokenizerFast.from_pretrained(Path(z_image.__file__).parent / "qwen25_tokenizer")
    words.chat_template = tiny.TEXT_TEMPLATE
    text = tiny._text_encoder(151936, words.convert_tokens_to_ids("<|im_end|>"))
    tiny._save_pipeline(WORK / "image", words, text)
    tiny._save_vision_language(WORK / "vl", words, text)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128), layers_per_block=2, latent_channels=16, scaling_factor=0.3611,
        shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False, **kinds
    )  # fmt: skip
    shutil.rmtree(WORK / "image" / "vae")
    vae.save_pretrained(WORK / "image" / "vae")
    projector = a_steering_projector(WORK, WORK / "projector")
    made = write_single_files(WORK / "image", BASE / "files")
    decoder = {key: value for key, value in load_file(made["vae"]).items() if key.startswith("decoder.")}
    save_file(decoder, made["vae"])  # ComfyUI's encoder has one size
    for folder, file in (
        ("diffusion_models", made["transformer"]),
        ("text_encoders", made["text_encoder"]),
        ("vae", made["vae"]),
    ):
        (BASE / "models" / folder).mkdir(parents=True)
        file.rename(BASE / "models" / folder / file.name)
    (BASE / "models" / "projectors").mkdir()
    shutil.copy(WORK / "vl" / "model.safetensors", BASE / "models/text_encoders/qwen3vl_4b.safetensors")
    shutil.copy(projector / "model.safetensors", BASE / "models/projectors/my-projector.safetensors")
    for name, picture in PICTURES.items():
        picture.save(BASE / "input" / name)
    half = Image.new("RGB", (SIDE, SIDE))
    half.paste("red", (0, 0, SIDE // 2, SIDE))
    half.save(BASE / "input" / "half.png")


def let_comfyui_take_the_sizes():
    """Constants and detection by size, nothing that computes."""

    def resized(config, **more):
        fields = [(name, int, value) for name, value in TEXT.items()]
        made = make_dataclass(config.__name__, fields, bases=(config,))
        made.head_dim = 16
        for name, value in more.items():
            setattr(made, name, value)
        return made

    llama.Qwen3_4BConfig = resized(llama.Qwen3_4BConfig)
    qwen3vl.QWEN3VL_CONFIGS["qwen3vl_4b"] = resized(llama.Qwen3VL_4BConfig, rope_dims=[4, 2, 2])
    qwen3vl.QWEN3VL_VISION["qwen3vl_4b"] = VISION
    qwen3vl.QWEN3VL_VISION_COMMON |= {"num_heads": 4, "num_position_embeddings": 256}
    kinds = comfy.sd.TEModel
    comfy.sd.detect_te_model = lambda found: (
        kinds.QWEN3VL_4B if "model.visual.deepstack_merger_list.0.norm.weight" in found else kinds.QWEN3_4B
    )
    detected = model_detection.detect_unet_config
    model_detection.detect_unet_config = lambda *given, **named: detected(*given, **named) | TRANSFORMER
    embedder = lumina.TimestepEmbedder
    lumina.TimestepEmbedder = lambda _, output_size, **more: embedder(1024, output_size=96, **more)
    comfy.supported_models.ZImage.unet_config = {"image_model": "lumina2", "dim": 96}


class Keep:
    """A node that keeps what it is given."""

    FUNCTION, OUTPUT_NODE, RETURN_TYPES, CATEGORY = "keep", True, (), "test"

    @classmethod
    def INPUT_TYPES(cls):
        kinds = {
            "plain": "CONDITIONING",
            "steered": "CONDITIONING",
            "reference": "ZIMAGE_REFERENCE",
            "image": "IMAGE",
        }
        return {"required": {name: (kind,) for name, kind in kinds.items()}}

    def keep(self, **given):
        Keep.found = given
        return {}


async def load_nodes():
    nodes.NODE_CLASS_MAPPINGS["Keep"] = Keep
    extras = Path(nodes.__file__).parent / "comfy_extras"
    for path in (ROOT / "comfyui", extras / "nodes_sd3.py", extras / "nodes_model_advanced.py"):
        assert await nodes.load_custom_node(str(path)), path


def run(executor, changes=(), mask=False):
    """The workflow at a small size, and with other inputs of its last node or a mask; returns what it made."""
    prompt = json.loads((ROOT / "comfyui" / "workflow_api.json").read_text())
    prompt["14"]["inputs"] |= {"width": SIDE, "height": SIDE}
    prompt["12"]["inputs"] |= dict(changes)
    if mask:
        prompt["mask"] = {"class_type": "LoadImageMask", "inputs": {"image": "half.png", "channel": "red"}}
        prompt["12"]["inputs"]["mask"] = ["mask", 0]
    inputs = {"plain": ["10", 0], "steered": ["12", 0], "reference": ["8", 0], "image": ["17", 0]}
    prompt["keep"] = {"class_type": "Keep", "inputs": inputs}
    valid, error, outputs, by_node = asyncio.run(execution.validate_prompt("1", prompt, None))
    assert valid, (error, by_node)
    executor.execute(prompt, "1", {}, outputs)
    assert executor.success, executor.status_messages[-1]
    return prompt, dict(Keep.found)


def masked_picture(pipeline, noise, inside, outside, mask):
    """Euler steps with the model's output under one conditioning where the mask is 1, else under the other."""
    latents = noise
    for now, after in pairwise(pipeline.scheduler.sigmas):
        given = [latents[0][:, None]], (1 - now)[None]
        seen, plain = (pipeline.transformer(*given, [each]).sample[0][:, 0] for each in (inside, outside))
        latents = latents - (after - now) * (mask * seen + (1 - mask) * plain)
    settings = pipeline.vae.config
    pixels = pipeline.vae.decode(latents / settings.scaling_factor + settings.shift_factor).sample
    return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def read_grafted():
    """States by ComfyUI's two encoders, then by its Qwen3-VL alone again; and the library's of the graft."""
    folder = a_steering_projector(WORK, WORK / "graft", reader="graft")
    load, read = (
        nodes.NODE_CLASS_MAPPINGS[name]() for name in ("LoadZImageProjector", "ReadZImageReference")
    )
    (grafted,), (plain,) = load.load(str(folder)), load.load(str(WORK / "projector"))
    (vision,) = nodes.CLIPLoader().load_clip("qwen3vl_4b.safetensors", "stable_diffusion")
    (text,) = nodes.CLIPLoader().load_clip("qwen_3_4b.safetensors", "lumina2")
    pixels = torch.frombuffer(bytearray(PICTURES["first.png"].tobytes()), dtype=torch.uint8)
    image = pixels.view(1, SIDE, SIDE, 3).float() / 255
    (found,) = read.read(grafted, image, clip=vision, text_encoder=text)
    (again,) = read.read(plain, image, clip=vision)
    extractor = VLEmbeddingExtractor.from_pretrained(
        str(WORK / "vl"), str(folder), dtype=torch.float32, language=str(WORK / "image")
    )
    return found.states[0], again.states[0], extractor.extract(PICTURES["first.png"]).raw


def distance(found, expected):
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def main():
    make_models()
    let_comfyui_take_the_sizes()
    asyncio.run(load_nodes())
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *_: None)
    caches = {"lru": 0, "ram": 0, "ram_inactive": 0}
    executor = execution.PromptExecutor(server, execution.CacheType.CLASSIC, caches)
    prompt, shipped = run(executor)
    _, whole = run(executor, {"end": 1.0})
    _, masked = run(executor, {"end": 1.0}, mask=True)
    _, blended = run(executor, {"mode": "blend", "alpha": 0.3})

    vision, words = str(WORK / "vl"), prompt["10"]["inputs"]["text"]
    projector = Projector.from_pretrained(WORK / "projector")
    extractor = VLEmbeddingExtractor.from_pretrained(vision, str(WORK / "projector"), dtype=torch.float32)
    raw = [extractor.extract(picture).raw for picture in PICTURES.values()]
    encoder = TextEncoder.from_pretrained(str(WORK / "image"), device="cpu", dtype=torch.float32)
    (text,) = encoder.encode([words])
    one = steered(projector, raw[:1], text.embeddings, text.kind)
    both = steered(projector, raw, text.embeddings, text.kind, weights=[1.0, 0.4])
    blend = steered(projector, raw[1:], one, weights=[0.4], mode="blend", alpha=0.3)
    pipeline = ZImageProjectorPipeline.from_pretrained(
        str(WORK / "image"), projector=WORK / "projector", vision=vision, dtype=torch.float32
    )
    noise = torch.randn(1, 16, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(0))
    picture = pipeline(
        words, reference=list(PICTURES.values()), weights=[1.0, 0.4], num_inference_steps=8, guidance_scale=0.0,
        height=SIDE, width=SIDE, latents=noise, output_type="pt"
    ).images.permute(0, 2, 3, 1)  # fmt: skip
    by_graft, after_graft, expected = read_grafted()
    half = torch.zeros(SIDE // 8, SIDE // 8)
    half[:, : SIDE // 16] = 1
    entries = shipped["steered"]
    print(json.dumps({
        "prompt": distance(shipped["plain"][0][0][0], text.embeddings),
        "states": distance(shipped["reference"].states[0], raw[0]),
        "both": distance(entries[0][0][0], both),
        "first": distance(entries[1][0][0], one),
        "blend": distance(blended["steered"][0][0][0], blend),
        "graft": distance(by_graft, expected),
        "after_graft": distance(after_graft, raw[0]),
        "graft_changes": distance(by_graft, raw[0]),
        "ranges": [(values.get("start_percent"), values.get("end_percent")) for _, values in entries],
        "rows": [(tensor.shape[1], int(values["attention_mask"].sum())) for tensor, values in entries
                 if "attention_mask" in values],
        "picture": distance(whole["image"], picture),
        "masked": distance(masked["image"], masked_picture(pipeline, noise, both, one, half)),
        "changes": [distance(other["image"], picture) for other in (shipped, masked)],
        "saved": len(list((BASE / "output").glob("steered*.png"))),
    }))  # fmt: skip


with torch.no_grad():
    main()
