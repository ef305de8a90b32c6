"""An import of each kind of source end to end, as such sources come: what is taken, what not, and by which cause."""

import io
import json
import subprocess
import sys

import pandas
import pytest

import odd_files
from import_support import coco_content, encoded, laion_samples, tar_of, write_coco
from ray_support import ROOT
from shards.tools.verify import verify

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PICTURES = 12


def folder_with_captions(root):
    """A hundred odd files with a caption each, as adapter trainers have them."""
    odd_files.write(root)
    return {"kind": "folder", "source": root}


def folder_with_metadata(root):
    """As the hub's `imagefolder`: one row without a caption, one without a picture."""
    rows = [{"file_name": f"{n}.jpg", "text": f"picture {n}"} for n in range(PICTURES)]
    for row in rows[1:]:
        (root / row["file_name"]).write_bytes(encoded(int(row["text"].split()[1])))
    rows.append({"file_name": "1.jpg", "text": ""})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "folder", "source": root}


def coco_zip(root):
    """Three captions a picture, one picture missing in the zip, one broken."""
    content, files = coco_content(PICTURES)
    del files["000000000003.jpg"]
    files["000000000004.jpg"] = b"<html>moved</html>"
    return {"kind": "coco", **write_coco(root, content, files, zipped=True)}


def tars_of_a_mac(root):
    """With the hidden members that a Mac adds, a picture without a caption, a caption without a picture."""
    members = list(laion_samples(range(PICTURES)))
    hidden = [(f"._{name}", b"\0" * 20) for name, _ in members]
    mixed = [member for pair in zip(hidden, members, strict=True) for member in pair]
    mixed += [("lonely.jpg", encoded(90)), ("silent.txt", b"a caption of nothing")]
    (root / "00000.tar").write_bytes(tar_of(mixed))
    return {"kind": "tars", "source": root}


def parquet_with_failed_rows(root):
    """As img2dataset leaves it: failed downloads, and a caption that is a number."""
    rows = [
        {
            "jpg": encoded(n) if n % 4 else None,
            "caption": f"picture {n}",
            "status": "success" if n % 4 else "failed",
        }
        for n in range(PICTURES)
    ]
    data = io.BytesIO()
    pandas.DataFrame(rows).to_parquet(data)
    (root / "00000.parquet").write_bytes(data.getvalue())
    return {"kind": "parquet", "source": root}


KINDS = {  # the first line and the last one that the job prints
    folder_with_captions: (
        "the source holds 150 samples to take; left out: 4 caption without a picture (folder.jpg.txt, link.jpg.txt, "
        "loop.jpg.txt, …)",
        "complete: 108 samples, 42 failed, 3 shards",
    ),
    folder_with_metadata: (
        "the source holds 12 samples to take; left out: 1 caption blank (1.jpg)",
        "complete: 11 samples, 1 failed, 3 shards",
    ),
    coco_zip: (
        "the source holds 12 samples to take; left out: 24 further caption",
        "complete: 10 samples, 2 failed, 3 shards",
    ),
    tars_of_a_mac: (
        "the source holds 12 samples to take; left out: 1 caption missing (00000.tar:lonely), "
        "1 no picture (00000.tar:silent)",
        "complete: 12 samples, 0 failed, 3 shards",
    ),
    parquet_with_failed_rows: (
        "the source holds 9 samples to take; left out: 3 failed download (00000.parquet:0, 00000.parquet:4, "
        "00000.parquet:8)",
        "complete: 9 samples, 0 failed, 3 shards",
    ),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_of_source(kind, head, tmp_path):
    (tmp_path / "source").mkdir()
    options = kind(tmp_path / "source") | {"layers": -8, "text_modes": "none", "max_failed_fraction": 0.4}
    words = [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs", "import", "--output", str(tmp_path / "data"), *words],
        env=head.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found, completed = KINDS[kind]
    assert done.stdout.splitlines()[0] == found
    assert completed in done.stdout
    findings = verify(str(tmp_path / "data"))
    assert (findings.problems, findings.complete) == ([], True)
