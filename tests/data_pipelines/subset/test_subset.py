"""`ivj data subset`, end to end."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys

import pytest

from data_pipelines.__main__ import main
from data_pipelines.subset import rows, run, selection, writing
from data_pipelines.subset.options import SubsetOptions
from data_pipelines.subset.sampling import diverse


def clip(number: int, **changes) -> dict:
    return {
        "YoutubeID": f"video{number // 4:06d}",
        "Start_timestamp": f"00:00:{number % 40:02d}.000",
        "End_timestamp": f"00:00:{number % 40 + 2 + number % 9:02d}.500",
        "Caption": " ".join(f"w{number}x{i}" for i in range(1 + number % 12)),
        "Aesthetic_Score": 4 + (number * 37 % 100) / 50,
        "UMT_Score": (number * 61 % 199) / 199,
        "Language": ("en", "fr")[number % 2],
        **changes,
    }


def write_list(path, clips) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in clips))
    return str(path)


@pytest.fixture
def source(tmp_path):
    return write_list(tmp_path / "all.jsonl", [clip(i) for i in range(500)])


def numbers(path) -> list[dict]:
    with open(path) as file:
        return [json.loads(line) for line in file]


def command(*arguments: str) -> int:
    return main(["subset", "--quiet", *arguments])


def test_filters_and_reasons(source, tmp_path, capsys):
    out = str(tmp_path / "out.jsonl")
    arguments = ("--min-similarity", "0.25", "--min-aesthetic", "4.5", "--language", "EN")
    arguments += ("--min-seconds", "3.5", "--max-seconds", "9.5", "--min-words", "3")
    code = command("--source", source, "--out", out, *arguments, "--max-words", "11")
    assert code == 0
    rows = [clip(i) for i in range(500)]
    expected = [
        row
        for i, row in enumerate(rows)
        if 3 <= 1 + i % 12 <= 11
        and 3.5 <= 2.5 + i % 9 <= 9.5
        and i % 2 == 0
        and row["UMT_Score"] >= 0.25
        and row["Aesthetic_Score"] >= 4.5
    ]
    assert numbers(out) == expected
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["kept"] == len(expected) > 20
    assert summary["rows"] == 500 == summary["kept"] + sum(summary["left_out"].values())
    assert summary["left_out"]["words"] == sum(i % 12 in (0, 1, 11) for i in range(500))
    assert summary["videos"] == len({row["YoutubeID"] for row in expected})
    assert summary["sha256"] == hashlib.sha256((tmp_path / "out.jsonl").read_bytes()).hexdigest()
    assert f"{len(expected)} kept" in capsys.readouterr().out
    assert not os.path.exists(f"{out}.work")


def test_flt_the_best_share_then_the_draw(source, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "CHUNK", 64)
    monkeypatch.setattr(run, "CHUNK", 50)
    summary = run.build(
        SubsetOptions((source,), str(tmp_path / "o.jsonl"), top_share=0.3, sample=60, seed=7)
    )
    assert summary["left_out"]["top_share"] == 350
    assert summary["left_out"]["not_sampled"] == 90
    kept = numbers(tmp_path / "o.jsonl")
    scores = sorted((clip(i)["UMT_Score"] for i in range(500)), reverse=True)
    assert summary["top_share_threshold"] == scores[149]
    assert min(row["UMT_Score"] for row in kept) >= scores[149]
    again = run.build(
        SubsetOptions((source,), str(tmp_path / "p.jsonl"), top_share=0.3, sample=60, seed=7)
    )
    other = run.build(
        SubsetOptions((source,), str(tmp_path / "q.jsonl"), top_share=0.3, sample=60, seed=8)
    )
    assert again["sha256"] == summary["sha256"] != other["sha256"]


def test_the_draw_of_the_reference_in_its_order(source, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_BUCKET", 16)
    out = str(tmp_path / "o.jsonl")
    assert command("--source", source, "--out", out, "--sample", "60", "--sample-by=reference") == 0
    rows = [clip(i) for i in range(500)]
    chosen = diverse([row["YoutubeID"] for row in rows], 60, 42)
    assert numbers(out) == [rows[i] for i in chosen]


def test_repeated_clips_and_near_duplicates_go_on_request(tmp_path):
    rows = [clip(i, Caption=f"w{i}a w{i}b w{i}c") for i in range(20)]
    rows += [clip(3, Caption="quite another text"), clip(30, Caption="W5A, w5b w5c.")]
    source = write_list(tmp_path / "all.jsonl", rows)
    plain = run.build(SubsetOptions((source,), str(tmp_path / "a.jsonl"), near_duplicates="report"))
    assert plain["kept"] == 22
    assert plain["repeated_clips"] == 1
    assert plain["near_duplicates"]["near_duplicates"] == 1
    dropped = run.build(
        SubsetOptions((source,), str(tmp_path / "b.jsonl"), repeated="drop", near_duplicates="drop")
    )
    assert dropped["left_out"]["repeated_clip"] == dropped["left_out"]["near_duplicate"] == 1
    assert numbers(tmp_path / "b.jsonl") == rows[:20]


def test_what_scoring_writes_goes_before_the_published_score(tmp_path):
    rows = [clip(i, similarity=i / 10, UMT_Score=1 - i / 10) for i in range(10)]
    source = write_list(tmp_path / "all.jsonl", rows)
    run.build(SubsetOptions((source,), str(tmp_path / "a.jsonl"), top_share=0.3))
    assert numbers(tmp_path / "a.jsonl") == rows[7:]
    columns = {"similarity": "UMT_Score"}
    run.build(SubsetOptions((source,), str(tmp_path / "b.jsonl"), columns, top_share=0.3))
    assert numbers(tmp_path / "b.jsonl") == rows[:3]


def test_training_lists_know_the_video_by_its_file(tmp_path):
    names = ["a/00000000aaa_1.mp4", "a/00000000aaa_2.mp4", "b/00000000bbb_1.mp4"]
    source = write_list(tmp_path / "a.jsonl", [{"video": n, "caption": "x y"} for n in names])
    summary = run.build(SubsetOptions((source,), str(tmp_path / "o.jsonl")))
    assert (summary["kept"], summary["videos"], summary["repeated_clips"]) == (3, 2, 0)


BAD = [
    b"{not json\n",
    b'{"YoutubeID": "\xff"}\n',
    b"[1]\n",
    b'{"Caption": "no video"}\n',
    b'{"YoutubeID": "x", "Start_timestamp": "soon"}\n',
    b'{"YoutubeID": "x", "Start_timestamp": "00:00:05.0", "End_timestamp": "00:00:05.0"}\n',
    b'{"YoutubeID": "x", "UMT_Score": NaN}\n',
    b'{"YoutubeID": "x", "UMT_Score": "high"}\n',
    b'{"YoutubeID": "x", "Caption": ["a", "b"]}\n',
]


def test_malformed_rows_are_counted_and_named(tmp_path, capsys):
    path = tmp_path / "all.jsonl"
    good = [json.dumps(clip(i)).encode() for i in range(5)]
    # Blank lines are no rows; the last line has no end.
    path.write_bytes(b"\n".join(good[:4]) + b"\n\n" + b"".join(BAD) + good[4])
    out = tmp_path / "out.jsonl"
    assert command("--source", str(path), "--out", str(out)) == 1
    assert out.read_bytes() == b"\n".join(good) + b"\n"
    summary = json.loads((tmp_path / "out.jsonl.summary.json").read_text())
    assert summary["left_out"]["malformed"] == len(BAD)
    assert "all.jsonl row 5: is not JSON" in summary["malformed_examples"][0]
    assert "more than --max-bad" in capsys.readouterr().out
    assert command("--source", str(path), "--out", str(out), "--max-bad", "1") == 0


def test_rows_without_what_a_filter_needs_are_counted(tmp_path):
    rows = [{"YoutubeID": f"v{i}", "Caption": "a b"} for i in range(3)] + [clip(8)]
    source = write_list(tmp_path / "a.jsonl", rows)
    for options, reason in (
        ({"top_share": 1.0}, "no_similarity"),
        ({"min_aesthetic": 0.0}, "no_aesthetic"),
        ({"max_seconds": 100.0}, "duration"),
        ({"languages": ("en",)}, "language"),
    ):
        summary = run.build(SubsetOptions((source,), str(tmp_path / f"{reason}.jsonl"), **options))
        assert summary["left_out"][reason] == 3
        assert summary["kept"] == 1


class Killed(Exception):
    pass


@pytest.mark.parametrize("where", ["reading", "selecting", "writing", "ending"])
def test_a_killed_run_continues_and_leaves_the_same(source, tmp_path, monkeypatch, where):
    monkeypatch.setattr(run, "CHUNK", 64)
    other = write_list(tmp_path / "more.jsonl", [clip(i) for i in range(1000, 1300)])
    out = str(tmp_path / "out.jsonl")
    options = SubsetOptions((source, other), out, near_duplicates="drop", sample=50, top_share=0.5)
    whole = run.build(SubsetOptions(**{**vars(options), "out": str(tmp_path / "whole.jsonl")}))
    seen = []

    def dies(function, after):
        def wrapped(*arguments):
            seen.append(1)
            if len(seen) > after:
                raise Killed
            return function(*arguments)

        return wrapped

    original = os.replace

    def ending(path, target):
        if target == out:
            raise Killed
        original(path, target)

    with monkeypatch.context() as patch:
        if where == "reading":
            # In the second file; what is read after the last note is read again.
            patch.setattr(run, "_reason", dies(run._reason, 650))
        elif where == "selecting":
            patch.setattr(selection, "keep_largest", dies(selection.keep_largest, 1))
        elif where == "writing":
            patch.setattr(writing, "write", dies(writing.write, 0))
        else:
            patch.setattr(os, "replace", ending)
        with pytest.raises(Killed):
            run.build(options)
    assert not os.path.exists(out)
    read = []
    reason = run._reason
    monkeypatch.setattr(run, "_reason", lambda *a: read.append(1) or reason(*a))
    summary = run.build(options)
    assert summary["sha256"] == whole["sha256"]
    assert summary["left_out"] == whole["left_out"]
    if where == "reading":
        # 500 rows of the first file and two chunks of the second were noted.
        assert len(read) == 800 - 500 - 128
    else:
        assert not read
    # Now it is there: the same command does nothing, another one refuses.
    read.clear()
    assert run.build(options) == summary
    assert not read
    with pytest.raises(ValueError, match="was made otherwise"):
        run.build(SubsetOptions(**{**vars(options), "seed": 1}))


def test_compressed_lists(source, tmp_path):
    packed = tmp_path / "all.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "all.jsonl").read_bytes()))
    plain = run.build(SubsetOptions((source,), str(tmp_path / "a.jsonl"), min_words=5))
    same = run.build(SubsetOptions((str(packed),), str(tmp_path / "b.jsonl.gz"), min_words=5))
    assert same["left_out"] == plain["left_out"]
    written = gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes())
    assert written == (tmp_path / "a.jsonl").read_bytes()
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(RuntimeError, match="not a whole gzip file"):
        run.build(SubsetOptions((str(packed),), str(tmp_path / "c.jsonl"), min_words=5))


def test_parquet(source, tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(numbers(source))
    path, out = str(tmp_path / "all.parquet"), str(tmp_path / "o.parquet")
    parquet.write_table(table, path, row_group_size=120)
    monkeypatch.setattr(run, "CHUNK", 64)
    settings = {"min_words": 3, "top_share": 0.4, "sample": 50}
    summary = run.build(SubsetOptions((path,), out, **settings))
    plain = run.build(SubsetOptions((source,), str(tmp_path / "o.jsonl"), **settings))
    assert summary["left_out"] == plain["left_out"]
    assert parquet.read_table(out).to_pylist() == numbers(tmp_path / "o.jsonl")
    assert parquet.read_table(out).schema.equals(table.schema)
    with pytest.raises(ValueError, match="one format"):
        run.build(SubsetOptions((path,), str(tmp_path / "x.jsonl")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--top-share", "30"), "expected a share up to 1"),
        (("--min-words", "5", "--max-words", "2"), "--min-words 5 is more than"),
        (("--columns", "score=x"), "--columns names 'score'"),
        (("--columns", "similarity"), "expected OURS=THEIRS"),
        (("--sample", "501"), "only 500 rows are left"),
        (("--sample", "0"), "expected at least 1"),
        (("--min-seconds", "nan"), "expected a number"),
    ],
)
def test_wrong_use(source, tmp_path, capfd, arguments, message):
    assert command("--source", source, "--out", str(tmp_path / "o.jsonl"), *arguments) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "o.jsonl").exists()


def test_missing_and_unknown_files(tmp_path, capfd):
    out = str(tmp_path / "o.jsonl")
    assert command("--source", str(tmp_path / "no.jsonl"), "--out", out) == 2
    assert "no.jsonl" in capfd.readouterr().err
    (tmp_path / "a.txt").write_text("x")
    assert command("--source", str(tmp_path / "a.txt"), "--out", out) == 2
    assert "ends in .jsonl" in capfd.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a.txt"]


def test_parquet_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"internvideo-jax\[parquet\]"):
        run.build(SubsetOptions((str(tmp_path / "a.parquet"),), str(tmp_path / "o.parquet")))


def test_an_empty_list_gives_an_empty_one(tmp_path):
    source = write_list(tmp_path / "a.jsonl", [])
    summary = run.build(SubsetOptions((source,), str(tmp_path / "o.jsonl"), top_share=0.3))
    assert (summary["rows"], summary["kept"], summary["videos"]) == (0, 0, 0)
    assert (tmp_path / "o.jsonl").read_bytes() == b""


@pytest.mark.parametrize("place", [15, 100, -9, -1])
def test_a_damaged_gzip_file_is_one_message(source, tmp_path, capfd, place):
    data = bytearray(gzip.compress((tmp_path / "all.jsonl").read_bytes()))
    data[place] ^= 0xFF
    packed = tmp_path / "all.jsonl.gz"
    packed.write_bytes(bytes(data))
    code = command("--source", str(packed), "--out", str(tmp_path / "c.jsonl"), "--min-words", "5")
    err = capfd.readouterr().err
    assert code == 3 and "all.jsonl.gz: is not a whole gzip file" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_a_line_that_unpacks_to_gigabytes_is_malformed(tmp_path, monkeypatch, name):
    monkeypatch.setattr(rows, "MAX_LINE", 4096)
    good = [json.dumps(clip(i)).encode() + b"\n" for i in range(3)]
    long = b'{"YoutubeID": "x", "Caption": "' + b"a" * (3 << 20) + b'"}\n'
    blank = b" " * 10_000 + b"\n"
    data = good[0] + long + good[1] + blank + good[2].rstrip()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for out in ("o.jsonl", "p.jsonl"):
        options = SubsetOptions(
            (str(path),), str(tmp_path / out), sample=3 if out[0] == "p" else None
        )
        summary = run.build(options)
        assert summary["rows"] == 4 and summary["left_out"]["malformed"] == 1
        assert "row 2: is longer than 0 MiB" in summary["malformed_examples"][0]
        assert (tmp_path / out).read_bytes() == b"".join(good)


@pytest.mark.parametrize(
    "change",
    [
        {"Start_timestamp": 10**400},
        {"End_timestamp": "9" * 400 + ":00:00"},
        {"UMT_Score": 10**400},
        {"Aesthetic_Score": "9" * 5000},
        {"Caption": ["x" * 100_000]},
    ],
)
def test_absurd_values_are_malformed_and_named_shortly(tmp_path, change):
    source = write_list(tmp_path / "a.jsonl", [clip(0), clip(1, **change)])
    summary = run.build(SubsetOptions((source,), str(tmp_path / "o.jsonl")))
    assert summary["kept"] == 1 and summary["left_out"]["malformed"] == 1
    assert len(summary["malformed_examples"][0]) < 200


def test_a_number_of_thousands_of_digits_is_malformed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps(clip(0)) + '\n{"YoutubeID": "x", "Start_timestamp": ' + "9" * 5000 + "}\n"
    )
    summary = run.build(SubsetOptions((str(path),), str(tmp_path / "o.jsonl")))
    assert (
        "row 2: is not JSON (a number of thousands of digits)" in summary["malformed_examples"][0]
    )
