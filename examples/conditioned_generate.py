"""From a reference picture, a prompt and a projector to a Z-Image picture.

    python examples/conditioned_generate.py --image cat.jpg --prompt "a lighthouse at dusk" --projector runs/mlp \
        --image-model models/Z-Image-Turbo --vl-model models/Qwen3-VL-4B-Instruct --output lighthouse.png

The three models are loaded one after the other, so that a device needs room for the largest alone.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from PIL import Image

from projector import Projector, VLEmbeddingExtractor
from projector.inference.image_generator import ImageGenerator
from projector.inference.text_encoder import SampleError, TextEncoder


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", required=True, help="reference picture")
    parser.add_argument("--prompt", required=True, help="what the new picture shows")
    parser.add_argument("--projector", required=True, help="folder that training or export wrote, or s3://")
    parser.add_argument("--image-model", required=True, help="folder of the Z-Image pipeline")
    parser.add_argument("--vl-model", required=True, help="folder of the Qwen3-VL model")
    parser.add_argument("--output", required=True, help="picture to write, such as picture.png")
    parser.add_argument(
        "--mode",
        choices=("concat", "blend"),
        default="concat",
        help="behind the prompt's rows, or mixed into them",
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="of blend: 0 is prompt only, 1 picture only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--height", type=int, default=1024, help="pixels, a multiple of 16")
    parser.add_argument("--width", type=int, default=1024, help="pixels, a multiple of 16")
    parser.add_argument(
        "--steps", type=int, default=8, help="denoising steps; Z-Image-Turbo is distilled to 8"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Make one picture; returns the exit code."""
    options = arguments(argv)
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32

    # What the prompt says, as Z-Image's own pipeline encodes it: (T, D).
    encoder = TextEncoder.from_pretrained(options.image_model, device=options.device, dtype=dtype)
    text = encoder.encode([options.prompt])[0]
    if isinstance(text, SampleError):
        print(f"error: {text}", file=sys.stderr)
        return 2
    del encoder

    # What the picture shows, read as the projector was trained to see it: (S, D).
    projector = Projector.from_pretrained(options.projector)
    extractor = VLEmbeddingExtractor.from_pretrained(
        options.vl_model, options.projector, device=options.device, dtype=dtype
    )
    beside = None if projector.text_mode == "none" else options.prompt
    with Image.open(options.image) as picture:
        seen = extractor.extract(picture, beside, hidden_layer=projector.layer)
    del extractor

    conditioning = projector.conditioning(
        seen.raw, text.embeddings, text.kind, mode=options.mode, alpha=options.alpha
    ).to(text.embeddings)
    generator = ImageGenerator.from_pretrained(
        options.image_model,
        device=options.device,
        dtype=dtype,
        height=options.height,
        width=options.width,
        steps=options.steps,
    )
    generator.generate([conditioning], [options.seed])[0].save(options.output)
    print(f"{options.output}: {seen.num_tokens} picture tokens in a conditioning of {len(conditioning)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
