"""What `fuzz.py` and its test throw damaged input at: every reader of something that somebody else may have written.

A target makes sound bytes, puts a damaged version of them where they belong, and has everything read that reads them.
Only the project's own errors may come of it. What `verify` finds sound, every reader must take.
"""

import hashlib
import io
import json
import random
import shutil
import struct
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests"))


from PIL import Image

from import_support import coco_content, encoded, laion_samples, tar_of, write_coco
from shards.dataset.dataset import Dataset
from shards.dataset.failed_samples import failures
from shards.dataset.read import read_plan, read_samples
from shards.dataset.run_records import RunRecord, put_run, runs_on_record
from shards.errors import CorruptShardError, StorageError, UsageError
from shards.format.sample import check_tensors, decode_tensors, encode_tensors, open_image, picture_of
from shards.prompts.files import read_prompts
from shards.sources.catalogue import Catalogue, open_source
from shards.sources.filters import Rules, filters_of
from shards.sources.picture import ImageError, kept
from shards.sources.picture_bytes import open_originals
from shards.sources.selection import taken
from shards.sources.source import SourceSpec
from shards.stores.local import open_storage
from shards.tools.info import info
from shards.tools.verify import verify
from tests_support import EXPECTED, SETTINGS, a_plan, a_sample, commit_shard

OWN = (UsageError, StorageError, CorruptShardError, ImageError)  # what a user can act on
ODD_JSON: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, 2**63, 2**200, "", "\udfff", "a\0b", "x" * 5000, [], {}, [[]], {"a": {}}, "NaN", -0.5,
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        seeds: sound bytes, by the name of the file that they are of.
        feed: puts bytes where a file of that name belongs, below a folder, and has them read.
    """

    seeds: dict[str, bytes]
    feed: Callable[[Path, str, bytes], None]


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Bytes with one to four kinds of damage, some that know JSON, safetensors or tar."""
    for _ in range(chance.randint(1, 4)):
        data = chance.choice(DAMAGES)(chance, data)
    return data


def _flip(chance: random.Random, data: bytes) -> bytes:
    if not data:
        return b"\0"
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


def _overwrite(chance: random.Random, data: bytes) -> bytes:
    place, value = chance.randint(0, len(data)), chance.choice((0, 1, 0x7F, 0x80, 0xFF))
    length = chance.choice((1, 2, 4, 8, 64, 512))
    return data[:place] + bytes([value]) * length + data[place + length :]


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randint(0, len(data))]


def _take_out(chance: random.Random, data: bytes) -> bytes:
    start = chance.randint(0, len(data))
    return data[:start] + data[start + chance.choice((1, 8, 100, 512, 5000)) :]


def _repeat(chance: random.Random, data: bytes) -> bytes:
    start = chance.randint(0, len(data))
    piece = data[start : start + chance.choice((1, 8, 512, 1024))]
    return data[:start] + piece * chance.randint(2, 20) + data[start:]


def _number(chance: random.Random, data: bytes) -> bytes:
    """Replace eight bytes by a number that a length may be."""
    place = chance.choice((0, chance.randint(0, len(data))))
    number = chance.choice((0, 1, 2**31 - 1, 2**32, 2**63 - 1, 2**64 - 1, len(data), len(data) - 8))
    return data[:place] + struct.pack("<Q", number % 2**64) + data[place + 8 :]


def _digits(chance: random.Random, data: bytes) -> bytes:
    """Replace a run of digits, as sizes in tar heads and counts in JSON are."""
    places = [at for at, byte in enumerate(data[:100_000]) if 0x30 <= byte <= 0x39]
    if not places:
        return data
    start = chance.choice(places)
    stop = start
    while stop < len(data) and 0x30 <= data[stop] <= 0x39:
        stop += 1
    word = chance.choice((b"9", b"0", b"-", b"7")) * (stop - start)
    return data[:start] + word + data[stop:]


def _tar_field(chance: random.Random, data: bytes) -> bytes:
    """Change a member's head and make its checksum true again."""
    if len(data) < 1024:
        return data
    start = 512 * chance.randrange(len(data) // 512)
    head = bytearray(data[start : start + 512])
    place, field = chance.choice(
        (
            (0, b"a.json"),
            (0, b"../../etc"),
            (124, b"77777777777"),
            (124, b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"),
            (124, b"\xff" * 12),
            (156, chance.choice((b"x", b"g", b"L", b"K", b"S", b"1", b"2", b"5", b"6", b"\0"))),
            (257, b"GNUsp"),
        )
    )
    head[place : place + len(field)] = field
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head)
    return data[:start] + bytes(head) + data[start + 512 :]


def _json_value(chance: random.Random, data: bytes) -> bytes:
    """Put something odd in the place of a value, anywhere in a JSON text or in the head of safetensors."""
    start = 8 if data[8:9] == b"{" else 0
    length = int.from_bytes(data[:8], "little") if start else len(data)
    text = data[start : start + length]
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return data
    changed = _odd_json(chance, content).encode("utf-8", "surrogatepass")
    return (struct.pack("<Q", len(changed)) if start else b"") + changed + data[start + length :]


def _odd_json(chance: random.Random, content: Any) -> str:
    places = list(_places(content))
    if not places or chance.random() < 0.1:
        return chance.choice(("[" * 100_000, '{"a":' * 5000, "NaN", "[Infinity]", "1e999", "", "{}", "[]"))
    holder, key = chance.choice(places)
    if chance.random() < 0.3:
        del holder[key]
    else:
        holder[key] = chance.choice(ODD_JSON)
    return json.dumps(content, ensure_ascii=chance.random() < 0.5)


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    pairs: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = list(enumerate(content))
    for key, value in pairs:
        yield content, key
        yield from _places(value)


DAMAGES = (
    _flip,
    _overwrite,
    _cut,
    _take_out,
    _repeat,
    _number,
    _digits,
    _tar_field,
    _json_value,
    _json_value,
)


def make_dataset(folder: Path) -> Dataset:
    """A dataset of two shards, one with a failure, a run on record and a manifest."""
    plan = a_plan(5, 4)
    dataset = Dataset.create_or_open(open_storage(str(folder / "data")), SETTINGS, {"numpy": "2"})
    dataset.grow(len(plan), append=True)
    for number, shard in enumerate(plan.shards):
        commit_shard(dataset, shard, folder / "spool", failing=(0,) if number == 0 else ())
    dataset.write_manifest()
    when = "2026-01-01T00:00:00+00:00"
    put_run(
        dataset.storage, RunRecord("0" * 32, "build", "01", when, when, "", 1, 0.0, {"died": 1.0}, 0.0, {})
    )
    shutil.rmtree(folder / "spool")
    return dataset


class Shards:
    """Damaged files of a dataset; what a commit says of hash and size is made true of them first."""

    def __init__(self, folder: Path) -> None:
        self.dataset = make_dataset(folder)
        self.root = Path(self.dataset.storage.root)
        self.files = {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file()
        }

    def target(self, *words: str) -> Target:
        """Of the files whose names begin or end with one of these."""
        seeds = {name: data for name, data in self.files.items() if any(word in name for word in words)}
        return Target(seeds, self.feed)

    def feed(self, _: Path, name: str, data: bytes) -> None:
        """Put it, read everything, and put the sound file back."""
        changed = {name: data, **self._commits_that_fit(name, data)}
        try:
            for key, content in changed.items():
                (self.root / key).write_bytes(content)
            self._read()
        finally:
            for key in changed:
                (self.root / key).write_bytes(self.files[key])

    def _commits_that_fit(self, name: str, data: bytes) -> dict[str, bytes]:
        """The commit that names a file, with its true hash and size: so it comes to be read at all."""
        if not name.endswith((".tar", ".parquet")):
            return {}
        for key, content in self.files.items():
            if key.startswith("_commit/") and f'"{name}"'.encode() in content:
                commit = json.loads(content)
                digest = hashlib.sha256(data).hexdigest()
                if name == commit["tar"]:
                    commit |= {"sha256": digest, "bytes": len(data)}
                else:
                    commit["side_files"][name] = digest
                return {key: json.dumps(commit).encode()}
        return {}

    def _read(self) -> None:
        root = str(self.root)
        problems = _said(lambda: verify(root).problems)
        reads = [
            _said(
                lambda: [picture_of(sample).size for sample in read_samples(Dataset.open(open_storage(root)))]
            ),
            _said(lambda: len(read_plan(Dataset.open(open_storage(root))))),
        ]
        for look in (
            lambda: info(Dataset.open(open_storage(root))),
            lambda: list(failures(Dataset.open(open_storage(root)))),
            lambda: Dataset.open(open_storage(root)).statistics("train"),
            lambda: Dataset.open(open_storage(root)).segments(),
            lambda: Catalogue.open(open_storage(root)),
            lambda: runs_on_record(open_storage(root)),
        ):
            _said(look)
        if problems == [] and any(isinstance(found, OWN) for found in reads):
            raise AssertionError(f"verify finds nothing, and a reader refuses: {reads}")


def _said(read: Callable[[], Any]) -> Any:
    """What a reader returns, or the error of the project that it raises."""
    try:
        return read()
    except OWN as error:
        if "\n" in str(error):
            raise AssertionError(f"an error of several lines: {error}") from error
        return type(error)(str(error))  # the error itself would keep what was read


def member_target(folder: Path) -> Target:
    """A sample's embeddings and picture by themselves."""
    sample = a_sample(a_plan(8, 4).shards[0].samples[0])
    seeds = {"a.safetensors": encode_tensors(sample.tensors), "a.png": sample.image}

    def feed(_: Path, name: str, data: bytes) -> None:
        try:
            if name.endswith(".png"):
                open_image(data)
            else:
                check_tensors(decode_tensors(data), EXPECTED)
        except (ValueError, KeyError):  # what their callers tell of
            return

    return Target(seeds, feed)


def picture_target(folder: Path) -> Target:
    """Pictures from elsewhere."""
    formats = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
    seeds = {f"a.{name}": encoded(number, format=name) for number, name in enumerate(formats)}
    return Target(seeds, lambda _, name, data: _said(lambda: kept(data, 64)))


def prompt_target(folder: Path) -> Target:
    """Prompt files."""
    rows = [
        {"prompt": f"caption number {number}, of \u00fc \U0001f98a", "category": "x"} for number in range(20)
    ]
    table = "prompt,category\n" + "".join(f'"{row["prompt"]}",x\n' for row in rows)
    seeds = {
        "a.txt": "\n".join(row["prompt"] for row in rows).encode(),
        "b.txt": "\n".join(row["prompt"] for row in rows).encode("utf-16"),
        "a.csv": table.encode(),
        "a.tsv": table.replace('",x', '"\tx').replace("prompt,", "prompt\t").encode(),
        "a.json": json.dumps(rows).encode(),
        "a.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "a.parquet": _parquet(rows),
    }

    def feed(place: Path, name: str, data: bytes) -> None:
        (place / name).write_bytes(data)
        _said(lambda: read_prompts(place / name))

    return Target(seeds, feed)


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    return buffer.getvalue()


def source_target(folder: Path) -> Target:
    """Sources of an import, of every kind."""
    content, files = coco_content(3, 2)
    write_coco(folder, content, files, zipped=True)
    rows = [{"image": encoded(number), "caption": f"picture {number}"} for number in range(4)]
    metadata = [{"file_name": f"{number}.jpg", "text": f"picture {number}"} for number in range(3)]
    seeds = {
        "captions.json": (folder / "captions.json").read_bytes(),
        "val2017.zip": (folder / "val2017.zip").read_bytes(),
        "a.tar": tar_of(laion_samples(range(3))),
        "pax.tar": _pax_tar(),
        "a.parquet": _parquet(rows),
        "metadata.jsonl": "\n".join(map(json.dumps, metadata)).encode(),
        "metadata.csv": b"file_name,text\n" + b"".join(b"%d.jpg,picture\n" % number for number in range(3)),
        "0.txt": b"picture 0",
        "0.jpg": encoded(0),
    }
    kinds = {"captions.json": "coco", "val2017.zip": "coco", "a.tar": "webdataset", "pax.tar": "webdataset"}
    kinds["a.parquet"] = "parquet"

    def feed(place: Path, name: str, data: bytes) -> None:
        inside = place / "source"
        shutil.rmtree(inside, ignore_errors=True)
        inside.mkdir()
        kind: Any = kinds.get(name, "folder")
        if kind == "coco":
            for each in ("captions.json", "val2017.zip"):
                (inside / each).write_bytes(seeds[each])
        if kind == "folder":
            for number in range(3):
                (inside / f"{number}.jpg").write_bytes(encoded(number))
        (inside / name).write_bytes(data)
        source = str(inside / "captions.json") if kind == "coco" else str(inside)
        images = str(inside / "val2017.zip") if kind == "coco" else ""
        _said(lambda: _import(SourceSpec(kind, source, images)))

    return Target(seeds, feed)


def _pax_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in laion_samples(range(2)):
            head = tarfile.TarInfo(f"\u56fe{name}")
            head.size, head.pax_headers = len(data), {"comment": "x", "GNU.sparse.realsize": str(len(data))}
            tar.addfile(head, io.BytesIO(data))
    return buffer.getvalue()


def _import(spec: SourceSpec) -> None:
    """Find what can be taken, and read each original."""
    source, rules = open_source(spec), Rules(val_fraction=0.3)
    found = list(taken(source.found(set()), rules, filters_of(rules, source.columns()), Counter()))
    source.tag()
    with closing(open_originals(spec)) as originals:
        for item in found[:50]:
            data = _said(lambda item=item: originals.read(item.place))  # type: ignore[misc]
            if isinstance(data, bytes):
                _said(lambda data=data: kept(data, 64))  # type: ignore[misc]


def checkpoint_target(folder: Path) -> Target:
    """Projectors and the state of a training."""
    import torch

    from projector.network.architectures import ProjectorNetwork, Shape
    from projector.network.checkpoint import TrainingProgress, get_state, put_state
    from projector.network.projector import Projector

    torch.manual_seed(0)
    network = ProjectorNetwork(Shape("attention", width=8, hidden=16, queries=4))
    told = {"format": 1, "arch": "attention", "width": 8, "layer": -6, "text_mode": "none", "tokens": "image"}
    config = told | {"network": network.shape.as_json()}
    Projector(network, config).save_pretrained(folder / "sound")
    optimizer = torch.optim.AdamW(network.parameters())
    put_state(open_storage(str(folder / "sound")), {"a": 1}, TrainingProgress(), network, optimizer, None)
    seeds = {path.name: path.read_bytes() for path in (folder / "sound").iterdir()}
    Projector.from_pretrained(folder / "sound")

    def feed(place: Path, name: str, data: bytes) -> None:
        inside = place / "projector"
        inside.mkdir(exist_ok=True)
        for each, sound in {**seeds, name: data}.items():
            (inside / each).write_bytes(data if each == name else sound)
        _said(lambda: Projector.from_pretrained(inside))
        if name.endswith(".safetensors"):
            _said(lambda: Projector.from_pretrained(inside / name))
        state = _said(lambda: get_state(open_storage(str(inside)), {"a": 1}))
        if state is not None and not isinstance(state, OWN):
            _said(lambda: state.restore(network, optimizer, None))

    return Target(seeds, feed)


@contextmanager
def all_targets(folder: Path) -> Iterator[dict[str, Target]]:
    """Every target by name, its sound files made below a folder."""
    shards = Shards(_new(folder, "shards"))
    yield {
        "shard": shards.target(".tar"),
        "side file": shards.target(".parquet"),
        "commit": shards.target("_commit/"),
        "record": shards.target("dataset.json", "manifest.json", "_plan/", "_run/"),
        "member": member_target(folder),
        "picture": picture_target(folder),
        "prompts": prompt_target(folder),
        "source": source_target(_new(folder, "source")),
        "checkpoint": checkpoint_target(_new(folder, "checkpoint")),
    }


def _new(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def bombs(folder: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """Small files that claim or unfold to much, by name, each with what reads it."""
    shards = Shards(_new(folder, "bombs"))
    many = b"[" + b"[]," * 6_000_000 + b"[]]"
    wide = b'["' + b"x" * 24_000_000 + "\U0001f98a".encode() + b'"]'
    commit = next(name for name in shards.files if name.startswith("_commit/train"))
    parquet = next(name for name in shards.files if name.startswith("train/") and name.endswith(".parquet"))
    tar = next(name for name in shards.files if name.startswith("train/") and name.endswith(".tar"))
    for name in (commit, "dataset.json", "manifest.json", "_plan/000000.json", f"_run/{'0' * 32}.json"):
        yield f"{name} of lists", _feeding(shards.feed, folder, name, many)
        yield f"{name} of wide text", _feeding(shards.feed, folder, name, wide)
    yield "side file of shared texts", _feeding(shards.feed, folder, parquet, _shared_texts("caption"))
    yield "side file of one long text", _feeding(shards.feed, folder, parquet, _long_text(150_000_000))
    yield "shard with a huge picture", _feeding(shards.feed, folder, tar, _with_picture(shards.files[tar]))
    member = member_target(folder)
    head = struct.pack("<Q", len(many)) + many
    yield "safetensors with a huge head", _feeding(member.feed, folder, "a.safetensors", head)
    place = _new(folder, "bombs-place")
    prompts = prompt_target(folder)
    yield "prompts of shared texts", _feeding(prompts.feed, place, "a.parquet", _shared_texts("prompt"))
    yield "prompts of lists", _feeding(prompts.feed, place, "a.json", many)
    projector = checkpoint_target(_new(folder, "bombs-projector"))
    for name in ("config.json", "model.safetensors", "state.safetensors"):
        yield (
            f"{name} of lists",
            _feeding(projector.feed, place, name, many if name == "config.json" else head),
        )


def _feeding(
    feed: Callable[[Path, str, bytes], None], place: Path, name: str, data: bytes
) -> Callable[[], None]:
    return lambda: feed(place, name, data)


def _shared_texts(column: str) -> bytes:
    """A parquet file of 14 KB, 300 rows of which share one text of 10 MB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["x" * 10_000_000]))
    pq.write_table(pa.table({column: shared}), buffer, compression="zstd", store_schema=False)
    return buffer.getvalue()


def _long_text(length: int) -> bytes:
    return _parquet([{"caption": "x" * length}])


def _with_picture(data: bytes) -> bytes:
    """A shard whose pictures are of 8192 x 8192 pixels, 255 KB each."""
    buffer = io.BytesIO()
    Image.new("RGBA", (8192, 8192)).save(buffer, "PNG")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        names = tar.getnames()
        members = [(name, tar.extractfile(name).read()) for name in names]  # type: ignore[union-attr]
    return tar_of(
        [(name, buffer.getvalue() if name.endswith(".png") else content) for name, content in members]
    )
