"""No command takes a URL for the name of a folder: it is used, or refused before any work."""

from __future__ import annotations

import importlib
import sys

import pytest

from internvideo_jax.__main__ import COMMANDS
from internvideo_jax.checkpoint import run_folder

URL = "sftp://host/place"
# What each command is asked, and the option that its message names. Nothing here loads a model.
REFUSED = {
    "ingest": (["--source=.", f"--out={URL}"], "--out"),
    "synthetic": ([f"--out={URL}"], "--out"),
    "report": ([".", f"--out={URL}/r.html"], "--out"),
    "launch": ([f"--logs={URL}", "--", "true"], "--logs"),
    "weights": (["import", "x.pth", f"--out={URL}/w.safetensors"], "--out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_url_that_a_command_does_not_write_to(name, tmp_path, monkeypatch, capsys):
    arguments, option = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        code = importlib.import_module(COMMANDS[name].module).main()
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err
    assert code == 2 and option in said and URL in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_a_url_is_the_same_for_all_processes(monkeypatch, tmp_path):
    monkeypatch.setenv(run_folder.STAGING, str(tmp_path))
    found = run_folder.staging_folder("gs://bucket/run")
    assert found.parent == tmp_path and found == run_folder.staging_folder("gs://bucket/run/")
    assert found != run_folder.staging_folder("s3://bucket/run")
