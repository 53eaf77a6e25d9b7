"""The user guide: every option and link exists, tables say what the code says."""

import argparse
import json
import re
import struct
from pathlib import Path

import pytest

from data_pipelines import __main__ as tools
from data_pipelines import config
from data_pipelines.ingest import __main__ as cli
from data_pipelines.ingest.options import IngestOptions
from data_pipelines.records import frame_table, manifest
from data_pipelines.records import index as record_index
from data_pipelines.tools import feed
from internvideo_jax.offline import teach
from tests.docs.pages import DATA_GUIDE
from tests.docs.places import sources_of_the_data_guide

ROOT = Path(__file__).parents[3]
GUIDE = "\n".join(
    (ROOT / "docs" / page).read_text(encoding="utf-8") for page in (*DATA_GUIDE, "audit.md")
)
FORMATS = (ROOT / "docs" / "data-formats.md").read_text(encoding="utf-8")
AUGMENTATION = (ROOT / "docs" / "augmentation.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = GUIDE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files the guide talks about."""
    monkeypatch.chdir(tmp_path)
    sources_of_the_data_guide(tmp_path)
    return tmp_path


def test_table_of_options_has_the_defaults():
    rows = dict(re.findall(r"^\| `(--[a-z-]+)[^|]*\| `?([^|`]*)`? \|", GUIDE, re.MULTILINE))
    default = IngestOptions(source="s", out="o")
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
    others = {"--workdir", "--parts", "--checkpoint", "--videos", "--cache", "--sheet"}
    others |= {f"--{name.partition('_')[0]}" for name in teach.HELP}
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
        for path in (ROOT / "data_pipelines").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    start = text.index("\ndata_pipelines/")
    section = text[start : text.index("\nconfigs/", start)]
    named, folder, inner = set(), "", ""
    for line in section.splitlines():
        depth = re.match(r" *", line).end()
        found = re.match(r" *(\w+/)", line)
        if depth <= 2:
            folder, inner = found[1] if found and depth == 2 else "", ""
        elif depth <= 4:
            inner = found[1] if found else ""
        named.update(folder + inner + name for name in re.findall(r"\b[a-z_]+\.py", line))
    assert named - {f"{f}__main__.py" for f in ("", "ingest/")} == rooms
