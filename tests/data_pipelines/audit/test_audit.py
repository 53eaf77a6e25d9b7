"""Copies are found whatever was done to them, others are not; what was found can be left out."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.__main__ import main
from data_pipelines.audit import candidates, compare, fingerprints, run
from data_pipelines.audit.options import AuditOptions
from data_pipelines.config import ClipConfig, DataConfig, ReaderConfig, ViewConfig
from data_pipelines.records import leave_out, manifest
from data_pipelines.records.dataset import open_dataset
from data_pipelines.stream.pipeline import TrainStream, ViewPass
from tests.data_pipelines.audit.conftest import COPIES

CLIP = ClipConfig(frames=2, stride=1, resolution=32)


@pytest.fixture(scope="module")
def found(shards, copies, tmp_path_factory):
    """The audit of the training set against its copies, and where its files are."""
    out = tmp_path_factory.mktemp("audit") / "found"
    words = ["audit", str(shards), "--split=train", "--against", str(copies), "--workers=0"]
    assert main([*words, f"--out={out}", "--quiet"]) == 1
    return out


def test_every_copy_is_found_and_nothing_else(found):
    content = json.loads(found.with_suffix(".json").read_text())
    pairs = {row["other_id"]: row for row in content["pairs"]}
    assert set(pairs) == set(COPIES) and len(content["pairs"]) == len(COPIES)
    for place, name in enumerate(COPIES):
        assert pairs[name]["id"] == f"world-0-{3 * place:06d}"
        assert pairs[name]["mirrored"] == (name == "mirrored")
    assert pairs["later"]["shift_seconds"] == pytest.approx(0.5)
    assert pairs["again"]["distance"] < 0.05 and content["leaked_records"] == len(COPIES)
    # 20 frames at 12 a second are 1.6 s, of which every quarter is looked at.
    (own, _) = content["splits"]
    assert own["records"] == 60 and own["decoded_frames"] == 60 * 7
    with open(found.with_suffix(".csv"), newline="") as file:
        assert len(list(csv.DictReader(file))) == len(COPIES)
    page = found.with_suffix(".html").read_text()
    assert page.count("data:image/jpeg") == len(COPIES) and "mirrored" in page


def test_shards_that_were_seen_are_not_read_again(found, shards, copies, monkeypatch):
    monkeypatch.setattr("data_pipelines.audit.collect.collect_shard", None)
    options = AuditOptions(
        str(shards), str(found), (str(copies),), splits=("train",), threshold=0.001
    )
    before = {path: path.read_bytes() for path in found.parent.glob("*.leave_out.json")}
    assert len(run.audit(options, quiet=True).pairs) <= len(COPIES)
    for path, data in before.items():
        path.write_bytes(data)


def test_training_and_evaluation_leave_the_records_out(found, shards):
    path = f"{found}.leave_out.json"
    (listed,) = leave_out.read(path)
    assert (listed.split, len(listed.records)) == ("train", len(COPIES))
    config = DataConfig(
        train=str(shards), clip=CLIP, global_batch=6, reader=ReaderConfig(threads=2)
    )

    def seen(config) -> tuple[list[int], dict]:
        with_list = TrainStream(config)
        batches = [next(with_list) for _ in range(9)]
        with_list.close()
        return [int(i) for batch in batches for i in batch["index"]], with_list.identity

    used, identity = seen(dataclasses.replace(config, leave_out=path))
    assert sorted(used) == sorted(set(range(60)) - set(listed.records))  # one whole pass
    every, plain = seen(config)
    assert "kept" not in json.dumps(plain) and "kept" in json.dumps(identity)
    assert len(set(every)) == 54
    dataset = open_dataset(str(shards), "train", leave_out=path)
    views = ViewPass(
        "",
        "",
        ViewConfig(clip=dataclasses.replace(CLIP, sampling="dense"), batch=8),
        dataset=dataset,
    )
    index = np.concatenate([batch["index"][batch["valid"]] for batch in views])
    views.close()
    assert sorted(index.tolist()) == sorted(used) and len(views) == 7


def test_a_list_of_other_records_is_refused(found, shards, copies, tmp_path):
    path = f"{found}.leave_out.json"
    config = DataConfig(train=str(copies), split="test", clip=CLIP, leave_out=path)
    with pytest.raises(ValueError, match=r"does not name the training data; it is about .*tr"):
        TrainStream(config)
    content = json.loads((found.parent / f"{found.name}.leave_out.json").read_text())
    content["splits"][0]["fingerprint"] = "older"
    old = tmp_path / "old.json"
    old.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was ingested anew since; run the audit again"):
        open_dataset(str(shards), "train", leave_out=str(old))
    old.write_text("{}")
    with pytest.raises(ValueError, match="is no list of records as `ivj data audit` writes"):
        open_dataset(str(shards), "train", leave_out=str(old))
    with pytest.raises(ValueError, match="no such file"):
        open_dataset(str(shards), "train", leave_out=str(tmp_path / "none.json"))
    whole = leave_out.Records.of(manifest.load(str(shards)), "test", range(20), [])
    leave_out.write(str(old), [whole])
    with pytest.raises(ValueError, match="leaves out all 20 records"):
        open_dataset(str(shards), "test", leave_out=str(old))


def test_the_exit_code_is_for_machines(found, shards, copies, tmp_path, capsys):
    words = ["audit", str(shards), f"--out={tmp_path / 'a'}", "--workers=0", "--quiet"]
    assert main(words) == 0, capsys.readouterr().out
    assert "0 within distance" in capsys.readouterr().out
    nothing = leave_out.read(f"{tmp_path / 'a'}.leave_out.json")
    assert [(each.split, each.records) for each in nothing] == [("train", ()), ("test", ())]
    clean = DataConfig(train=str(shards), clip=CLIP, leave_out=f"{tmp_path / 'a'}.leave_out.json")
    stream = TrainStream(clean)
    stream.close()
    assert "kept" not in json.dumps(stream.identity)
    many = [*words, "--against", str(copies), f"--most={len(COPIES)}"]
    assert main(many) == 0
    assert main(["audit", str(copies), *words[2:]]) == 2
    assert "has one split, test: name a set to compare" in capsys.readouterr().err
    assert main(["audit", str(copies), *words[2:], "--within"]) == 0
    assert main([*words, "--against", str(shards)]) == 2
    assert "leave --against out to compare the splits of one set" in capsys.readouterr().err
    assert main([*words, "--threshold=2"]) == 2
    assert (
        main([*words, "--split=trian"]) == 2 and "did you mean 'train'" in capsys.readouterr().err
    )


def test_frames_are_taken_by_the_clock():
    times = np.arange(100) * 40_000  # 4 s at 25 a second
    numbers, period = fingerprints.frame_numbers(times)
    assert period == 250_000 and len(numbers) == 16 and numbers[:3].tolist() == [0, 6, 12]
    numbers, period = fingerprints.frame_numbers(np.arange(2500) * 40_000)
    assert period == 4_000_000 and len(numbers) == 25
    assert fingerprints.frame_numbers([5])[0].tolist() == [0]


def test_a_match_is_where_two_clips_lie_on_another():
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (20, 16, 16), np.uint8)
    cut = compare.match(clip, clip[6:], 250_000, 250_000, False)
    assert (cut.distance, cut.shift_us, cut.pictures) == (pytest.approx(0, abs=1e-3), 1_500_000, 14)
    back = compare.match(clip[6:], clip, 250_000, 250_000, False)
    assert back.shift_us == -1_500_000
    thinner = compare.match(clip, clip[1::2], 250_000, 500_000, False)
    assert thinner.distance < 1e-3 and thinner.shift_us == 250_000
    flipped = compare.match(clip, clip[:, :, ::-1], 250_000, 250_000, True)
    assert flipped.distance < 1e-3
    assert compare.match(clip, clip[::-1], 250_000, 250_000, False).distance > 1
    assert compare.match(clip[:0], clip, 250_000, 250_000, False) == compare.NOTHING


def test_hashes_that_differ_in_two_bits_share_a_key():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 2**63, 200, np.uint64)
    for value in values:
        bits = rng.choice(64, 2, replace=False).astype(np.uint64)
        other = value ^ (np.uint64(1) << bits[0]) ^ (np.uint64(1) << bits[1])
        one, two = (set(candidates.keys(np.array([each])).tolist()) for each in (value, other))
        assert one & two
    assert len(set(candidates.keys(values).tolist())) == 1200


def test_many_clips_that_look_alike_are_counted_and_not_all_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "CROWD", 4)
    buckets = candidates.Buckets(str(tmp_path / "keys"), 100)
    for clip in range(20):
        buckets._write(np.array([7], np.uint64), np.array([clip * 2]))
    pairs = buckets.pairs(np.repeat([0, 1], 10), [(0, 1)])
    assert len(pairs) == 16 and buckets.crowded == 6 * 12
