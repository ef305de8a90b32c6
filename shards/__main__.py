"""`python -m shards TOOL ROOT`: look at, check and mend a dataset, local or on S3, without Ray."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from shards.dataset.dataset import Dataset, is_new
from shards.dataset.failed_samples import retryable
from shards.dataset.progress_figures import plain
from shards.errors import UsageError
from shards.format.commit import MOST
from shards.format.splits import SPLITS
from shards.stores.local import open_storage
from shards.stores.spool import Spool
from shards.tools.gc_and_repair import SPARED, collect_garbage, leftovers, repair, require_shards
from shards.tools.info import details, info
from shards.tools.terminal import behind, exit_code, visible_output
from shards.tools.trace import lines, trace
from shards.tools.watch import watch

DAY = 86_400


def main(argv: Sequence[str]) -> int:
    """Run a tool.

    Args:
        argv: the words after `python -m shards`.

    Returns:
        exit code: 0 all well, 1 something is wrong with the dataset, 2 usage error.
    """
    options = _parser().parse_args(argv)
    with visible_output():
        return exit_code(lambda: int(options.run(options)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shards", description=__doc__)
    tools = parser.add_subparsers(title="tools", required=True, metavar="TOOL")

    def tool(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = tools.add_parser(name, help=text, description=text)
        added.add_argument("root", help="local folder or s3://bucket/prefix")
        added.set_defaults(run=run)
        return added

    shown = tool("info", _info, "counts, bytes, failures, device seconds, speed, cost, fingerprint")
    shown.add_argument("--json", action="store_true", help="as JSON")
    shown.add_argument(
        "--watch",
        metavar="SECONDS",
        type=_seconds,
        nargs="?",
        const=10.0,
        help="look again every so many seconds (10) until it is complete; Ctrl-C ends it",
    )
    shown.add_argument(
        "--price-gpu-hour", metavar="PRICE", type=_price, help="in any currency: what it cost so far"
    )
    traced = tool("trace", _trace, "who made a sample or shard: attempt, node, actor, log file, versions")
    traced.add_argument("what", metavar="SAMPLE", help="a key, a sample id, or a shard's name")
    traced.add_argument("--json", action="store_true", help="as JSON")
    for name, run, text in (
        ("verify", _verify, "read everything and check it against commits and plan"),
        ("repair", _repair, "take broken shards out, so that the next build makes them again"),
    ):
        tool(name, run, text).add_argument(
            "--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes (default %(default)s)"
        )
    tool("urls", _urls, "addresses of the shards, for stock WebDataset loaders").add_argument(
        "--split", choices=SPLITS, default="train"
    )
    tool("ls", _ls, "one line per shard")
    tool("card", _card, "write README.md, the page that goes with a dataset to publish").add_argument(
        "--license", help="the hub's identifier of its licence, e.g. cc-by-4.0"
    )
    preview = tool("preview", _preview, "contact sheet of the first pictures, by category")
    preview.add_argument("--output", default="preview.png", help="PNG to write (default %(default)s)")
    preview.add_argument("--count", type=int, default=36, help="pictures (default %(default)s)")
    tool(
        "gc",
        _gc,
        "remove shard files that no commit names, and hidden files of killed writers; not while a build runs",
    ).add_argument("--dry-run", action="store_true", help="only list them")
    tool("merge", _merge, "take over what other datasets of the same fingerprint hold").add_argument(
        "sources", nargs="+", metavar="SOURCE", help="their roots; they are only read"
    )
    retry = tool("retry-failed", _retry_failed, "list the samples that a build would try again")
    retry.add_argument("--json", action="store_true", help="as JSON")
    retry.add_argument(
        "--max-attempts", type=int, default=3, help="as a build's max_attempts (default %(default)s)"
    )
    return parser


def _seconds(text: str) -> float:
    if not 1 <= (seconds := float(text)) <= DAY:
        raise argparse.ArgumentTypeError(f"{text}: give 1 to {DAY} seconds")
    return seconds


def _price(text: str) -> float:
    if not 0 <= (price := float(text)) < MOST:
        raise argparse.ArgumentTypeError(f"{text}: give a price of 0 or more")
    return price


def _open(options: argparse.Namespace) -> Dataset:
    return Dataset.open(open_storage(options.root))


def _info(options: argparse.Namespace) -> int:
    dataset = _open(options)
    if options.watch and options.json:
        raise UsageError("--watch and --json: give one of them; without a terminal --watch prints lines")
    if options.watch:
        return watch(dataset, options.watch, options.price_gpu_hour, behind(sys.stdout))
    facts = info(dataset, options.price_gpu_hour)
    if options.json:
        print(json.dumps(facts | details(dataset), indent=2, ensure_ascii=False))
        return 0
    state = "complete" if facts["complete"] else "NOT complete"
    print(
        f"{facts['root']}: {state}, {facts['samples']} samples + {facts['failed']} failed of {facts['planned']}"
    )
    for split, counts in facts["splits"].items():
        print(f"  {split:<6} {counts['samples']} samples in {counts['shards']} shards")
    busy = f" ({facts['busy_seconds'] / facts['device_seconds']:.0%} busy)" if facts["busy_seconds"] else ""
    print(f"  bytes  {facts['bytes'] / 1e6:,.1f} MB, {facts['device_seconds']:,.0f} device seconds{busy}")
    spent = (
        f"{sum(facts['lost_seconds'].values()):,.0f} device seconds lost, {facts['gpu_hours']:,.2f} GPU-hours"
    )
    cost = "" if facts["cost"] is None else f", cost {facts['cost']:,.2f}"
    print(f"  spent  {spent}{cost} in {facts['runs']} runs, {facts['builders']} builders at work now")
    if facts["pairs_per_hour"] is not None:
        print(
            f"  speed  {facts['pairs_per_hour']:,.0f} pairs an hour while at work, "
            f"{facts['recent_pairs_per_hour']:,.0f} since the last pause"
        )
    if facts["abandoned_files"]:
        print(
            f"  hidden {facts['abandoned_bytes'] / 1e6:,.1f} MB in {facts['abandoned_files']} files of killed writers; "
            "`python -m shards gc` removes them"
        )
    print(f"  made   {facts['created']}, fingerprint {facts['fingerprint'][:16]}")
    return 0


def _trace(options: argparse.Namespace) -> int:
    traces = trace(_open(options), options.what)
    if options.json:
        print(json.dumps([asdict(found) for found in traces], indent=2))
        return 0
    print("\n\n".join("\n".join(lines(found)) for found in traces))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from shards.tools.verify import verify

    findings = verify(options.root, workers=max(1, options.workers))
    for problem in findings.problems:
        print(problem)
    verdict = f"{len(findings.problems)} problems" if findings.problems else "no problems"
    print(
        f"{findings.shards} shards, {findings.samples} samples, {findings.bytes / 1e6:,.1f} MB read: {verdict}"
    )
    if not findings.complete:
        print(
            f"not complete: {findings.accounted} of {findings.planned} planned samples; run the build again"
        )
    return 1 if findings.problems else 0


def _repair(options: argparse.Namespace) -> int:
    broken = repair(options.root, workers=max(1, options.workers))
    for name in broken:
        print(f"{name}: taken out")
    print(f"{len(broken)} shards to make again: run the build" if broken else "nothing to repair")
    return 0


def _urls(options: argparse.Namespace) -> int:
    dataset = _open(options)
    require_shards(dataset)
    for commit in dataset.commits():
        if commit.split == options.split:
            print(dataset.storage.url(commit.tar))
    return 0


def _ls(options: argparse.Namespace) -> int:
    for commit in _open(options).commits():
        note = " adopted" if commit.adopted else ""
        print(
            f"{commit.name}  {commit.samples:>5} samples  {commit.failed:>3} failed  {commit.bytes / 1e6:>9,.1f} MB  "
            f"{commit.device_seconds:>8,.1f} s  {commit.created}  {plain(commit.device)}{note}"
        )
    return 0


def _card(options: argparse.Namespace) -> int:
    from shards.tools.dataset_card import put_card

    dataset = _open(options)
    require_shards(dataset)
    print(put_card(dataset, options.license))
    return 0


def _preview(options: argparse.Namespace) -> int:
    from shards.dataset.read import read_samples
    from shards.tools.preview import contact_sheet

    dataset = _open(options)
    require_shards(dataset)
    path = Path(options.output)
    contact_sheet(islice(read_samples(dataset, tensors=()), max(1, options.count))).save(path, format="PNG")
    print(path.absolute())
    return 0


def _gc(options: argparse.Namespace) -> int:
    dataset = _open(options)
    keys = collect_garbage(dataset, dry_run=options.dry_run)
    for key in keys:
        print(plain(key))
    print(f"{len(keys)} files {'would be removed' if options.dry_run else 'removed'}")
    if young := set(leftovers(dataset)) - set(keys):
        print(
            f"{len(young)} files no older than {SPARED / 3600:.0f} h are kept: their commit may be on its way"
        )
    return 0


def _merge(options: argparse.Namespace) -> int:
    from shards.stores.lease import sole_writer
    from shards.tools.merge import merge

    sources = [Dataset.open(open_storage(root)) for root in options.sources]
    storage = open_storage(options.root)
    is_new(storage)
    spool = Spool.at(None)
    with sole_writer(storage):
        for source in sources:
            merged = merge(storage, source, spool)
            print(
                f"{source.storage.root}: {len(merged.taken)} shards taken over, {merged.there} already existed"
            )
    return 0


def _retry_failed(options: argparse.Namespace) -> int:
    rows = retryable(_open(options), options.max_attempts)
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    for row in rows:
        print(
            plain(
                f"{row['key']}  {row['stage']}: {row['error_class']}: {row['message']}  ({row['attempts']} tries)"
            )
        )
    print(f"{len(rows)} samples to try again")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
