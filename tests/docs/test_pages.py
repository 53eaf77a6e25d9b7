"""Every command and program of README and docs does what it says.

What is only looked at is listed when the session ends.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import once
from tests.docs import places
from tests.docs.pages import DATA_GUIDE, PAGES, ROOT, Step, commands, steps
from tests.docs.running import Reader, Undocumented, in_small

SERVER = "serve\0--checkpoint=runs/viclip\0--videos=clips/"
REPLACE = {
    "README.md": {"viclip-l14": "published/viclip", "videomae-v2-b16": "published/pretrain"},
    "finetune.md": {"shards/k400": "shards", "videomae-v2-b16": "runs/pretrain"},
    "retrieval.md": {"CONFIG": "configs/viclip/pretrain.py:size=tiny", "FILE": "runs/viclip"},
    "models.md": {"FILE": "runs/finetune"},
    "launch.md": {
        "...": "--config=configs/videomae/pretrain.py:size=tiny "
        "--config.data.train=shards/ --workdir=runs/watched"
    },
    "video-search.md": {"SERVER": SERVER},
    "recipes.md": {"shards/ssv2": "shards"},
    "training.md": {"runs/yesterday": "runs/pretrain"},
    "weights.md": {"$((L - n))": "1"},
}


@pytest.fixture(scope="session")
def runs(command, shards, tmp_path_factory) -> Path:
    """`runs/pretrain`, `finetune`, `viclip`: what most pages go on from."""

    def make(folder: Path) -> None:
        places.trained(command, folder, "videomae/pretrain.py:size=base", "pretrain", shards)
        start = f"--config.init_from={folder}/runs/pretrain"
        places.trained(command, folder, "videomae/finetune.py:size=base", "finetune", shards, start)
        places.trained(command, folder, "viclip/pretrain.py:size=tiny", "viclip", shards)

    return once(tmp_path_factory, "documented", make) / "runs"


@pytest.fixture
def reader(request, command, shards, tmp_path, record_property) -> Iterator[Reader]:
    """Somebody in the folder that the page of this test takes for granted."""
    page = request.param
    world = shards.parent / "videos"
    if page == "README.md":
        places.thirteen_videos(tmp_path, world)
        clips = places.clips_and_classes(tmp_path, world)
        clips.rename(tmp_path / "more_videos")
        shutil.copytree(request.getfixturevalue("runs"), tmp_path / "published")
    elif page == "finetune.md":
        places.thirteen_videos(tmp_path, world)
        shutil.copytree(request.getfixturevalue("runs"), tmp_path / "runs")
    elif page == "data.md":
        places.sources_of_the_data_guide(tmp_path)
    elif page == "start.md":
        pass  # an empty folder is all that this page takes for granted
    elif page == "actions.md":
        places.actions(tmp_path, world)
    elif page == "grain.md":
        (tmp_path / "shards").symlink_to(shards)
    else:
        places.clips_and_classes(tmp_path, world)
        shutil.copytree(request.getfixturevalue("runs"), tmp_path / "runs")
        if page == "recipes.md":
            shutil.rmtree(tmp_path / "runs/viclip")  # this page trains its own
        if page == "audit.md":
            places.published_list(tmp_path, world)
        (tmp_path / "shards").symlink_to(shards)
    found = Reader(tmp_path, command, REPLACE.get(page, {}))
    yield found
    for line in found.dry:
        record_property("dry run", line)


# The pages of a guide are read by one reader, in their order; of other pages each has its own.
GUIDE = [ROOT / "docs" / name for name in DATA_GUIDE]
WITH_STEPS = [[path] for path in PAGES if path not in GUIDE and steps(path)] + [GUIDE]
# Each with several runs of its own, or with many commands.
SLOW = ("start.md", "own.md", "launch.md", "training.md", "recipes.md")


@pytest.mark.parametrize(
    ("reader", "pages"),
    [
        pytest.param(
            pages[0].name, pages, id=pages[0].stem,
            marks=[pytest.mark.slow] if pages[0].name in SLOW else [],
        )
        for pages in WITH_STEPS
    ],
    indirect=["reader"],
)  # fmt: skip
def test_a_page_does_what_it_says(reader, pages):
    shown = "".join(reader.do(step) for page in pages for step in steps(page))
    if pages == GUIDE:
        text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
        the_data_guide_left_what_it_says(reader.folder, text, shown)


def the_data_guide_left_what_it_says(folder: Path, page: str, shown: str) -> None:
    for name in ("inspect", "look/sheet", "look/views"):
        assert (folder / f"{name}.png").stat().st_size > 1000
        assert (folder / f"{name}.html").exists()
    (remark,) = (folder / "shards-audio/warnings.jsonl").read_text().splitlines()
    assert json.loads(remark)["kind"] == "silent"
    assert "beep.mp4 (16000,) 16000\n" in shown and "silent.mp4 (16000,) 0\n" in shown
    (printed,) = re.findall(r"^prints `(.*)`", page, re.MULTILINE)
    assert printed in shown.splitlines()


def test_the_pages_show_as_much_as_they_did():
    """A fence that is no longer recognised would take its commands out of these tests."""
    found = [step for path in PAGES for step in steps(path)]
    assert sum(step.language == "bash" for step in found) >= 85
    assert sum(step.language == "python" for step in found) >= 5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ivj train --config=configs/videomae/pretrain.py:size=base,smok "
         "--config.data.train=shards/ --workdir=runs/x", "did you mean"),
        ("ivj weights inspcet runs/x", "ended with 2"),
        ("python benchmarks/train_step.py --bach=2", "has no option --bach"),
        ("python benchmarks/aot.py --config=configs/videomae/pretrain.py:size=bas", "no "),
        ("scripts/slurm.sh --name=mae -- --workdir=runs/mae", "is shown with --dry-run"),
        ("pip install 'internvideo-jax[tpus]'", "no extra tpus"),
        ("make tset", "no target tset"),
        ("rm -rf shards", "no test runs such a command"),
    ],
)  # fmt: skip
def test_a_wrong_command_on_a_page_is_found(command, tmp_path, text, reason):
    with pytest.raises((Undocumented, ValueError), match=reason):
        Reader(tmp_path, command).do(Step("page.md", 1, "bash", text))


def test_commands_of_a_block():
    block = "# a remark\nmake test   # why\n\npython -m a \\\n    --b='c # d'\n"
    assert commands(block) == [(1, "make test"), (3, "python -m a --b='c # d'")]
    assert Step("page.md", 1, "bash", "A=1 B_C=2 python -m a").words == ["python", "-m", "a"]


def test_in_small():
    words = ["--config=configs/a.py:size=base", "--config.steps=1500", "--config.mesh.fsdp=8"]
    found, devices = in_small("train", words)
    assert devices == 8
    assert found == [
        "--config=configs/a.py:size=base,smoke", *words[1:],
        "--config.steps=3", "--config.data.global_batch=8",
    ]  # fmt: skip
