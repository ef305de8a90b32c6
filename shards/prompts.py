"""Prompts: the built-in prompt space, and prompt files of users.

The built-in space follows the guide's categories (content types, styles, subjects): 150 cells of equal size, walked
so that every prefix covers them evenly.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shards.errors import UsageError
from shards.plan import normalise_caption, sample_id

CONTENT_TYPES = ("photograph", "illustration", "abstract art", "text-heavy image", "complex scene")
STYLES = ("photorealistic", "painterly", "flat graphic", "vintage", "minimalist")
SUBJECTS = ("people", "animals", "objects", "architecture", "nature", "abstract concepts")

PER_CELL = 168  # 150 cells of 168: 25,200 prompts, more than the 20,000 pairs the attention variant wants
LONGEST_LINE = 20_000  # characters; a caption is cut nowhere, and beyond this a file is not a prompt file
MAX_FILE_BYTES = 1 << 30
CAPTION_COLUMNS = ("prompt", "caption", "text")
CATEGORY_COLUMNS = ("content", "style", "subject")

# What is seen, by subject: 24 things each, so that a cell's 168 prompts are 24 things in 7 settings.
_THINGS = {
    "people": (
        "an elderly fisherman mending a net", "a violinist in a doorway", "a child chasing soap bubbles",
        "a baker dusting loaves with flour", "two friends laughing on a bench", "a dancer mid-leap",
        "a mechanic wiping her hands", "a reader lost in a thick book", "a street musician with an accordion",
        "a nurse at the end of a shift", "a mountain climber tying a rope", "a potter shaping a bowl",
        "a family sharing dinner", "a cyclist in a yellow raincoat", "a chess player deep in thought",
        "a florist arranging tulips", "a choir singing by candlelight", "a farmer leaning on a gate",
        "a young astronaut holding a helmet", "a tailor measuring cloth", "a crowd under umbrellas",
        "a grandmother knitting", "a surfer carrying a board", "a teacher at a blackboard",
    ),
    "animals": (
        "a red fox curled asleep", "a heron standing in shallow water", "two horses running side by side",
        "a tabby cat on a windowsill", "a barn owl with spread wings", "an octopus unfolding its arms",
        "a herd of elephants at a waterhole", "a hummingbird at a flower", "a sheepdog watching its flock",
        "a polar bear and her cub", "a koi pond seen from above", "a stag with wide antlers",
        "a parrot cracking a nut", "a sea turtle gliding", "a hedgehog among fallen leaves",
        "a flock of starlings turning", "a sleeping leopard on a branch", "a rooster on a fence post",
        "a whale breaking the surface", "a spider on a dewy web", "a penguin colony huddled together",
        "a camel resting by a well", "a squirrel holding an acorn", "a bee landing on clover",
    ),
    "objects": (
        "a dented copper kettle", "a pair of worn leather boots", "a glass jar of buttons",
        "a brass telescope on a tripod", "a stack of hand-bound books", "a blue enamel teapot",
        "a wooden chess set", "an old film camera", "a bicycle leaning on a wall", "a bowl of ripe lemons",
        "a typewriter with a blank page", "a ceramic vase with one stem", "a tangle of coloured wires",
        "a pocket watch with an open lid", "a loaf of bread on a board", "a row of paint tubes",
        "a violin in its case", "a lantern with a cracked pane", "a folded paper crane",
        "a toolbox full of spanners", "a perfume bottle of cut glass", "a stack of porcelain plates",
        "a globe on a brass stand", "a pair of round spectacles",
    ),
    "architecture": (
        "a lighthouse on a rocky point", "a spiral staircase seen from below", "a covered market hall",
        "a stone bridge over a narrow river", "a glass office tower", "a row of tall canal houses",
        "a desert fortress of red clay", "a library with a vaulted ceiling", "a wooden pier at low tide",
        "a courtyard with a tiled fountain", "a chapel on a hilltop", "a concrete housing block",
        "a greenhouse of iron and glass", "a railway station concourse", "a windmill among fields",
        "a lane of crooked cottages", "a theatre with velvet seats", "a rooftop garden",
        "a temple gate in the mist", "an abandoned factory floor", "a city square with arcades",
        "a tea house beside a pond", "a suspension bridge", "a subway platform",
    ),
    "nature": (
        "a waterfall dropping into a green pool", "a birch forest", "sand dunes with sharp ridges",
        "a thunderstorm over open plains", "a frozen lake with cracks", "a meadow full of poppies",
        "a volcano with a thin plume", "a coral reef", "a mountain pass", "a river delta seen from the air",
        "a mossy fallen trunk", "a field of ripe barley", "a cave with hanging stalactites",
        "a bamboo grove", "a rocky coast with spray", "a lavender hillside", "a glacier tongue",
        "an oak standing alone", "a marsh with tall reeds", "a canyon with layered walls",
        "cherry trees in bloom", "a night sky full of stars", "a hot spring with rising steam",
        "a garden path after rain",
    ),
    "abstract concepts": (
        "the passing of time", "a memory fading away", "the balance of order and chaos", "silence",
        "a sudden idea", "the pull of gravity", "hope after a long winter", "the rhythm of a city",
        "loneliness in a crowd", "the growth of knowledge", "an echo", "the edge of sleep",
        "a promise kept", "curiosity", "the weight of a decision", "a journey without a map",
        "harmony between opposites", "the speed of thought", "the depth of the sea as a feeling",
        "a secret shared", "the moment before a storm", "renewal", "the infinite in a small thing",
        "courage",
    ),
}  # fmt: skip

# How it is shown, by content type: seven settings each, whole phrases that read on after the thing.
_SETTINGS = {
    "photograph": (
        "in soft morning light, shallow depth of field", "at dusk with long shadows",
        "under an overcast sky, muted colours",
        "in hard midday sun, high contrast", "lit by a single window from the left", "in light rain, with reflections",
        "seen from a low angle against the sky",
    ),
    "illustration": (
        "as a storybook illustration in warm colours", "as a cartoon with bold outlines",
        "as an anime frame with clear skies",
        "as an ink drawing with a light wash", "as an editorial illustration in three colours",
        "as a pencil sketch on rough paper", "as a vector illustration with rounded shapes",
    ),
    "abstract art": (
        "dissolved into overlapping circles and arcs", "suggested by torn paper in blue and ochre",
        "as a pattern of repeating triangles", "as flowing lines of colour on a dark ground",
        "reduced to texture, scratches and stains", "as a mosaic of small bright tiles",
        "as soft clouds of pigment bleeding into each other",
    ),
    "text-heavy image": (
        'on a poster that says "OPEN DAY" in large letters', 'on a book cover titled "The Long Way Home"',
        "on a magazine page with two columns of text", 'beside a hand-painted sign reading "Fresh Today"',
        "in a diagram with labels and arrows", 'on a postcard with the words "Wish you were here"',
        "on the front page of a newspaper under a bold headline",
    ),
    "complex scene": (
        "in a busy street market with stalls and lanterns", "in a cluttered workshop full of tools and shelves",
        "during a festival with flags and fireworks", "in a wide panorama with many small figures",
        "in a crowded harbour among boats, crates and gulls", "in a garden party with tables, guests and dogs",
        "among ruins overgrown with vines, birds overhead",
    ),
}  # fmt: skip

_STYLE_PHRASES = {
    "photorealistic": "photorealistic, with fine detail and natural colour",
    "painterly": "painterly, with visible brush strokes and rich tones",
    "flat graphic": "in a flat graphic style with clean shapes and few colours",
    "vintage": "with a vintage look, faded inks and slight grain",
    "minimalist": "minimalist, with wide empty space and a quiet palette",
}


@dataclass(frozen=True)
class Prompt:
    """A caption and where it stands in the prompt space; categories are empty where unknown."""

    caption: str
    content: str = ""
    style: str = ""
    subject: str = ""

    @property
    def identity(self) -> str:
        """The sample's id: the same caption is the same sample, whatever its categories."""
        return sample_id(self.caption)

    @property
    def group(self) -> str:
        """The same words never stand in both splits."""
        return normalise_caption(self.caption)


@dataclass(frozen=True)
class PromptSource:
    """Where prompts come from.

    Attributes:
        name: `builtin` or the file's name.
        sha256: over captions and categories, in order.
        prompts: in the order in which a plan takes them.
    """

    name: str
    sha256: str
    prompts: Sequence[Prompt]


@cache
def builtin_prompts() -> PromptSource:
    """The built-in prompt space: 25,200 prompts, any prefix spread evenly over the 150 cells."""
    cells = list(itertools.product(range(len(CONTENT_TYPES)), range(len(STYLES)), range(len(SUBJECTS))))
    # A stride coprime to 150 visits every cell once per round and mixes all three axes within the first few.
    order = [cells[index * 67 % len(cells)] for index in range(len(cells))]
    prompts = tuple(
        _cell_prompt(CONTENT_TYPES[content], STYLES[style], SUBJECTS[subject], round_)
        for round_ in range(PER_CELL)
        for content, style, subject in order
    )
    return PromptSource("builtin", _hash(prompts), prompts)


def _cell_prompt(content: str, style: str, subject: str, index: int) -> Prompt:
    """The index-th prompt of a cell; things and settings advance together so that neighbours differ in both."""
    things, settings = _THINGS[subject], _SETTINGS[content]
    # 24 and 7 share no factor: 168 rounds meet every pair once. The offsets keep the cells of a round apart.
    thing = things[(index + 5 * CONTENT_TYPES.index(content) + 7 * STYLES.index(style)) % len(things)]
    setting = settings[(index + STYLES.index(style)) % len(settings)]
    caption = f"{thing[0].upper()}{thing[1:]} {setting}, {_STYLE_PHRASES[style]}."
    return Prompt(caption, content, style, subject)


@dataclass(frozen=True)
class _PromptFile:
    """A prompt file and the option that names it; as text, the beginning of an error about it."""

    path: Path
    option: str

    def __str__(self) -> str:
        return f"{self.option} = {str(self.path)!r}"

    @property
    def column_option(self) -> str:
        return f"{self.option.removesuffix('s')}_column"


def read_prompts(path: Path, column: str | None = None, option: str = "build.prompts") -> PromptSource:
    """Read a user's prompt file.

    Args:
        path: .txt (one per line), .tsv, .csv, .jsonl or .parquet.
        column: of the captions; absent: `prompt`, `caption` or `text`, or the only column.
        option: that names the file, for errors.

    Returns:
        the prompts, captions exactly as they stand in the file.

    Raises:
        UsageError: unreadable, empty, not UTF-8, no such column, blank or duplicate prompts; names the place.
    """
    readers = {".txt": _lines, ".tsv": _table, ".csv": _table, ".jsonl": _json_lines, ".parquet": _parquet}
    file = _PromptFile(path, option)
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{file}: unknown kind {path.suffix!r}; use {', '.join(readers)}")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror or error}") from None
    if not path.is_file():
        raise UsageError(f"{file}: is not a file; give one of {', '.join(readers)}")
    if size > MAX_FILE_BYTES:
        raise UsageError(f"{file}: {size:,} bytes; at most {MAX_FILE_BYTES:,}, split it")
    if path.suffix.lower() == ".txt" and column is not None:
        raise UsageError(f"{file.column_option} = {column!r}: a .txt file has no columns; leave it out")
    try:
        prompts = tuple(_checked(file, reader(file, column)))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror or error}") from None
    if not prompts:
        raise UsageError(f"{file}: holds no prompts; put at least one in")
    return PromptSource(path.name, _hash(prompts), prompts)


def _checked(file: _PromptFile, numbered: Iterator[tuple[int, Prompt]]) -> Iterator[Prompt]:
    """Refuse what cannot be a caption, and captions that say the same twice."""
    seen: dict[str, int] = {}
    for number, prompt in numbered:
        where = f"{file}, line {number}"
        if not prompt.caption.strip():
            raise UsageError(f"{where}: blank prompt; remove it")
        if len(prompt.caption) > LONGEST_LINE:
            raise UsageError(f"{where}: {len(prompt.caption):,} characters; at most {LONGEST_LINE:,}")
        if control := next((c for c in prompt.caption if ord(c) < 32 and c not in "\t\n\r"), None):
            raise UsageError(f"{where}: control character {control!r} in the prompt; remove it")
        if any(0xD800 <= ord(c) <= 0xDFFF for c in prompt.caption):
            raise UsageError(f"{where}: lone surrogate in the prompt, which UTF-8 cannot hold; remove it")
        normal = normalise_caption(prompt.caption)
        if normal in seen:
            raise UsageError(
                f"{where}: duplicate of line {seen[normal]}: {prompt.caption[:80]!r}; keep one of them "
                "(case and spacing do not tell prompts apart)"
            )
        seen[normal] = number
        yield prompt


def _text_lines(file: _PromptFile) -> Iterator[tuple[int, str]]:
    """Numbered lines without their terminators, decoded one by one so that an error can name its line."""
    with file.path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UsageError(
                    f"{file}, line {number}: not UTF-8 at byte {error.start + 1}; convert the file to UTF-8"
                ) from None
            yield number, text.removesuffix("\n").removesuffix("\r")


def _lines(file: _PromptFile, _column: str | None) -> Iterator[tuple[int, Prompt]]:
    for number, text in _text_lines(file):
        yield number, Prompt(text)


def _table(file: _PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    import csv

    delimiter = "\t" if file.path.suffix.lower() == ".tsv" else ","
    csv.field_size_limit(LONGEST_LINE * 4)
    reader = csv.reader((text + "\n" for _, text in _text_lines(file)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        chosen = _caption_column(file, header, column)
        for row in reader:
            if len(row) != len(header):
                raise UsageError(
                    f"{file}, line {reader.line_num}: {len(row)} fields, "
                    f"the header has {len(header)}; quote fields that hold the delimiter"
                )
            yield reader.line_num, _from_mapping(dict(zip(header, row, strict=True)), chosen)
    except csv.Error as error:
        raise UsageError(f"{file}, line {reader.line_num}: {error}") from None


def _json_lines(file: _PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    for number, text in _text_lines(file):
        where = f"{file}, line {number}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UsageError(f"{where}: {type(row).__name__} instead of an object with a caption")
        chosen = _caption_column(file, list(row), column)
        if not isinstance(row[chosen], str):
            raise UsageError(f"{where}: {chosen!r} is {type(row[chosen]).__name__}, not text")
        yield number, _from_mapping(row, chosen)


def _parquet(file: _PromptFile, column: str | None) -> Iterator[tuple[int, Prompt]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file.path)
        chosen = _caption_column(file, table.schema_arrow.names, column)
        kept = [
            chosen,
            *(name for name in CATEGORY_COLUMNS if name in table.schema_arrow.names and name != chosen),
        ]
        number = 0
        for batch in table.iter_batches(columns=kept):
            for row in batch.to_pylist():
                number += 1
                if not isinstance(row[chosen], str):
                    raise UsageError(f"{file}, row {number}: {chosen!r} is {row[chosen]!r}, not text")
                yield number, _from_mapping(row, chosen)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as parquet: {error}") from None


def _caption_column(file: _PromptFile, columns: Sequence[str], wanted: str | None) -> str:
    """The column that holds the captions."""
    if wanted is not None:
        if wanted in columns:
            return wanted
        raise UsageError(
            f"{file.column_option} = {wanted!r}: {str(file.path)!r} has no such column; it has {', '.join(columns)}"
        )
    for name in CAPTION_COLUMNS:
        if name in columns:
            return name
    if len(columns) == 1:
        return columns[0]
    raise UsageError(
        f"{file}: no column named {' or '.join(CAPTION_COLUMNS)} among "
        f"{', '.join(columns)}; name it with {file.column_option}"
    )


def _from_mapping(row: dict[str, Any], chosen: str) -> Prompt:
    categories = {name: str(row.get(name) or "") for name in CATEGORY_COLUMNS if name != chosen}
    return Prompt(row[chosen], **categories)


def _hash(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        fields = (prompt.caption, prompt.content, prompt.style, prompt.subject)
        digest.update(json.dumps(fields, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()
