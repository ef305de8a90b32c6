"""Whether a config.json says what a projector's weights may be applied to."""

import re
from typing import Any, get_args

from projector.models.int8 import Quantize
from projector.network.checkpoint import CONFIG
from projector.options import VL_TOKENS, TextMode, Tokens
from shards.errors import UsageError


def check_description(config: dict[str, Any], width: int, root: str) -> None:
    """Refuse a config.json that does not say what the weights may be applied to.

    Args:
        config: its content.
        width: that of the weights.
        root: where both are, for errors.

    Raises:
        UsageError: names the key, its value and what is expected.
    """
    dataset, template = config.get("dataset", {}), config.get("template") or {"vl_limit": 0}
    layer, said, mode, tokens = (config.get(key) for key in ("layer", "width", "text_mode", "tokens"))
    pooling = dataset.get("vl_tokens", "all") if isinstance(dataset, dict) else dataset
    limit = template.get("vl_limit") if isinstance(template, dict) else template
    recorded = dataset if isinstance(dataset, dict) else {}
    picture, rounding = recorded.get("picture", {}), recorded.get("quantize", "none")
    for key, value, right, allowed in (
        ("layer", layer, type(layer) is int and layer < 0, "counted from the end, as -8 is"),
        ("width", said, said in (width, None), f"{width}, that of the weights"),
        ("text_mode", mode, mode in get_args(TextMode), f"one of {', '.join(get_args(TextMode))}"),
        ("tokens", tokens, tokens in get_args(Tokens), f"one of {', '.join(get_args(Tokens))}"),
        ("dataset.vl_tokens", pooling, re.fullmatch(VL_TOKENS, str(pooling)), "all or pooled:N"),
        (
            "dataset.quantize",
            rounding,
            rounding in get_args(Quantize),
            f"one of {', '.join(get_args(Quantize))}",
        ),
        ("dataset.picture", picture, _is_size(picture), "height and width, or max_side, in pixels"),
        ("template.vl_limit", limit, type(limit) in (int, float), "a number"),
    ):
        if not right:
            raise UsageError(
                f"{root}/{CONFIG}: {key} is {value!r}, expected {allowed}; train or export again"
            )


def _is_size(picture: Any) -> bool:
    return isinstance(picture, dict) and (
        set(picture) in ({"height", "width"}, {"max_side"}, set())
        and all(type(side) is int and side > 0 for side in picture.values())
    )
