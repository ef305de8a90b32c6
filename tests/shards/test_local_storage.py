"""What only a folder can do wrong as a store: links, pipes, drafts of killed writers, disks that are full."""

import errno
import io
import os
import time

import pytest

from shards.errors import AlreadyExistsError, NotFoundError, StorageError, UsageError
from shards.stores.local import TEMPORARY, Entry, open_storage
from shards.stores.store import Folder
from tests_support import keys


def test_a_look_leaves_out_what_no_key_can_name(tmp_path):
    for name in ("back\\slash", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "good")
    assert open_storage(str(tmp_path)).look() == Folder(("good.txt",), ("good",))


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("gs://bucket/x", "unknown scheme 'gs'"),
        ("file:///x", "unknown scheme 'file'"),
    ],
)
def test_roots_that_are_none(root, reason):
    with pytest.raises(UsageError, match=reason):
        open_storage(root)


def test_a_file_is_no_root(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        open_storage(str(tmp_path / "file"))


def test_drafts_are_not_listed_and_none_is_left(tmp_path):
    store = open_storage(str(tmp_path))
    (tmp_path / f"{TEMPORARY}crashed").write_bytes(b"half")
    store.put_bytes("a", b"x")
    with pytest.raises(AlreadyExistsError):
        store.put_bytes("a", b"y", create_only=True)
    assert keys(store) == ["a"]
    assert {path.name for path in tmp_path.iterdir()} == {"a", f"{TEMPORARY}crashed"}


@pytest.mark.parametrize("create_only", [False, True])
def test_what_a_killed_writer_left_is_abandoned_and_what_is_being_written_is_not(
    tmp_path, monkeypatch, create_only
):
    store = open_storage(str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{TEMPORARY}crashed").write_bytes(b"half")
    seen = []
    for name in ("link", "replace"):
        real = getattr(os, name)

        def late(*places, real=real, **options):
            seen.append(store.abandoned())
            return real(*places, **options)

        monkeypatch.setattr(os, name, late)
    store.put_bytes("run/a", b"whole", create_only=create_only)
    monkeypatch.undo()
    (left,) = store.abandoned()
    assert (left.key, left.size) == (f"run/{TEMPORARY}crashed", 4)
    assert time.time() - left.written < 60
    assert seen == [(left,)], "looked at while the other was under construction"
    store.delete(left.key)
    assert store.abandoned() == ()


def test_links_are_neither_listed_nor_there(tmp_path):
    store = open_storage(str(tmp_path / "root"))
    store.put_bytes("a", b"x")
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    assert keys(store) == ["a"]
    assert store.stat("link") is None


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    store = open_storage(str(tmp_path))
    with pytest.raises(StorageError, match=r"config.json: it is no plain file"):
        store.get_bytes("config.json")
    assert (keys(store), store.stat("config.json")) == ([], None)


@pytest.fixture
def snapshot(tmp_path):
    """A folder as the hub's cache holds it, and its repository."""
    repository = tmp_path / "datasets--org--name"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "5d41").write_bytes(b"hello")
    (repository / "snapshots" / "abc" / "train").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "train" / "a").symlink_to("../../../blobs/5d41")
    (repository / "snapshots" / "abc" / "b").symlink_to("train/a")
    return repository / "snapshots" / "abc"


def test_links_of_the_hubs_cache_are_read(snapshot):
    store = open_storage(str(snapshot))
    assert [(entry.key, entry.size) for entry in store.list()] == [("b", 5), ("train/a", 5)]
    assert store.get_bytes("train/a") == store.get_bytes("b") == b"hello"
    assert store.get_range("train/a", 1, 2) == b"el"
    assert store.stat("b").size == 5
    assert (store.look().objects, store.look("train").objects) == (("b",), ("a",))
    below = open_storage(str(snapshot / "train"))
    assert below.get_bytes("a") == b"hello"


def test_links_of_the_hubs_cache_that_lead_out_of_their_repository_are_not(snapshot, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (snapshot / "c").symlink_to(tmp_path / "secret")
    (snapshot / "circle").symlink_to("circle")
    store = open_storage(str(snapshot))
    assert keys(store) == ["b", "train/a"]
    assert store.stat("c") is None
    for name in ("c", "circle"):
        with pytest.raises(
            StorageError, match=f"{name}: it is a symbolic link that leads to no file in .*--name"
        ):
            store.get_bytes(name)


def test_what_is_written_over_a_link_leaves_its_target(snapshot):
    store = open_storage(str(snapshot))
    store.put_bytes("b", b"new")
    assert (store.get_bytes("b"), store.get_bytes("train/a")) == (b"new", b"hello")


def test_a_full_disk_is_told_with_the_room_that_is_left(tmp_path, monkeypatch):
    store = open_storage(str(tmp_path / "root"))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=rf"{tmp_path}/root/a/b: the disk is full \([\d,]+ MB free at .*; free some"
    ):
        store.put_bytes("a/b", b"x")
    monkeypatch.undo()
    assert list((tmp_path / "root" / "a").iterdir()) == []
    store.put_bytes("a/b", b"x")


def test_a_source_that_cannot_be_read_leaves_nothing(tmp_path):
    store = open_storage(str(tmp_path / "root"))
    with pytest.raises(FileNotFoundError):
        store.put_file("a", tmp_path / "none")
    assert keys(store) == []


def test_an_entry_says_what_it_is(tmp_path):
    store = open_storage(str(tmp_path))
    store.put_bytes("a", b"xyz")
    entry = store.stat("a")
    assert entry == Entry("a", 3, entry.tag)


def test_a_link_that_leads_out_of_the_root_is_refused(tmp_path):
    store = open_storage(str(tmp_path / "root"))
    store.put_bytes("a", b"x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (tmp_path / "root" / "folder").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside" / "secret")
    for use in (store.get_bytes, store.delete, lambda key: store.put_bytes(key, b"x")):
        with pytest.raises(
            StorageError, match=r"folder/secret: a symbolic link on the way leads out of .*root"
        ):
            use("folder/secret")
    with pytest.raises(StorageError, match="link: it is a symbolic link"):
        store.get_bytes("link")
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"


def test_a_link_whose_answer_was_lost_is_ones_own(tmp_path, monkeypatch):
    link = os.link

    def answer_lost(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", answer_lost)
    store = open_storage(str(tmp_path))
    store.put_bytes("a", b"x", create_only=True)
    assert store.get_bytes("a") == b"x"


def test_a_folder_is_no_object(tmp_path):
    store = open_storage(str(tmp_path))
    store.put_bytes("folder/a", b"x")
    with pytest.raises(NotFoundError, match="folder does not exist"):
        store.get_bytes("folder")
    with pytest.raises(StorageError, match=r"cannot delete .*folder: Is a directory"):
        store.delete("folder")
    for create_only in (False, True):
        with pytest.raises(
            StorageError, match=r"folder/a is no folder|folder/a/b: Not a directory"
        ) as caught:
            store.put_bytes("folder/a/b", b"x", create_only=create_only)
        assert not isinstance(caught.value, AlreadyExistsError)


def test_a_disk_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise OSError(errno.EIO, "Input/output error")

    store = open_storage(str(tmp_path))
    monkeypatch.setattr(store, "open", lambda key: Broken())
    for read in (store.get_bytes, lambda key: store.get_range(key, 0, 1)):
        with pytest.raises(StorageError, match=r"cannot read .*/a: Input/output error"):
            read("a")


def test_the_password_in_a_foreign_root_is_not_repeated():
    with pytest.raises(UsageError, match="unknown scheme 'gs'") as caught:
        open_storage("gs://me:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


def test_a_folder_that_cannot_be_read_is_an_error_and_not_empty(tmp_path, monkeypatch):
    """As on a network share that is stale, or where another user took the rights away."""
    store = open_storage(str(tmp_path / "root"))
    store.put_bytes("_commit/a.json", b"{}")
    store.put_bytes("train/a.tar", b"x")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("_commit"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match=r"cannot read .*_commit: Permission denied"):
        list(store.list())
    assert [entry.key for entry in store.list("train/")] == ["train/a.tar"]
    assert list(store.list("not/there/")) == []
