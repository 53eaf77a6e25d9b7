"""Single requests that fail: repeated where that may help, else one clear message."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from data_pipelines.records import outputs, storage, trees
from tests.services.conftest import Store
from tests.services.proxy import Fault

pytestmark = pytest.mark.services

DATA = bytes(range(256)) * 400


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(storage, "RETRY", storage.Retry(attempts=5, first=0.01, longest=0.02))
    gcsfs = pytest.importorskip("gcsfs.retry")  # which waits between attempts of its own
    real = gcsfs.asyncio
    quick = SimpleNamespace(**{**vars(real), "sleep": lambda seconds: real.sleep(0.001)})
    monkeypatch.setattr(gcsfs, "asyncio", quick)


@pytest.mark.parametrize("kind", ["500", "503", "429", "cut", "delay"])
def test_a_read_goes_on_after_a_fault(store: Store, kind):
    url = f"{store.url}/read/{kind}"
    storage.write_atomic(url, DATA)
    file = storage.open_ranges(url)
    assert file.size == len(DATA)
    store.proxy.faults.append(Fault(rf"GET .*{kind}", kind))
    assert file.pread(5000, 700) == DATA[700:5700]
    store.proxy.faults.append(Fault(rf"GET .*{kind}", kind))
    assert storage.read_bytes(url) == DATA
    assert store.proxy.broken == 2


@pytest.mark.parametrize("kind", ["500", "503", "cut_upload", "delay"])
def test_a_write_is_whole_after_a_fault(store: Store, tmp_path, kind):
    url = f"{store.url}/write/{kind}"
    (tmp_path / "file").write_bytes(DATA)
    for write in (
        lambda: storage.write_atomic(url, DATA),
        lambda: storage.upload(tmp_path / "file", url),
    ):
        store.proxy.faults.append(Fault("(PUT|POST) ", kind))
        write()
        assert storage.read_bytes(url) == DATA
        storage.remove(url)


@pytest.mark.parametrize("last", [b"\r", b"\n", b"\r\n"])
def test_a_last_byte_that_ends_a_line_is_kept(store: Store, tmp_path, last):
    (tmp_path / "file").write_bytes(DATA + last)
    storage.upload(tmp_path / "file", f"{store.url}/last")
    assert storage.read_bytes(f"{store.url}/last") == DATA + last


def test_a_write_that_fails_for_good_leaves_what_was_there(store: Store):
    url = f"{store.url}/kept"
    storage.write_atomic(url, b"before")
    store.proxy.faults.append(Fault("(PUT|POST) ", "503", times=1000))
    with pytest.raises(storage.StorageError, match=r"kept: writing: gave up after 5 attempts"):
        storage.write_atomic(url, DATA)
    store.proxy.faults.clear()
    assert storage.read_bytes(url) == b"before"


def test_what_is_not_there_or_not_allowed_is_said_at_once(store: Store):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{store.url}/nothing")
    assert storage.below(f"{store.url}/nothing") == {}
    storage.write_atomic(f"{store.url}/secret", DATA)
    store.proxy.faults.append(Fault("GET .*secret", "403", times=1))
    with pytest.raises(OSError, match=r"secret: .*(?i:forbidden|denied|injected)"):
        storage.read_bytes(f"{store.url}/secret")
    store.proxy.faults.append(Fault("(PUT|POST) ", "403", times=1))
    with pytest.raises(ValueError, match=r"--out=\w+://bucket/x: cannot be written"):
        outputs.check_folder("--out", f"{store.url}/x", remote=True)


def test_a_bucket_that_does_not_exist_is_named(store: Store):
    place = store.url.replace("bucket", "no-such-bucket")
    with pytest.raises(ValueError, match=r"--out=\w+://no-such-bucket/x: cannot be written"):
        outputs.check_folder("--out", f"{place}/x", remote=True)


def test_folders_are_copied_both_ways_whatever_fails(store: Store, tmp_path):
    names = [f"{folder}/{i}" for folder in ("a", "a/b") for i in range(4)]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode() * 500)
    store.proxy.faults += [Fault("(PUT|POST) ", "503"), Fault("(PUT|POST) ", "cut_upload")]
    trees.upload_tree(tmp_path / "in", f"{store.url}/tree")
    assert storage.below(f"{store.url}/tree") == {name: len(name) * 500 for name in sorted(names)}
    store.proxy.faults += [Fault("GET .*tree", "cut"), Fault("GET .*tree", "500")]
    trees.download_tree(f"{store.url}/tree", tmp_path / "out")
    assert all((tmp_path / "out" / n).read_bytes() == n.encode() * 500 for n in names)
    store.proxy.faults.append(Fault("(DELETE|POST) ", "500"))
    trees.remove_tree(f"{store.url}/tree")
    assert storage.below(f"{store.url}/tree") == {}
