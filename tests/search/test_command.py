"""What the command prints, writes and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvideo_jax.search import __main__ as command
from internvideo_jax.search.cache import EmbeddingCache
from internvideo_jax.search.clips import Sampling
from tests.search.colours import colour_encoder


def settings(videos: Path, **changes) -> command.Settings:
    given = {
        "checkpoint": "run",
        "videos": str(videos),
        "labels": (),
        "template": "plain",
        "cache": None,
        "tokenizer": "",
        "batch": 2,
        "threads": 1,
        "crop": "squash",
        "resize": "bicubic",
        "window": 0.0,
        "fps": 0.0,
    }
    return command.Settings(**{**given, **changes})


@pytest.fixture
def colours(monkeypatch):
    def parts(options: command.Settings):
        encoder, sampling = colour_encoder(), Sampling(4, 16, window=options.window)
        return encoder, sampling, EmbeddingCache(options.cache, encoder.identity, "s")

    monkeypatch.setattr(command, "open_parts", parts)


def test_search_prints_tables_and_writes_a_page(colours, videos, tmp_path, capsys):
    out = tmp_path / "pages" / "sheet.html"
    options = settings(videos, labels=("red", "blue"))
    assert command.search(options, ["blue <i>", "red"], 2, str(out)) == 0
    said = capsys.readouterr().out
    assert "4 videos, 4 clips: 4 files embedded, 0 known, 1 skipped" in said
    assert "skipped damaged.mp4: not a readable video file" in said
    rows = said.split("'blue <i>'\n")[1].split("\n")
    assert rows[0].split() == ["rank", "similarity", "file", "time"]
    assert rows[1].startswith("1 ") and "deep/c <b>&.mp4  0:00.0-0:01.0" in rows[1]
    assert rows[2].split()[2:] == ["d.mp4", "0:00.0-0:02.0"] and not rows[3]
    labels = said.split("labels, template plain\n")[1]
    assert [line.split()[-4] for line in labels.split("\n")[1:3]] == ["red", "blue"]
    page = out.read_text()
    assert page.count("data:image/jpeg;base64,") == 2 + 2 + 4
    assert "blue &lt;i&gt;" in page and "deep/c &lt;b&gt;&amp;.mp4" in page
    assert "<i>" not in page and "http" not in page.replace("http-equiv", "")


def test_nothing_asked_and_nothing_usable(colours, videos, tmp_path):
    with pytest.raises(ValueError, match="nothing is asked"):
        command.search(settings(videos), [], 5, "")
    (tmp_path / "bad.mp4").write_bytes(b"no")
    with pytest.raises(ValueError, match="none of its files can be used"):
        command.search(settings(tmp_path), ["red"], 5, "")


def test_labels_come_from_the_command_line_or_a_file(tmp_path):
    (tmp_path / "classes.txt").write_text("\ufeffred\n\n blue \n", encoding="utf-8")
    assert command.read_labels(f"@{tmp_path}/classes.txt") == ("red", "blue")
    assert command.read_labels("a, b,") == ("a", "b") and command.read_labels("") == ()
    with pytest.raises(ValueError, match="cannot read the file"):
        command.read_labels("@nowhere.txt")
    with pytest.raises(ValueError, match="no class in it"):
        command.read_labels(" , ")


ERRORS = {
    "no command": (["--videos=x"], "the first word says what to do"),
    "near command": (["seach", "red"], "did you mean 'search'?"),
    "no checkpoint": (["search", "red", "--videos=x"], "--checkpoint and --videos are needed"),
    "no folder": (
        ["search", "red", "--checkpoint=nowhere", "--videos", "/nowhere"],
        "--videos=/nowhere: no such folder",
    ),
    "no run": (
        ["search", "--checkpoint", "/nowhere", "--videos", "VIDEOS", "red one"],
        "/nowhere: no checkpoint here",
    ),
    "weights alone": (
        ["search", "red", "--checkpoint=VIDEOS/a.mp4", "--videos=VIDEOS"],
        "does not say what model it is for; give the --config",
    ),
    "words to serve": (
        ["serve", "red", "--checkpoint=x", "--videos=VIDEOS"],
        "unexpected word 'red'",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_message(command, videos, case):
    arguments, message = ERRORS[case]
    arguments = [word.replace("VIDEOS", str(videos)) for word in arguments]
    done = command("internvideo_jax.search", *arguments)
    assert done.returncode == 2 and message in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
