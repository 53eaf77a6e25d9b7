"""Where two results differ."""

from __future__ import annotations

import json

import pytest

from internvideo_jax.offline.compare import main


def evaluated(**changes) -> dict:
    test = {
        "metrics": {"top1": 0.5},
        "protocol": {"clips": 5, "sampling": "dense"},
        "pixels": {"digest": "a" * 32, "clips": 60},
    }
    return {
        "params_digest": "1" * 16,
        "versions": {"jax": "0.10"},
        "config": {"model": {"frames": 16, "dtype": "float32"}},
        "results": {"test": {**test, **changes}},
    }


def predicted(*rows) -> dict:
    videos = [
        {"video": name, "pixels": seen, "top": [{"label": best, "score": 1.0}]}
        for name, seen, best in rows
    ]
    return {"params_digest": "1" * 16, "labels": ["a", "b"], "videos": videos}


@pytest.fixture
def compare(tmp_path, capsys):
    def run(one, other) -> tuple[int, str]:
        for name, content in (("one.json", one), ("other.json", other)):
            (tmp_path / name).write_text(json.dumps(content))
        code = main([str(tmp_path / "one.json"), str(tmp_path / "other.json")])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_equal_results_are_the_same(compare):
    assert compare(evaluated(), evaluated()) == (
        0,
        "the same weights, pixels, protocol and numbers\n",
    )


def test_every_difference_is_named(compare):
    other = evaluated(
        metrics={"top1": 0.625},
        protocol={"clips": 5, "sampling": "stepped"},
        pixels={"digest": "b" * 32, "clips": 60},
    )
    other |= {"params_digest": "2" * 16, "config": {"model": {"frames": 8, "dtype": "bfloat16"}}}
    code, said = compare(evaluated(), other)
    assert code == 1
    assert said.splitlines() == [
        f"weights differ: {'1' * 16} and {'2' * 16}",
        "model frames: 16 and 8",
        f"test: pixels differ: {'a' * 32} and {'b' * 32}",
        "test: protocol sampling: dense and stepped",
        "test: metric top1: 0.5 and 0.625",
    ]
    code, said = compare(evaluated(), evaluated(pixels={"digest": "b" * 32, "clips": 30}))
    assert "test: pixels differ: 60 clips and 30" in said


def test_old_results_without_pixels_are_read(compare):
    old = evaluated()
    del old["results"]["test"]["pixels"]
    code, said = compare(evaluated(), old)
    assert code == 1 and "test: pixels: the second has no digest (older versions" in said
    assert compare(old, old)[0] == 0
    one = old["results"]["test"]
    assert compare(one, one)[0] == 0  # results/LABEL.json of a run


def test_videos_with_other_pixels_or_labels_are_named(compare):
    one = predicted(("a.mp4", "1", "a"), ("b.mp4", "2", "a"), ("c.mp4", "3", "b"))
    other = predicted(("a.mp4", "1", "b"), ("b.mp4", "9", "a"), ("d.mp4", "4", "b"))
    code, said = compare(one, other)
    assert code == 1
    assert said.splitlines() == [
        "videos, only in the first: 1: c.mp4",
        "videos, only in the second: 1: d.mp4",
        "videos, other pixels: 1: b.mp4",
        "videos, another best label: 1: a.mp4",
    ]


def test_what_extract_and_score_were_made_with_is_compared(compare):
    one = {
        "params_digest": "1" * 16,
        "data_fingerprint": "f" * 64,
        "model": {"frames": 16},
        "windows": {"stride": 8, "crop": "center"},
        "pixels": {"digest": "a" * 32, "clips": 60},
    }
    assert compare(one, one)[0] == 0
    other = {**one, "windows": {"stride": 8, "crop": "squash"}, "data_fingerprint": "e" * 64}
    code, said = compare(one, {**other, "pixels": {"digest": "b" * 32, "clips": 60}})
    assert code == 1
    assert said.splitlines() == [
        f"data differ: {'f' * 64} and {'e' * 64}",
        f"pixels differ: {'a' * 32} and {'b' * 32}",
        "windows crop: center and squash",
    ]
    unfinished = {name: value for name, value in one.items() if name != "pixels"}
    assert "pixels: the second has no digest" in compare(one, unfinished)[1]


@pytest.mark.parametrize("content", ["[]", "{}", "no JSON", '{"results": 3}'])
def test_other_files_are_refused(content, tmp_path, capsys):
    (tmp_path / "x.json").write_text(content)
    assert main([str(tmp_path / "x.json")] * 2) == 2
    assert "x.json" in capsys.readouterr().err
    assert main([str(tmp_path / "none.json")] * 2) == 2
    assert "cannot be read" in capsys.readouterr().err
