"""Ways to damage a dataset at rest, and what `verify` finds then."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq

from shards.format.side_files import write_table
from shards.tools.verify import verify


def root(dataset):
    """The folder of a dataset."""
    return Path(dataset.storage.root)


def problems(dataset):
    """What `verify` says of a dataset, a line each."""
    return [str(problem) for problem in verify(dataset.storage.root).problems]


def rewrite(dataset, change, *, name="train-000001", rehash=True):
    """Rewrite a shard's members, and, as an attacker or a bug would, its commit's hash too."""
    commit = dataset.commit_file(name)
    tar = root(dataset) / commit["tar"]
    with tarfile.open(tar) as source:
        members = [(member, source.extractfile(member).read()) for member in source]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as target:
        for member, data in change(members):
            target.addfile(member, io.BytesIO(data) if data is not None else None)
    tar.write_bytes(buffer.getvalue())
    if rehash:
        commit |= {"sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "bytes": len(buffer.getvalue())}
        (root(dataset) / "_commit" / f"{name}.json").write_text(json.dumps(commit))


def header(name, size=0, kind=tarfile.REGTYPE, link=""):
    """A member's header; what it claims of size and kind need not be so."""
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member


def replaced(suffix, data):
    """A change for `rewrite`: other bytes, or a function of the bytes, for a member of the first sample."""

    def change(members):
        for member, content in members:
            if member.name == f"train-000001-0000.{suffix}":
                new = data(content) if callable(data) else data
                member.size = len(new)
                yield member, new
            else:
                yield member, content

    return change


def rewrite_table(dataset, key, change=lambda rows: rows, metadata=lambda commit: commit):
    """Rewrite a parquet side file as a bug or an attacker would."""
    path = root(dataset) / key
    table = pq.read_table(path)
    commit = json.loads((table.schema.metadata or {}).get(b"commit", b"{}"))
    write_table(path, change(table.to_pylist()), metadata(commit))
    name = f"train-{path.stem.rpartition('-')[2]}"
    commit = dataset.commit_file(name)
    commit["side_files"][key] = hashlib.sha256(path.read_bytes()).hexdigest()
    (root(dataset) / "_commit" / f"{name}.json").write_text(json.dumps(commit))


def changed(number, **values):
    """A change for `rewrite_table`: other values in a row."""
    return lambda rows: [row | values if i == number else row for i, row in enumerate(rows)]
