"""The wheel, built and installed into a folder of its own, works from an empty one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, environment

pytestmark = pytest.mark.slow
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "internvideo_jax", "data_pipelines", "configs")
RECIPE = "--config=videomae/finetune:size=tiny"


def run(*words: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**environment(), **more},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built as by pip; a copy of the sources, as a build leaves files among them."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    done = run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir=dist", ".", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the two packages only; libraries are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    words = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", f"--target={folder}")
    done = run(*words, wheel, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_wheel_has_what_the_packages_read(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"internvideo_jax/{path.relative_to(ROOT)}" for path in ROOT.glob("configs/**/*.py")}
    assert recipes and recipes <= names
    tracked = subprocess.run(
        ["git", "ls-files", "internvideo_jax", "data_pipelines"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert {name for name in tracked if (ROOT / name).is_file()} <= names
    assert {"internvideo_jax/py.typed", "data_pipelines/py.typed"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "internvideo_jax", "data_pipelines",
    }  # fmt: skip
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "License-Expression: Apache-2.0\n" in text and "License-File: LICENSE\n" in text
    for version in ("3.11", "3.12", "3.13"):
        assert f"Classifier: Programming Language :: Python :: {version}\n" in text


def test_hints_to_install_an_extra_work_wherever_the_package_is_installed(tmp_path):
    """pip takes the installed package, a checkout too, and only looks for what is missing."""
    words = ("-m", "pip", "install", "--dry-run", "--no-index", "internvideo-jax[text,parquet]")
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_from_an_empty_folder_a_run_is_trained_evaluated_and_asked(installed, shards, tmp_path):
    def ivj(*words: object) -> str:
        done = run("-m", "internvideo_jax", *words, cwd=tmp_path, PYTHONPATH=str(installed))
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert "--config.optim.lr=" in ivj("train", "--helpfull", RECIPE)
    assert "viclip-l14" in ivj("weights", "list", "viclip")
    sources = f"--config.data.train={shards}"
    short = ("--config.steps=2", "--config.optim.warmup_steps=1", "--config.log.report=false")
    ivj("train", RECIPE, *TINY, *short, sources, "--workdir=run")
    ivj("evaluate", "--checkpoint=run", sources, "--only=test", "--out=r.json")
    result = json.loads((tmp_path / "r.json").read_text())["results"]["test"]
    assert result["metrics"]["videos"] == 20
    assert "tests/golden" not in ivj("weights", "inspect", "run")
    video = next((shards.parent / "videos/test").glob("*.mp4"))
    program = (
        "import sys, internvideo_jax as ivj;"
        f"assert ivj.__file__.startswith({os.fspath(installed)!r});"
        "model = ivj.load('run', progress=False);"
        "print(model.embed(sys.argv[1]).shape, len(model.classify(sys.argv[1]).labels))"
    )
    done = run("-c", program, video, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.stdout.strip() == "(1, 32) 10", done.stderr[-3000:]
