"""Pictures to the patches that Qwen3-VL's vision tower takes, with the arithmetic on the device.

The library's image processor spends 0.7 to 1.0 s of CPU on four pictures of 1024², while the device waits. A pixel
has 256 levels, so the processor is asked once what each level becomes; the device then looks pixels up in that table,
and the numbers are the processor's own, bit for bit.

Letters: C colour channels, P patches, H and W pixels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from projector.inference.copies import onto

LEVELS = 256


class PatchMaker:
    """What `Qwen2VLImageProcessorPil` does with RGB pictures, on any device.

    Args:
        processor: `Qwen2VLImageProcessorPil`; its settings of size, rescaling and normalisation are followed.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._table = torch.from_numpy(level_table(processor))

    def __call__(
        self, images: Sequence[Image.Image], device: torch.device | str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut pictures into patches.

        Args:
            images: RGB, of any sizes.
            device: where the patches are wanted.

        Returns:
            (P, C * frames * patch * patch) float32 patches of all pictures, and (pictures, 3) int64 grids of frames,
            rows and columns, which stay on the CPU: a look at them must not wait for the device.
        """
        self._table = self._table.to(device)
        sized = [self._sized(image) for image in images]
        patches = torch.cat([self._patches(onto(device, torch.from_numpy(pixels))) for pixels in sized])
        size = self._processor.patch_size
        grids = [[1, pixels.shape[1] // size, pixels.shape[2] // size] for pixels in sized]
        return patches, torch.tensor(grids)

    def _sized(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(C, H, W) uint8 pixels, resized by the library where its limits ask for that."""
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        processor = self._processor
        pixels = np.moveaxis(np.asarray(image), -1, 0)
        if processor.do_resize:
            factor, size = processor.patch_size * processor.merge_size, processor.size
            wanted = smart_resize(
                image.height,
                image.width,
                factor=factor,
                min_pixels=size["shortest_edge"],
                max_pixels=size["longest_edge"],
            )
            if wanted != (image.height, image.width):
                pixels = processor.resize(pixels, size=size, resample=processor.resample, factor=factor)
        return np.array(pixels)  # of its own: PIL's memory must not be written to

    def _patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """(C, H, W) uint8 to (P, C * frames * patch * patch) float32, in the library's order."""
        processor = self._processor
        patch, merge, frames = processor.patch_size, processor.merge_size, processor.temporal_patch_size
        channels, height, width = pixels.shape
        values = torch.stack([table[levels.int()] for table, levels in zip(self._table, pixels, strict=True)])
        rows, columns = height // patch, width // patch
        cut = values.reshape(channels, rows // merge, merge, patch, columns // merge, merge, patch)
        cut = cut.permute(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
        cut = cut.expand(*cut.shape[:5], frames, *cut.shape[6:])  # a still picture is the same in every frame
        return cut.reshape(rows * columns, channels * frames * patch * patch)


def level_table(processor: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What a processor makes of each level of each channel.

    Args:
        processor: with `rescale` and `normalize`.

    Returns:
        (C, 256) float32.
    """
    levels: Any = np.broadcast_to(np.arange(LEVELS, dtype=np.uint8)[None, :, None], (3, LEVELS, 1))
    if processor.do_rescale:
        levels = processor.rescale(levels, processor.rescale_factor)
    if processor.do_normalize:
        levels = processor.normalize(levels, processor.image_mean, processor.image_std)
    table: np.ndarray[Any, np.dtype[np.float32]] = np.array(levels[..., 0], dtype=np.float32)
    return table
