"""What is read whole is bounded, whoever wrote it."""

import pytest

from shards.errors import CorruptShardError, NotFoundError, OversizeError
from shards.stores.store import json_object, read_json_object


def test_an_object_above_the_limit_is_not_read(store):
    store.put_bytes("a", b"12345")
    assert store.get_bytes("a", 5) == b"12345"
    with pytest.raises(OversizeError, match="has 5 bytes, more than the 4 that such an object may have"):
        store.get_bytes("a", 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"a":' * 100_000, "is not JSON"),
        (b"[]", "holds no JSON object"),
        (b'"' + b"x" * 2000 + b'"', "is not JSON: .* more than the 1,000"),
    ],
)
def test_json_that_cannot_be_believed_is_named(make_dataset, content, message):
    storage = make_dataset(shards=())[0].storage
    storage.put_bytes("made.json", content)
    with pytest.raises(CorruptShardError, match=f"made.json {message}"):
        read_json_object(storage, "made.json", 1000 if b"xx" in content else 1 << 20)


def test_what_is_written_is_read_and_what_is_not_there_is_said(make_dataset):
    storage = make_dataset(shards=())[0].storage
    storage.put_bytes("made.json", json_object({"b": 1, "a": "é"}))
    assert read_json_object(storage, "made.json") == {"a": "é", "b": 1}
    assert storage.get_bytes("made.json").startswith(b'{\n "a"')
    with pytest.raises(NotFoundError):
        read_json_object(storage, "other.json")
