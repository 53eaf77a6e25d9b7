"""A part kept from training: the same videos for ever, whole videos, and said."""

import json
import shutil
from collections import Counter

import pytest

from data_pipelines.ingest import __main__ as cli
from data_pipelines.ingest.hold_out import apply, group_of, is_held_out
from data_pipelines.ingest.rows import Row
from data_pipelines.records import manifest
from tests.data_pipelines.ingest.clips import make_video


def row(name: str, label: str = "run", **changes) -> Row:
    values = {"path": name, "name": name, "id": name, "split": "train", "labels": (label,)}
    return Row(**{**values, **changes})


def sides(rows: list[Row], share: float = 0.2) -> dict[str, str]:
    return {row.id: row.split for row in apply(rows, share, "test")[0]}


ROWS = [row(f"{label}/{i}.mp4", label) for label in ("run", "sit") for i in range(500)]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_the_share_is_met_on_average_in_every_class(share):
    found, note = apply(ROWS, share, "test")
    count = Counter(row.labels[0] for row in found if row.split == "test")
    for label in ("run", "sit"):
        assert abs(count[label] - 500 * share) < 4 * (500 * share * (1 - share)) ** 0.5
    assert f"held out {count.total()} of 1000 clips" in note and "have no clip" not in note


def test_a_source_that_grows_moves_no_clip():
    before = sides(ROWS[100:800])
    after = sides([row("new/x.mp4"), *reversed(ROWS)])
    assert all(after[key] == split for key, split in before.items())


def test_a_larger_share_keeps_what_a_smaller_one_has():
    small, large = (
        {key for key, split in sides(ROWS, share).items() if split == "test"}
        for share in (0.1, 0.3)
    )
    assert small < large


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (row("a.mp4", start=0.0, end=1.0, id="a#0-1"), row("a.mp4", start=5.0, id="a#5-")),
        (row("a.mp4"), row("./a.mp4")),
        (row("run/v_Run_g01_c01.avi"), row("run/v_Run_g01_c07.avi")),
        (row("run/-abc_000001_000011.mp4"), row("sit/-abc_000020_000030.mp4", "sit")),
        (row("-abc_1.000_2.500.mp4"), row("x/-abc_10.250_12.000.webm")),
        (row("1.mp4", extra={"YoutubeID": "x"}), row("2.mp4", extra={"YoutubeID": "x"})),
        (row("1.mp4", extra={"group": 7}), row("2.mp4", extra={"group": 7})),
        (row("x/1#1+24"), row("x/1#25+24")),
    ],
)
def test_clips_of_one_video_stay_together(one, other):
    assert group_of(one) == group_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (row("run/0.mp4"), row("sit/0.mp4")),
        (row("v_Run_g01_c01.avi"), row("v_Run_g02_c01.avi")),
        (row("clip_1_2.mp4"), row("clip_1_3.mp4")),
        (row("2020-01-01.mp4"), row("2020-01-02.mp4")),
        (row("a.mp4"), row("a.mkv")),
    ],
)
def test_other_videos_are_other_videos(one, other):
    assert group_of(one) != group_of(other)


def test_the_decision_is_the_same_for_ever():
    """Changing it would put clips that were trained on into the test split of the next ingest."""
    assert [i for i in range(40) if is_held_out(f"{i}.mp4", 0.1)] == HELD
    assert not is_held_out("x", 0.0) and is_held_out("x", 1.0)


HELD = [2, 8, 22]  # of these 40 names


@pytest.mark.parametrize(
    "rows",
    [
        [row("a"), row("b", split="test")],
        [row("a"), row("b", split="val")],
        [row("a", split="Validation"), row("b", split="Validation")],
        [row("a", split="testing")],
    ],
)
def test_a_source_that_names_splits_is_refused(rows):
    with pytest.raises(ValueError, match=r"--hold-out 0\.2: the source names its splits already"):
        apply(rows, 0.2, "test")


def test_nothing_on_one_side_is_refused_and_missing_classes_are_said():
    with pytest.raises(ValueError, match=r"would keep 0 of the 1 source videos"):
        apply([row("0.mp4"), row("0.mp4", id="x")], 0.2, "test")
    rows = [row(f"{i}.mp4", str(i)) for i in range(40)]
    _, note = apply(rows, 0.1, "val")
    assert "37 classes have no clip in val: '0', '1', '10', ..." in note
    assert "3 classes have no clip left for training" in note


def test_the_command(tmp_path, capsys):
    clip = make_video(tmp_path / "clip.mp4", 4)
    for label in ("run", "sit"):
        (tmp_path / "videos" / label).mkdir(parents=True)
        for i in range(8):
            shutil.copy(clip, tmp_path / "videos" / label / f"{i}.mp4")
    common = ["--source", str(tmp_path / "videos"), "--workers", "0", "--shards", "1"]

    def ingest(out, *more):
        return cli.main([*common, "--out", str(tmp_path / out), *more]), capsys.readouterr().err

    code, err = ingest("all")
    assert code == 0 and "no split is called test or val" in err and "--hold-out 0.1" in err
    code, err = ingest("held", "--hold-out", "0.3", "--hold-out-as", "val")
    assert code == 0 and "no split is called" not in err
    found = manifest.load(tmp_path / "held")
    held, left = found.split("val").records, found.split("train").records
    assert held + left == 16 and 0 < held < 10
    assert f"held out {held} of 16 clips ({held} of 16 source videos) as val" in err
    assert (found.options["hold_out"], found.options["hold_out_as"]) == (0.3, "val")
    assert "hold_out" not in manifest.load(tmp_path / "all").options
    assert "hold_out" not in json.loads((tmp_path / "all" / "plan.json").read_text())["options"]
    code, err = ingest("held", "--hold-out", "0.3", "--hold-out-as", "val")
    assert code == 0 and "continuing an earlier run" in err
    code, err = ingest("held", "--hold-out", "0.4")
    assert code == 2 and "--hold-out: 0.3 then, 0.4 now" in err
    code, err = ingest("other", "--hold-out", "1")
    assert code == 2 and "--hold-out: found 1.0, expected a share between 0 and 1" in err
