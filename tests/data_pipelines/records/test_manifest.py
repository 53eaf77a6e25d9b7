"""The manifest: loading it, and refusing data that is not what it describes."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.records import manifest
from data_pipelines.records.manifest import Manifest, ShardInfo, SplitInfo, load, open_split, save
from data_pipelines.records.reader import CorruptRecordError, ShardWriter, build_index, write_index


def write_split(directory: Path, split: str, counts: list[int]) -> SplitInfo:
    shards = []
    for k, count in enumerate(counts):
        name = f"toy-{split}-{k:05d}-of-{len(counts):05d}.tfrecord"
        with ShardWriter(directory / name) as writer:
            for i in range(count):
                writer.append(f"{split} {k} {i}".encode(), 2)
        shards.append(ShardInfo(name, writer.count, writer.bytes, writer.sha256, writer.index_crc))
    return SplitInfo(tuple(shards), sum(counts), 2 * sum(counts), (sum(counts), 0))


@pytest.fixture
def dataset(tmp_path):
    directory = tmp_path / "shards"
    directory.mkdir()
    save(
        Manifest(
            directory=str(directory),
            name="toy",
            schema_version=1,
            classes=("sit", "stand ü"),
            flip_changes_label=True,
            options={"quality": 90, "fps": None},
            splits={
                "train": write_split(directory, "train", [3, 2]),
                "test": write_split(directory, "test", [2]),
                "val": write_split(directory, "val", [0]),
            },
            rejected=4,
            partial=1,
            inputs_sha256="ab" * 32,
        )
    )
    return directory


def test_round_trip(dataset):
    loaded = load(dataset)
    assert loaded.classes == ("sit", "stand ü") and loaded.flip_changes_label is True
    assert loaded.split("train").records == 5 and loaded.split("train").label_counts == (5, 0)
    assert (loaded.rejected, loaded.partial, loaded.options["quality"]) == (4, 1, 90)
    before = (dataset / "manifest.json").read_bytes()
    save(loaded)
    assert (dataset / "manifest.json").read_bytes() == before


def test_open_split_reads_the_records_in_order(dataset):
    found, source = open_split(dataset, "train")
    assert [bytes(data) for data in source] == [
        b"train 0 0",
        b"train 0 1",
        b"train 0 2",
        b"train 1 0",
        b"train 1 1",
    ]
    assert found.name == "toy" and source.num_frames(0) == 2 and source.check_crc
    assert open_split(dataset, "test", check_crc=False)[1].check_crc is False


def test_unknown_split_lists_the_splits_and_the_nearest(dataset):
    with pytest.raises(ValueError, match=r"no split 'tran'; found .*did you mean 'train'"):
        load(dataset).split("tran")
    with pytest.raises(ValueError, match=r"found test, train, val$"):
        open_split(dataset, "zzz")


def test_empty_split_is_refused(dataset):
    with pytest.raises(ValueError, match=r"'val' has no records.*rejected\.jsonl"):
        open_split(dataset, "val")


def test_fingerprint_follows_the_records_and_nothing_else(dataset, tmp_path):
    found = load(dataset)
    fingerprint = found.fingerprint("train")
    shutil.copytree(dataset, tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint("train") == fingerprint
    assert dataclasses.replace(found, rejected=9, options={}).fingerprint("train") == fingerprint
    train = found.split("train")
    changed_shard = dataclasses.replace(train.shards[0], sha256="0" * 64)
    for split, classes in (
        (dataclasses.replace(train, shards=train.shards[::-1]), found.classes),
        (dataclasses.replace(train, shards=(changed_shard, train.shards[1])), found.classes),
        (train, found.classes[::-1]),
    ):
        other = dataclasses.replace(found, splits={"train": split}, classes=classes)
        assert other.fingerprint("train") != fingerprint
    assert found.fingerprint("test") != fingerprint


def test_missing_empty_and_unfinished_directories_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="is empty; make shards with"):
        load(tmp_path)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json; found photo\.jpg"):
        load(tmp_path)
    (tmp_path / "plan.json").touch()
    with pytest.raises(FileNotFoundError, match="the ingest has not finished"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda c: c.update(schema_version=99), "schema version 99, this program reads up to 2"),
        (lambda c: c.pop("classes"), "classes is None, expected list"),
        (lambda c: c["classes"].append(3), r"classes\[2\] is 3, expected str"),
        (lambda c: c.update(rejected=True), "rejected is True, expected int"),
        (lambda c: c.update(splits=[]), "splits is"),
        (lambda c: c["splits"]["train"].update(records=6), "records is 6, the shards add up to 5"),
        (lambda c: c["splits"]["train"].update(label_counts=[1]), "label_counts has 1 values"),
        (lambda c: c["splits"]["test"]["shards"][0].pop("sha256"), r"shards\[0\]\.sha256 is None"),
        (lambda c: c["splits"]["test"]["shards"][0].update(name="../x"), "not a plain file name"),
    ],
)
def test_broken_manifests_name_the_field(dataset, edit, complaint):
    path = dataset / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=complaint):
        load(dataset)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\udcff"])
def test_unreadable_manifest(dataset, text):
    (dataset / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"manifest\.json: is not readable JSON"):
        load(dataset)


SHARD = "toy-train-00001-of-00002.tfrecord"
OTHER = "toy-train-00000-of-00002.tfrecord"


def delete(path: Path) -> None:
    os.unlink(path)


def cut_at_boundary(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)  # two records of equal size


def swap(path: Path) -> None:
    other = path.parent / OTHER
    for suffix in ("", ".idx"):
        a, b = Path(f"{path}{suffix}"), Path(f"{other}{suffix}")
        content = a.read_bytes()
        a.write_bytes(b.read_bytes())
        b.write_bytes(content)


def rewrite_with_other_sizes(path: Path) -> None:
    """Same name, count and size, with its own valid index: a shard of another run."""
    with ShardWriter(path) as writer:
        writer.append(b"train 1 0!", 2)
        writer.append(b"train 1 ", 2)


def rewrite_with_more_records(path: Path) -> None:
    with ShardWriter(path) as writer:
        writer.append(b"", 2)
        writer.append(b"a", 2)
        writer.append(b"b", 2)


def stale_index(path: Path) -> None:
    """The shard is right, the index was made by an older scan (frame counts unknown)."""
    index = build_index(path)
    write_index(path, index.entries, index.shard_bytes)


@pytest.mark.parametrize(
    ("damage", "error", "complaint"),
    [
        (delete, FileNotFoundError, "the shard is missing, manifest.json lists it with 2 records"),
        (cut_at_boundary, ValueError, "bytes, manifest.json says"),
        (swap, ValueError, "bytes, manifest.json says"),
        (
            lambda p: os.unlink(f"{p}.idx"),
            FileNotFoundError,
            "the index is missing.*ivj data reindex",
        ),
        (lambda p: os.truncate(f"{p}.idx", 50), ValueError, "too short for an index"),
        (rewrite_with_other_sizes, ValueError, "the index is older or belongs to another"),
        (rewrite_with_more_records, ValueError, "has 3 records, manifest.json says 2"),
        (stale_index, ValueError, "the index is older or belongs to another"),
    ],
)
def test_data_that_does_not_match_the_manifest_is_refused(dataset, damage, error, complaint):
    if damage is rewrite_with_more_records:
        # Make room in the manifest for the same size, so that only the count is wrong.
        rewrite_with_more_records(dataset / SHARD)
        path = dataset / "manifest.json"
        content = json.loads(path.read_text())
        info = content["splits"]["train"]["shards"][1]
        info["bytes"] = (dataset / SHARD).stat().st_size
        path.write_text(json.dumps(content))
    else:
        damage(dataset / SHARD)
    with pytest.raises(error, match=complaint) as caught:
        open_split(dataset, "train")
    assert "toy-train-0000" in str(caught.value)
    open_split(dataset, "test")  # the other split is not affected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_fuzz_manifest_values(dataset, data):
    content = json.loads((dataset / "manifest.json").read_text())
    path = data.draw(st.sampled_from(list(paths_in(content))))
    value = data.draw(st.sampled_from([None, -1, 1.5, "x", [], {}, [[]], 10**30, True]))
    owner = content
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    target = dataset.parent / "fuzzed"
    target.mkdir(exist_ok=True)
    (target / manifest.FILE_NAME).write_text(json.dumps(content))
    try:
        load(target)
    except ValueError as error:
        assert manifest.FILE_NAME in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["splits", "classes", "shards", "name", "schema_version", "train"])
            | st.text(max_size=9),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200))
def test_fuzz_manifest_text(tmp_path, data):
    (tmp_path / manifest.FILE_NAME).write_bytes(data)
    with pytest.raises(ValueError, match=r"manifest\.json: "):
        load(tmp_path)


def equal_sizes(path: Path) -> None:
    """Another shard of the same size under this name; its index is still the right one."""
    with ShardWriter(path.parent / "other") as writer:
        writer.append(b"train 9 8", 2)
        writer.append(b"train 9 9", 2)
    os.replace(path.parent / "other", path)


def test_a_swapped_shard_of_equal_size_is_refused_at_its_first_record(dataset):
    equal_sizes(dataset / SHARD)
    _, source = open_split(dataset, "train")
    assert source[0] == b"train 0 0"
    with pytest.raises(CorruptRecordError, match=rf"{SHARD}.*swapped with another shard"):
        source[3]


def paths_in(value, prefix=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        yield (*prefix, key)
        if isinstance(child, (dict, list)):
            yield from paths_in(child, (*prefix, key))


def rename_class(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("name", ["manifest.json", "classes.json"])
def test_class_names_that_differ_from_classes_json_are_refused(dataset, name):
    (dataset / "classes.json").write_text('["sit", "stand ü"]', encoding="utf-8")
    open_split(dataset, "train")
    rename_class(dataset / name, "sit", "rit")
    for refused in (lambda: load(dataset), lambda: open_split(dataset, "train")):
        with pytest.raises(ValueError, match=r"disagree: class 0 is '[rs]it' and '[rs]it'; copy"):
            refused()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('["sit"]', "2 classes and 1 classes"),
        ('{"sit": 0}', "2 classes and no list of classes"),
        ('["sit", 3]', "class 1 is 'stand ü' and 3"),
        ("[", None),  # says nothing of the manifest
        ("[" + "9" * 5000, None),
    ],
)
def test_other_class_files(dataset, text, complaint):
    (dataset / "classes.json").write_text(text, encoding="utf-8")
    if complaint is None:
        load(dataset)
        return
    with pytest.raises(ValueError, match=complaint):
        load(dataset)


def test_a_number_of_thousands_of_digits_in_a_manifest(dataset):
    rename_class(dataset / "manifest.json", '"rejected": ', '"rejected": ' + "9" * 5000)
    with pytest.raises(ValueError, match=r"manifest\.json: is not readable JSON"):
        load(dataset)
