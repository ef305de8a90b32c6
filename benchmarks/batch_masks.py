"""How many batches of built-in prompts need an attention mask: in plan order, and made up by length as `build` does.

    python benchmarks/batch_masks.py --image DIR                    the tokenizer of a Z-Image pipeline
    python benchmarks/batch_masks.py --ranks qwen.tiktoken          Qwen's vocabulary as PyPI's dashscope carries it

diffusers pads each conditioning to a multiple of 32 rows by itself, and passes a mask where those of a batch then
differ; torch's attention leaves its fastest kernel as soon as there is one.
"""

import argparse
import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from projector.inference.frozen_transformer import padded_length
from projector.making.shard_maker import by_length
from shards.prompts.builtin import builtin_prompts

TEMPLATE_ROWS = 8  # <|im_start|> user \n, and <|im_end|> \n <|im_start|> assistant \n
# Qwen's split into words, which Python's own expressions say for letters and digits of any script.
WORDS = re.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main() -> None:
    """Print the share of masked batches, for each batch size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", help="folder of a Z-Image pipeline")
    parser.add_argument(
        "--ranks", type=Path, help="vocabulary in tiktoken's form, without a tokenizer folder"
    )
    parser.add_argument("--samples", type=int, default=6400)
    parser.add_argument("--shard", type=int, default=64, help="samples in a shard")
    parser.add_argument("--language", choices=("en", "zh"), default="en")
    words = parser.parse_args()
    rows_of = by_tokenizer(words.image) if words.image else by_ranks(words.ranks)
    prompts = builtin_prompts(words.language).prompts[: words.samples]
    lengths = [padded_length(rows_of(prompt.caption)) for prompt in prompts]
    shards = [lengths[start : start + words.shard] for start in range(0, len(lengths), words.shard)]
    found = {
        "padded rows": dict(sorted(Counter(lengths).items())),
        "masked, plan order": {size: masked(shards, size, in_order) for size in (2, 4, 8)},
        "masked, by length": {size: masked(shards, size, by_length) for size in (2, 4, 8)},
    }
    print(json.dumps(found, indent=1))


def masked(
    shards: Sequence[Sequence[int]], size: int, cut: Callable[[Sequence[int], int], list[list[int]]]
) -> float:
    """Share of the batches with more than one padded length."""
    batches = [[shard[place] for place in places] for shard in shards for places in cut(shard, size)]
    return round(sum(len(set(batch)) > 1 for batch in batches) / len(batches), 4)


def in_order(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Batches as the samples come."""
    return [list(range(start, min(start + size, len(lengths)))) for start in range(0, len(lengths), size)]


def by_tokenizer(folder: str) -> Callable[[str], int]:
    """Rows of a caption's conditioning, by a pipeline's own tokenizer and template."""
    from transformers import AutoTokenizer

    from projector.inference.text_encoder import template_around

    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
    prefix, suffix = template_around(tokenizer, lambda text: text)
    return lambda caption: len(tokenizer(f"{prefix}{caption}{suffix}").input_ids)


def by_ranks(file: Path) -> Callable[[str], int]:
    """The same by a vocabulary with its merges' ranks."""
    ranks = {
        base64.b64decode(token): int(rank) for token, rank in map(str.split, file.read_text().splitlines())
    }

    @cache
    def tokens(word: str) -> int:
        parts = [bytes([byte]) for byte in word.encode()]
        while len(parts) > 1:
            pairs = [ranks.get(parts[at] + parts[at + 1], len(ranks)) for at in range(len(parts) - 1)]
            at = pairs.index(min(pairs))
            if pairs[at] == len(ranks):
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return len(parts)

    return lambda caption: TEMPLATE_ROWS + sum(tokens(word) for word in WORDS.findall(caption))


if __name__ == "__main__":
    main()
