"""Every command and program of README and docs does what it says; what is only looked at is listed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs import places
from tests.docs.pages import PAGES, ROOT, Step, commands, steps
from tests.docs.running import Reader, Undocumented, in_small

SERVER = "internvideo_jax.demo\0serve\0--checkpoint=runs/viclip\0--videos=clips/"
REPLACE = {
    "evaluation.md": {"CONFIG": "configs/viclip/pretrain.py:size=tiny", "FILE": "runs/viclip"},
    "models.md": {"FILE": "for_torch.safetensors"},
    "launch.md": {"...": "--config=configs/videomae/pretrain.py:size=tiny --workdir=runs/watched"},
    "search.md": {"SERVER": SERVER},
    "training.md": {"$((L - n))": "8"},
    "weights.md": {"$((L - n))": "8"},
}


@pytest.fixture(scope="session")
def runs(command, shards, tmp_path_factory) -> Path:
    """`runs/pretrain`, `finetune`, `viclip`: what most pages go on from."""
    folder = tmp_path_factory.mktemp("documented")
    places.trained(command, folder, "videomae/pretrain.py:size=base", "pretrain", shards)
    start = f"--config.init_from={folder}/runs/pretrain"
    places.trained(command, folder, "videomae/finetune.py:size=base", "finetune", shards, start)
    places.trained(command, folder, "viclip/pretrain.py:size=tiny", "viclip", shards)
    return folder / "runs"


@pytest.fixture
def reader(request, command, shards, tmp_path, record_property) -> Reader:
    """Somebody in the folder that the page of this test takes for granted."""
    page = request.param
    world = shards.parent / "videos"
    if page == "README.md":
        places.thirteen_videos(tmp_path, world)
    elif page in ("data.md", "data-formats.md"):
        places.sources_of_the_data_guide(tmp_path)
    elif page == "actions.md":
        places.actions(tmp_path, world)
    else:
        if page == "search.md":
            places.clips_and_classes(tmp_path, world)
        shutil.copytree(request.getfixturevalue("runs"), tmp_path / "runs")
        (tmp_path / "shards").symlink_to(shards)
    found = Reader(tmp_path, command, REPLACE.get(page, {}))
    yield found
    for line in found.dry:
        record_property("dry run", line)


WITH_STEPS = [path for path in PAGES if steps(path)]


@pytest.mark.parametrize(
    ("reader", "path"), [(path.name, path) for path in WITH_STEPS], indirect=["reader"],
    ids=[path.stem for path in WITH_STEPS],
)  # fmt: skip
def test_a_page_does_what_it_says(reader, path):
    for step in steps(path):
        reader.do(step)
