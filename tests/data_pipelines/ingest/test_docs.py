"""The user guide: every command and program in it is run, every option and link exists."""

import argparse
import json
import re
import shlex
import struct
from pathlib import Path

import cv2
import pytest

from data_pipelines import __main__ as tools
from data_pipelines import config
from data_pipelines.ingest import __main__ as cli
from data_pipelines.ingest.options import Options
from data_pipelines.records import frame_table, manifest
from data_pipelines.records import index as record_index
from data_pipelines.tools import feed
from internvideo_jax.offline import teach
from tests.data_pipelines.ingest.clips import make_video, picture
from tests.data_pipelines.ingest.sound import beep, make_sound

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
FORMATS = (ROOT / "docs" / "data-formats.md").read_text(encoding="utf-8")
AUGMENTATION = (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8")

INTERNVID = {
    "YoutubeID": "abc",
    "Start_timestamp": "00:00:00.500",
    "End_timestamp": "00:00:01.500",
    "Caption": "a dog's ball",
    "Aesthetic_Score": 4.5,
    "UMT_Score": 0.41,
}
EVENTS = {
    "path": "run/0.mp4",
    "segments": [{"start": 0.5, "end": 1.5, "label": "pour", "caption": "pours tea"}],
    "boxes": [{"time": 1, "y1": 0.1, "x1": 0.2, "y2": 0.9, "x2": 0.6, "labels": ["sit"]}],
}

MAIN = {
    "data_pipelines": tools.main,
    "data_pipelines.ingest": lambda arguments: cli.main([*arguments, "--workers", "0"]),
}


def blocks(language: str, text: str = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files the guide talks about."""
    monkeypatch.chdir(tmp_path)
    for name in ("run", "sit"):
        Path("videos", name).mkdir(parents=True)
        for i in range(2):
            make_video(Path("videos", name, f"{i}.mp4"), 20)
    for name in ("iv", "k400", "sound", "pictures", "ssv2/0001"):
        Path(name).mkdir(parents=True)
    make_video(Path("iv", "abc.mp4"), 20)
    make_video(Path("sound", "silent.mp4"), 20)
    make_sound(Path("sound", "beep.mp4"), beep(3.0, 16000), 16000)
    for i in range(1, 5):
        cv2.imwrite(f"ssv2/0001/img_{i:05d}.jpg", picture(i))
    cv2.imwrite("pictures/a.png", picture(0))
    Path("ssv2/train.txt").write_text("0001 4 0\n")
    Path("k400/val.csv").write_text("../videos/run/0.mp4 0\n../videos/sit/0.mp4 1\n")
    Path("clips.csv").write_text(blocks("csv")[0])
    Path("captions.jsonl").write_text(blocks("json")[0])
    Path("other.csv").write_text("file,class\nvideos/run/0.mp4,run\nvideos/sit/0.mp4,sit\n")
    Path("internvid.jsonl").write_text(json.dumps(INTERNVID))
    scored = [{**INTERNVID, "YoutubeID": f"v{i // 3}", "UMT_Score": i / 300} for i in range(300)]
    Path("all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    Path("anno.json").write_text(json.dumps([{"video": "run/0.mp4", "caption": "someone runs"}]))
    Path("pictures.jsonl").write_text(json.dumps({"path": "a.png", "caption": "a picture"}))
    Path("events.jsonl").write_text(json.dumps(EVENTS))
    return tmp_path


def run(command: str, capsys) -> None:
    program, *arguments = shlex.split(command)
    assert [program, arguments[0]] == ["python", "-m"], command
    code = MAIN[arguments[1]](arguments[2:])
    assert code == 0, f"{command}: {capsys.readouterr().err}"


def test_commands_and_programs_of_the_guide_work(folder, capsys):
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) >= 19
    for command in commands:
        run(command, capsys)
    for name in ("inspect", "look/sheet", "look/views"):
        assert Path(f"{name}.png").stat().st_size > 1000 and Path(f"{name}.html").exists()
    (remark,) = Path("shards-sound/warnings.jsonl").read_text().splitlines()
    assert json.loads(remark)["kind"] == "silent"
    capsys.readouterr()
    programs = [program for text in (GUIDE, FORMATS) for program in blocks("python", text)]
    assert len(programs) == 4
    for program in programs:
        if 'tokenizer="clip"' in program:
            pytest.importorskip("instant_clip_tokenizer", reason="has no wheel here")
        exec(compile(program, "docs", "exec"), {})
    printed = capsys.readouterr().out
    assert "beep.mp4 (16000,) 16000\n" in printed and "silent.mp4 (16000,) 0\n" in printed
    (shown,) = re.findall(r"^prints `(.*)`", GUIDE, re.MULTILINE)
    assert shown in printed.splitlines()
    assert "4 ('run', 'sit')" in printed


def test_table_of_options_has_the_defaults():
    rows = dict(re.findall(r"^\| `(--[a-z-]+)[^|]*\| `?([^|`]*)`? \|", GUIDE, re.MULTILINE))
    default = Options(source="s", out="o")
    for option in ("--short-side", "--quality", "--min-frames", "--max-bad", "--stall-seconds"):
        value = getattr(default, option.strip("-").replace("-", "_"))
        assert float(rows[option]) == value, option
    for option in ("--partial", "--audio", "--media", "--format", "--cut", "--runner"):
        assert rows[option] == getattr(default, option.strip("-")), option


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Options of a command line and of its commands; not those every program has."""
    found = set()
    for action in parser._actions:
        found.update(name for name in action.option_strings if name.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found |= options_of(command)
    return found


def test_options_named_in_the_guide_exist_and_all_are_named():
    # What follows a bare -- belongs to Beam.
    text = re.sub(r"(?<=[\s`])-- --[^`\n]*", "", GUIDE)
    named = set(re.findall(r"--[a-z][a-z-]+", text))
    ingest, commands = options_of(cli.parser()), options_of(tools.parser())
    # Of commands of the training system that are shown, as far as an underscore.
    others = {"--workdir", "--parts"} | {f"--{name.partition('_')[0]}" for name in teach.HELP}
    assert named <= ingest | commands | others
    assert ingest | commands <= named


def test_every_command_is_in_the_table():
    (commands,) = [
        set(action.choices)
        for action in tools.parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    rows = set(re.findall(r"^\| `([a-z]+) (?:DIR|--source)", GUIDE, re.MULTILINE))
    assert rows == commands


def fields_of(settings: object, prefix: str = "") -> set[str]:
    found = set()
    for name, value in vars(settings).items():
        found |= fields_of(value, f"{prefix}{name}.") if hasattr(value, "__dict__") else set()
        found.add(prefix + name)
    return found


def test_fields_of_the_settings_named_in_the_guides_exist():
    known = fields_of(config.DataConfig())
    for text in (GUIDE, AUGMENTATION):
        named = re.findall(r"(?:config\.|`)data\.([a-z_.]*[a-z_])", text)
        assert len(named) > 4
        assert {name for name in named if name not in ("md", "py")} <= known
    named = re.findall(r"(?<![a-z_])augment\.([a-z_]+)(?=[=`])", AUGMENTATION)
    assert {f"augment.{name}" for name in named} == {n for n in known if n[:8] == "augment."}


def test_table_of_hosts_follows_from_the_calculation():
    rows = re.findall(r"^\| (v\d\w*) \| ([^|]*(?:\|[^|]*){6}) \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 4
    for host, cells in rows:
        vcpu, clips, _, *chips = (int(cell.replace(" ", "")) for cell in cells.split("|"))
        rate = 120 * 0.36 * vcpu * feed.USABLE
        assert abs(rate - clips) <= 50, host
        peak = feed.PEAK_TFLOPS[f"TPU {host}"] * 1e12 * 0.4
        needed = [feed.train_flops(model, 16, 224) for model in feed.MODELS.values()]
        assert chips == [int(rate * flops / peak) for flops in needed], host


def test_manifest_example_has_the_fields_of_a_real_one(folder):
    cli.main(["--source", "videos", "--out", "o", "--workers", "0", "--quiet"])
    real = json.loads(Path("o/manifest.json").read_text())
    example = json.loads(blocks("json", FORMATS)[0])

    def shape(value):
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        return [shape(value[0])] if isinstance(value, list) else type(value)

    assert shape(example) == shape(real)


def test_index_table_describes_the_header(folder):
    rows = re.findall(r"^\| (\d+) \| (?:(\d+) bytes|(2 x )?(u32|u64)|entries)", FORMATS, re.M)
    offsets = [int(offset) for offset, *_ in rows]
    assert offsets == [0, 8, 12, 16, 24, 32, 40, 44, 48, 56, 64]
    sizes = [
        int(count) if count else (2 if twice else 1) * {"u32": 4, "u64": 8}[kind]
        for _, count, twice, kind in rows[:-1]
    ]
    assert [offset + size for offset, size in zip(offsets, sizes, strict=False)] == offsets[1:]
    assert record_index._HEADER.size == 64 and record_index.ENTRY.itemsize == 24
    # And so does a real one.
    cli.main(["--source", "videos", "--out", "o", "--workers", "0", "--quiet"])
    (shard,) = manifest.load("o").shard_paths("train")
    data = Path(shard + ".idx").read_bytes()
    size = Path(shard).stat().st_size
    values = struct.unpack_from("<8sIIQQQII", data)
    assert values == (b"IVJINDEX", 2, 64, 4, size, len(data), 24, 3)
    (*_, block) = struct.unpack_from("<QQII", data, 64)
    (crc,) = struct.unpack_from("<I", data, 64 + 4 * 24)
    assert crc == manifest.load("o").splits["train"].shards[0].index_crc
    first = data[64 + 4 * 24 + 4 :][:block]
    assert struct.unpack_from("<II", first) == (20, 1)
    assert len(frame_table.unpack(first, struct.unpack_from("<Q", first, 8)[0]).frames) == 20


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/*.md")), ids=str
)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


def test_rooms_of_the_data_package_are_all_named():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {
        path.relative_to(ROOT / "data_pipelines").as_posix()
        for pattern in ("*.py", "ingest/*.py", "subset/*.py", "text/*.py", "tools/*.py")
        for path in (ROOT / "data_pipelines").glob(pattern)
        if path.name not in ("__init__.py", "__main__.py")
    }
    start = text.index("\ndata_pipelines/")
    section = text[start : text.index("\nconfigs/", start)]
    named, folder = set(), ""
    for line in section.splitlines():
        depth = re.match(r" *", line).end()
        if found := re.match(r" {2}(\w+/)", line):
            folder = found[1]
        elif depth <= 2:
            folder = ""
        named.update(folder + name for name in re.findall(r"\b[a-z_]+\.py", line))
    assert named - {f"{f}__main__.py" for f in ("", "ingest/")} == rooms
