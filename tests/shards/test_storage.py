"""What every store must do, asked of each of them; then what only a folder can do wrong."""

import errno
import hashlib
import io
import os
import pickle
import shutil
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.errors import AlreadyExistsError, NotFoundError, StorageError, UsageError
from shards.stores import s3
from shards.stores.local import TEMPORARY, Entry, check_key, open_storage
from shards.stores.store import Folder

ODD = ["a b.txt", "é.txt", "a+b%20.txt", "z/1", "z-1", "z.1", "Z", "deep/er/still.tar", "emoji 🦊"]


def keys(store, prefix=""):
    return [entry.key for entry in store.list(prefix)]


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_what_is_put_is_what_is_got(store, tmp_path, size):
    data = os.urandom(size)
    store.put_bytes("by/bytes", data)
    (tmp_path / "file").write_bytes(data)
    store.put_file("by/file", tmp_path / "file")
    for key in ("by/bytes", "by/file"):
        assert store.get_bytes(key) == data
        with store.open(key) as file:
            assert file.read() == data
        assert store.stat(key).size == size


def test_a_put_replaces_and_the_tag_changes(store):
    store.put_bytes("a", b"one")
    before = store.stat("a")
    store.put_bytes("a", b"two")
    assert store.get_bytes("a") == b"two"
    assert store.stat("a").tag != before.tag


def test_the_listing_has_the_same_tags_as_the_objects(store):
    store.put_bytes("folder/a", b"one")
    assert list(store.list()) == [store.stat("folder/a")]


def test_create_only_creates_once(store, tmp_path):
    store.put_bytes("a", b"first", create_only=True)
    (tmp_path / "file").write_bytes(b"third")
    with pytest.raises(AlreadyExistsError, match="a exists already"):
        store.put_bytes("a", b"second", create_only=True)
    with pytest.raises(AlreadyExistsError):
        store.put_file("a", tmp_path / "file", create_only=True)
    assert store.get_bytes("a") == b"first"


def test_what_is_not_there(store):
    for read in (store.get_bytes, store.open, lambda key: store.get_range(key, 0, 1)):
        with pytest.raises(NotFoundError, match="gone/astray"):
            read("gone/astray")
    assert store.stat("gone/astray") is None
    store.delete("gone/astray")
    assert keys(store) == []
    store.put_bytes("gone", b"x")
    assert store.stat("gone/astray") is None


def test_deleted_is_gone(store):
    store.put_bytes("a", b"x")
    store.delete("a")
    assert store.stat("a") is None
    assert keys(store) == []


def test_odd_names_come_back_in_order(store):
    for key in ODD:
        store.put_bytes(key, key.encode())
    assert keys(store) == sorted(ODD)
    assert keys(store, "z") == ["z-1", "z.1", "z/1"]
    assert keys(store, "z/") == ["z/1"]
    assert keys(store, "none") == []
    assert all(store.get_bytes(key) == key.encode() for key in ODD)


def test_a_listing_has_as_many_pages_as_it_takes(store, monkeypatch):
    """In pages of 10, where S3 has 1000 on one."""
    pages, list_page = [], s3._lister
    monkeypatch.setattr(
        s3, "_lister", lambda asked: pages.append(asked) or list_page(asked | {"MaxKeys": 10})
    )
    names = [f"_commit/train-{i:06d}.json" for i in range(43)]
    for name in names:
        store.put_bytes(name, b"")
    assert keys(store, "_commit/") == names
    assert [f"_commit/{name}" for name in store.look("_commit").objects] == names
    assert len(pages) == (2 * 5 if isinstance(store, s3.S3Storage) else 0)
    assert store.look() == Folder((), ("_commit",))


def test_a_look_shows_one_level(store):
    assert store.look() == Folder((), ())
    for key in ("b", "a", "run/x", "run/deep/1/2", "run/deep/3", "runs", ".tmp-x", "run/.tmp-y"):
        store.put_bytes(key, b"")
    assert store.look() == Folder(("a", "b", "runs"), ("run",))
    assert store.look("run") == Folder(("x",), ("deep",))
    assert store.look("run/deep") == Folder(("3",), ("1",))
    assert store.look("run/none") == store.look("a") == Folder((), ())
    with pytest.raises(ValueError, match="not a relative key"):
        store.look("../run")


def test_a_look_leaves_out_what_no_key_can_name(tmp_path):
    for name in ("back\\slash", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "good")
    assert open_storage(str(tmp_path)).look() == Folder(("good.txt",), ("good",))


@pytest.mark.parametrize(("start", "length"), [(0, 10), (3, 4), (9, 1), (0, 1), (5, 0)])
def test_a_range_is_exact(store, start, length):
    store.put_bytes("a", b"0123456789")
    assert store.get_range("a", start, length) == b"0123456789"[start : start + length]


@pytest.mark.parametrize(("start", "length"), [(8, 3), (10, 1), (100, 5)])
def test_a_range_beyond_the_end_says_that_the_object_is_short(store, start, length):
    store.put_bytes("a", b"0123456789")
    with pytest.raises(StorageError, match=f"a: . bytes at {start} instead of {length}"):
        store.get_range("a", start, length)


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b", "a\0b"])
def test_keys_stay_inside(store, key):
    for use in (store.get_bytes, store.stat, store.delete, store.url, lambda key: store.put_bytes(key, b"")):
        with pytest.raises(ValueError, match="not a relative key"):
            use(key)


@given(st.text())
def test_a_key_that_passes_names_something_below_the_root(key):
    try:
        check_key(key)
    except ValueError:
        return
    assert os.path.normpath(f"/root/{key}") == f"/root/{key}"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.binary(max_size=9) | st.none(), st.booleans()), max_size=20)
)
def test_a_store_is_a_dictionary(tmp_path, steps):
    shutil.rmtree(tmp_path / "root", ignore_errors=True)
    store, model = open_storage(str(tmp_path / "root")), {}
    for key, data, create_only in steps:
        if data is None:
            store.delete(key)
            model.pop(key, None)
        elif create_only and key in model:
            with pytest.raises(AlreadyExistsError):
                store.put_bytes(key, data, create_only=True)
        else:
            store.put_bytes(key, data, create_only=create_only)
            model[key] = data
    assert {entry.key: store.get_bytes(entry.key) for entry in store.list()} == model


def test_a_stream_feeds_hashes_and_tars(store, tmp_path):
    (tmp_path / "member").write_bytes(os.urandom(3_000_000))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "member", "member")
    store.put_file("a.tar", tmp_path / "a.tar")
    with store.open("a.tar") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    assert found == hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
    with store.open("a.tar") as file, tarfile.open(fileobj=file, mode="r|") as tar:
        assert [tar.extractfile(member).read() for member in tar] == [(tmp_path / "member").read_bytes()]


def test_a_pickled_store_opens_again(store):
    store.put_bytes("a", b"x")
    again = pickle.loads(pickle.dumps(store))
    assert again.root == store.root
    assert again.get_bytes("a") == b"x"


def test_addresses(store):
    assert store.url("train/a.tar") == f"{store.root}/train/a.tar"


def test_of_many_that_create_at_once_one_wins(store):
    if not store.honours_create_only():
        pytest.skip("this store cannot; the lease stands in for it")
    start = threading.Barrier(8)

    def create(number):
        start.wait()
        try:
            store.put_bytes("prize", str(number).encode(), create_only=True)
        except AlreadyExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            won = [number for number in pool.map(create, range(8)) if number is not None]
            assert [str(number).encode() for number in won] == [store.get_bytes("prize")]
            store.delete("prize")


def test_the_probe_knows_each_store_and_leaves_nothing(store, request):
    assert store.honours_create_only() is (request.node.callspec.params["store"] != "rclone")
    assert keys(store) == []


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


def test_create_only_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = open_storage(str(tmp_path))
    test_of_many_that_create_at_once_one_wins(store)
    store.put_bytes("a", b"x", create_only=True)
    with pytest.raises(AlreadyExistsError):
        store.put_bytes("a", b"y", create_only=True)
    assert keys(store) == ["a"]


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


def test_a_negative_range_is_none(store):
    store.put_bytes("a", b"0123456789")
    for start, length in ((0, -1), (-1, 1)):
        with pytest.raises(ValueError, match="not a range of bytes"):
            store.get_range("a", start, length)


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
