"""The size that a reference picture is brought to before it is read: that of the pictures a projector was trained on.

A picture of 4000 x 3000 pixels would be 11,750 vision-language tokens to a projector that saw 1,024 of each picture.
"""

from collections.abc import Mapping

from PIL import Image

TOKEN_SIDE = 32  # pixels of a token of Qwen3-VL: patches of 16, merged two by two (preprocessor_config.json)
# Of projectors that were saved before sizes were recorded: the longest side that `build` and `import` have by default.
UNRECORDED = {"max_side": 1024}


def to_training_size(picture: Image.Image, size: Mapping[str, int]) -> Image.Image:
    """Bring a picture to the size of the training pictures; doing so again changes nothing.

    Args:
        picture: upright.
        size: `height` and `width` of pictures that were made, all of one size: any other picture gets their number
            of tokens, in its own proportions. Or `max_side` of pictures that were imported: larger ones are shrunk,
            as `import` shrinks them.

    Returns:
        the picture itself where it has the size.
    """
    width, height = picture.size
    if "max_side" in size:
        longer = max(picture.size)
        if longer <= size["max_side"]:
            return picture
        wanted = (
            max(1, round(width * size["max_side"] / longer)),
            max(1, round(height * size["max_side"] / longer)),
        )
    elif picture.size == (size["width"], size["height"]):
        return picture
    else:
        tokens = max(1, round(size["height"] / TOKEN_SIDE)) * max(1, round(size["width"] / TOKEN_SIDE))
        shorter = max(1, round((tokens * min(picture.size) / max(picture.size)) ** 0.5))
        sides = (tokens // shorter * TOKEN_SIDE, shorter * TOKEN_SIDE)
        wanted = sides if width > height else sides[::-1]
    return picture if picture.size == wanted else picture.resize(wanted, Image.Resampling.LANCZOS)
