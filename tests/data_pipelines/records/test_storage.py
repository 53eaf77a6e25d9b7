"""Remote storage: the same reads through range requests, and every way a request can fail."""

from __future__ import annotations

import errno
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_pipelines.records import storage
from data_pipelines.records.index import build_index, read_index
from data_pipelines.records.manifest import load, open_split
from data_pipelines.records.reader import RecordSource, ShardWriter
from tests.data_pipelines.records.flaky import (
    HostFileSystem,
    ServerError,
    fails,
    fine,
    flaky,
    short,
    upload,
)
from tests.data_pipelines.records.shards import content, write_shard
from tests.data_pipelines.records.test_manifest import dataset  # noqa: F401 - a fixture

URL = "flaky://bucket/set"


@pytest.fixture
def system():
    with flaky() as found:
        yield found


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", waits.append)
    monkeypatch.setattr(storage, "RETRY", storage.Retry(attempts=4, first=1.0, longest=3.0))
    return waits


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("gs://bucket/a", True),
        ("simplecache::s3://bucket/a", True),
        ("/data/a", False),
        ("data/odd:name", False),
        ("file:///data/a", False),
    ],
)
def test_which_paths_are_remote(path, remote):
    assert storage.is_remote(path) is remote


@pytest.mark.parametrize("place", ["local", "file", "remote"])
def test_files_are_handled_alike_everywhere(system, tmp_path, place):
    base = {"local": str(tmp_path), "file": f"file://{tmp_path}", "remote": URL}[place]
    path = storage.join(base, "a.txt")
    assert not storage.exists(path)
    storage.write_atomic(path, b"first")
    storage.write_atomic(path, "zweite ü".encode())
    assert storage.exists(path) and storage.read_text(path) == "zweite ü"
    assert storage.size(path) == 9 and storage.read_bytes(path) == "zweite ü".encode()
    assert storage.listdir(base) == ["a.txt"] and storage.sizes(base) == {"a.txt": 9}
    file = storage.open_ranges(path)
    assert (file.size, file.pread(3, 2), file.pread(9, 7), file.pread(1, 50)) == (
        9,
        b"eit",
        "ü".encode(),
        b"",
    )
    assert file.pread_many([(2, 0), (2, 4)]) == [b"zw", b"te"]
    file.close()
    storage.remove(path)
    storage.remove(path)
    assert not storage.exists(path)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(path)
    with pytest.raises(FileNotFoundError):
        storage.size(path)


def test_a_link_under_a_temporary_name_is_not_written_through(tmp_path):
    """In a folder that others write to, as well as what a crash left there."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("a.json", "x.tfrecord"):
        (tmp_path / f"{name}.tmp").symlink_to(victim)
    storage.write_atomic(tmp_path / "a.json", b"ours")
    write_shard(tmp_path / "x.tfrecord", 2)
    (tmp_path / "a.json.tmp").write_text("of a crash")
    storage.write_atomic(tmp_path / "a.json", b"again")
    assert victim.read_text() == "precious"
    assert (tmp_path / "a.json").read_bytes() == b"again" and not list(tmp_path.glob("*.tmp"))
    assert len(RecordSource([str(tmp_path / "x.tfrecord")])) == 2
    old = os.umask(0o027)
    try:
        storage.write_atomic(tmp_path / "b", b"")
    finally:
        os.umask(old)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o640  # as any file of the user


TRANSIENT = [
    TimeoutError("slow"),
    ConnectionResetError("reset"),
    ServerError(503),
    ServerError(429),
    OSError(errno.EBUSY, "slow down"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_passing_failures_are_waited_out(system, no_waiting, error):
    storage.write_atomic(f"{URL}/a", b"0123456789")
    system.faults[:] = [fails(error), short, fails(error)]
    assert storage.open_ranges(f"{URL}/a", 10).pread(4, 3) == b"3456"
    assert system.reads == [("/bucket/set/a", 3, 4)] * 4
    # Doubling up to the bound, each from the upper half.
    assert [0.5 <= no_waiting[0] <= 1, 1 <= no_waiting[1] <= 2, 1.5 <= no_waiting[2] <= 3] == [
        True
    ] * 3


@pytest.mark.parametrize("fault", [*map(fails, TRANSIENT), short])
def test_failures_that_stay_end_with_everything_that_matters(system, fault):
    storage.write_atomic(f"{URL}/a", b"0123456789")
    system.faults[:] = [fault] * 10
    with pytest.raises(storage.StorageError) as caught:
        storage.open_ranges(f"{URL}/a").pread(4, 3)
    text = str(caught.value)
    assert f"{URL}/a: reading bytes 3 to 7: gave up after 4 attempts" in text
    assert "last error: " in text and "start the run again" in text
    assert len(system.reads) == 4


@pytest.mark.parametrize(
    "error", [PermissionError("no"), ServerError(404), FileNotFoundError("gone"), KeyError("bug")]
)
def test_failures_that_cannot_pass_are_not_repeated(system, error):
    storage.write_atomic(f"{URL}/a", b"0123456789")
    system.faults[:] = [fails(error)] * 10
    with pytest.raises(type(error)):
        storage.open_ranges(f"{URL}/a").pread(4, 3)
    assert len(system.reads) == 1


def test_wrapped_failures_are_recognised(system):
    """fsspec's back ends raise an OSError of their own from the one of the HTTP library."""
    storage.write_atomic(f"{URL}/a", b"0123456789")

    def wrapped(data: bytes) -> bytes:
        raise OSError("backend") from ServerError(502)

    system.faults[:] = [wrapped]
    assert storage.open_ranges(f"{URL}/a").pread(1, 0) == b"0"


def test_one_failed_range_of_several_is_read_again_alone(system):
    storage.write_atomic(f"{URL}/a", b"0123456789")
    system.faults[:] = [fine, fails(TimeoutError()), short]
    spans = [(2, 0), (2, 4), (2, 8)]
    assert storage.open_ranges(f"{URL}/a").pread_many(spans) == [b"01", b"45", b"89"]
    assert [start for _, start, _ in system.reads] == [0, 4, 8, 4, 8]


SERVERS = {
    "hosts://alpha/x": "@alpha:22/x",
    "hosts://beta/x": "@beta:22/x",
    "hosts://beta:2222/x": "@beta:2222/x",
    "hosts://anna@beta/x": "anna@beta:22/x",
    "hosts://otto@beta/x": "otto@beta:22/x",
}


@pytest.fixture
def hosts():
    import fsspec

    fsspec.register_implementation("hosts", HostFileSystem, clobber=True)
    storage._filesystems.clear()
    yield
    storage._filesystems.clear()


def test_servers_ports_and_users_of_one_scheme_are_told_apart(hosts):
    for _ in range(2):
        for url, text in SERVERS.items():
            assert storage.read_text(url) == text
            assert storage.size(url) == len(text)
            assert storage.open_ranges(url).pread(5, 0) == text[:5].encode()
            assert list(storage.sizes(url)) == [text.removesuffix("/x")]
    assert len(storage._filesystems) == len(SERVERS)


def test_what_names_no_server_shares_its_connections(hosts, system):
    storage.write_atomic(f"{URL}/a", b"1")
    storage.write_atomic("flaky://other/a", b"2")
    assert storage.read_bytes(f"{URL}/a") + storage.read_bytes("flaky://other/a") == b"12"
    assert len(storage._filesystems) == 1
    storage.read_bytes("hosts://alpha/a/b")
    storage.read_bytes("hosts://alpha/c")
    assert len(storage._filesystems) == 2


def test_threads_share_the_connection_to_a_server_and_a_fork_makes_its_own(hosts):
    def system_of(url: str):
        return storage._filesystem(url)[0]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(system_of, list(SERVERS) * 8))
    assert len({id(one) for one in found}) == len(SERVERS)
    child = os.fork()
    if not child:
        own = storage._filesystem("hosts://beta/x")[0]
        os._exit(not (own.server == "@beta:22" and all(own is not one for one in found)))
    assert os.waitpid(child, 0)[1] == 0


def test_a_server_that_cannot_be_reached_is_tried_as_often_as_a_read(
    hosts, monkeypatch, no_waiting
):
    def unreachable(self, *args, **kwargs):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(HostFileSystem, "__init__", unreachable)
    with pytest.raises(storage.StorageError, match="hosts://gone/x: connecting: gave up after 4"):
        storage.read_bytes("hosts://gone/x")
    assert len(no_waiting) == 3


def test_a_url_that_is_none_is_a_clear_error():
    with pytest.raises(ValueError, match=r"ftp://\[::1/x: no file system for ftp://"):
        storage.read_bytes("ftp://[::1/x")


def test_a_scheme_nobody_knows_is_a_clear_error():
    with pytest.raises(ValueError, match=r"no file system for nowhere://"):
        storage.read_bytes("nowhere://bucket/a")


def test_a_missing_back_end_names_the_extra(monkeypatch):
    import fsspec.core

    def missing(*args, **kwargs):
        raise ImportError("Install gcsfs")

    monkeypatch.setattr(storage, "_filesystems", {})
    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ImportError, match=r"internvideo-jax\[remote\]"):
        storage.read_bytes("gs://bucket/a")


def test_records_are_read_from_remote_shards(system, tmp_path):
    write_shard(tmp_path / "a.tfrecord", 5)
    upload(tmp_path, URL)
    path = f"{URL}/a.tfrecord"
    assert read_index(path).crc == read_index(tmp_path / "a.tfrecord").crc
    source = RecordSource([path])
    system.reads.clear()
    assert [source[i] for i in (3, 0)] == [content(3), content(0)]
    # Two small ones tie the index to the shard, then one request a record.
    assert len(system.reads) == 4 and source.requests == 4
    assert source.bytes_read == 8 + len(content(3)) + len(content(0)) + 32
    assert pickle.loads(pickle.dumps(source))[4] == content(4)
    system.faults[:] = [short, fails(ServerError(500)), fails(TimeoutError())]
    assert source[2] == content(2)
    system.faults[:] = [short] * 10
    with pytest.raises(storage.StorageError, match="gave up"):
        source[2]


def test_remote_shards_without_an_index_are_scanned(system, tmp_path):
    write_shard(tmp_path / "a.tfrecord", 5)
    os.unlink(tmp_path / "a.tfrecord.idx")
    upload(tmp_path, URL)
    assert len(build_index(f"{URL}/a.tfrecord").entries) == 5
    assert RecordSource([f"{URL}/a.tfrecord"])[4] == content(4)


def test_writer_uploads_the_same_bytes(system, tmp_path):
    write_shard(tmp_path / "a.tfrecord", 3)
    with ShardWriter(f"{URL}/a.tfrecord") as writer:
        for i in range(3):
            writer.append(content(i), i + 1)
        tmp = writer._tmp
        assert not storage.exists(f"{URL}/a.tfrecord")
    assert not os.path.exists(tmp)
    for name in ("a.tfrecord", "a.tfrecord.idx"):
        assert storage.read_bytes(f"{URL}/{name}") == (tmp_path / name).read_bytes()


def test_a_remote_dataset_opens_with_one_listing_and_one_request_an_index(system, dataset):  # noqa: F811
    upload(dataset, URL)
    system.calls.clear()
    found, source = open_split(URL, "train")
    assert found.fingerprint("train") == load(dataset).fingerprint("train")
    assert system.calls == ["ls /bucket/set"]
    assert sorted(path.rpartition("/")[2] for path, *_ in system.reads) == [
        "manifest.json",
        "toy-train-00000-of-00002.tfrecord.idx",
        "toy-train-00001-of-00002.tfrecord.idx",
    ]
    assert source[4] == b"train 1 1"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("toy-train-00001-of-00002.tfrecord", "the shard is missing"),
        ("toy-train-00001-of-00002.tfrecord.idx", "the index is missing"),
        ("manifest.json", r"has no manifest\.json"),
    ],
)
def test_missing_parts_of_a_remote_dataset(system, dataset, name, complaint):  # noqa: F811
    upload(dataset, URL)
    storage.remove(f"{URL}/{name}")
    with pytest.raises(FileNotFoundError, match=complaint):
        open_split(URL, "train")


def test_no_remote_dataset(system):
    with pytest.raises(FileNotFoundError, match="is empty"):
        load(f"{URL}/none")


def test_a_listing_that_fails_is_repeated(system, dataset, monkeypatch):  # noqa: F811
    upload(dataset, URL)
    errors = [TimeoutError(), ServerError(500)]
    original = system.ls

    def ls(self, *args, **kwargs):
        if errors:
            raise errors.pop()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(system, "ls", ls)
    assert len(open_split(URL, "test")[1]) == 2


def test_a_shard_replaced_by_a_shorter_one_is_found_at_the_next_read(system, dataset):  # noqa: F811
    upload(dataset, URL)
    _, source = open_split(URL, "train")
    shard = f"{URL}/toy-train-00000-of-00002.tfrecord"
    storage.write_atomic(shard, storage.read_bytes(shard)[:-9])
    with pytest.raises(storage.StorageError, match="of 4 bytes came back"):
        source[2]
