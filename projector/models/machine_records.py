"""What this machine remembers between runs, in small files that several processes may be writing: hashes of weights."""

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path

SHA256 = re.compile(r"[0-9a-f]{64}")
SMALL = 16 * 2**20  # bytes; smaller files are read each time, which takes milliseconds
SETTLED_SECONDS = (
    2.0  # since the last change; a file system may keep whole seconds, within which one more can follow
)


def sha256_once(path: Path, records: Path) -> str:
    """SHA-256 of a file's bytes; those of large files are read once for as long as they stay the same.

    The Hub's cache names a large file by its SHA-256, which the download was checked against: nothing is read. Of
    other files a record keeps size and times; whatever changes a file changes one of them.

    Args:
        path: of the file.
        records: folder of the records; where it cannot be written, the file is read each time.
    """
    real = path.resolve()
    if path.is_symlink() and real.parent.name == "blobs" and SHA256.fullmatch(real.name):
        return real.name
    before = real.stat()
    if before.st_size <= SMALL:
        return _sha256(real)
    about = [str(real), before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns]
    record = records / f"{hashlib.sha256(str(real).encode(errors='surrogateescape')).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(record.read_text())
        if kept["about"] == about and SHA256.fullmatch(kept["sha256"]):
            return str(kept["sha256"])
    found = _sha256(real)
    after = real.stat()
    unchanged = (after.st_size, after.st_mtime_ns, after.st_ctime_ns) == tuple(about[3:])
    if unchanged and time.time() - after.st_mtime > SETTLED_SECONDS:
        with suppress(OSError):
            write_whole(record, json.dumps({"about": about, "sha256": found}))
    return found


def write_whole(path: Path, text: str) -> None:
    """Write a small file that other processes may be writing too; one of them wins, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
