"""The cache of compiled programs: where it is, who may switch it off, damaged files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from internvideo_jax.parallel import compile_cache
from tests.conftest import environment

PROGRAM = "tests.internvideo_jax.parallel.cached_program"


@pytest.fixture
def run(interpreter):
    kept = {k: v for k, v in environment().items() if "COMPILATION_CACHE" not in k}

    def run(asked: str, **variables: str) -> tuple[str, int, str, str]:
        done = interpreter.run(PROGRAM, [asked], {**kept, **variables}, timeout=60)
        assert done.returncode == 0, done.stderr
        value, rest = done.stdout.strip().splitlines()
        hits, _, folder = rest.partition(" ")
        return value, int(hits), folder, done.stderr

    return run


def test_a_second_process_compiles_nothing_and_damage_is_survived(run, tmp_path):
    folder = tmp_path / "cache"
    first, hits, used, _ = run(str(folder))
    assert hits == 0 and used == str(folder)
    again, hits, _, errors = run(str(folder))
    assert again == first and hits > 0 and "Traceback" not in errors
    for file in folder.glob("*-cache"):  # a process that was killed while it wrote
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    value, _, _, errors = run(str(folder))
    assert value == first and "Error reading persistent compilation cache" in errors


def test_off_and_the_default_folder(run, tmp_path):
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    assert run("off", **home)[2] == "" and not list(tmp_path.iterdir())
    assert run("", **home)[2].startswith(str(tmp_path / "internvideo_jax/compiled"))
    other = tmp_path / "other"
    assert run("", JAX_COMPILATION_CACHE_DIR=str(other), **home)[2] == str(other)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--compile_cache=.* cannot be written to"):
        compile_cache.use_compile_cache(str(tmp_path / "file" / "below"))


def test_the_processor_has_a_short_stable_name():
    name = compile_cache.processor()
    assert name == compile_cache.processor() and os.sep not in name and len(name) < 40
    assert Path(name).name == name
