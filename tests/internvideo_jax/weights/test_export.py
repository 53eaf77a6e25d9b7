"""What an export is called says what is in it."""

from __future__ import annotations

import io
import pickletools
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_pipelines.commands.exit_codes import ExitCode
from internvideo_jax.weights import files, torch_files
from internvideo_jax.weights.__main__ import main
from tests.internvideo_jax.weights.made import small_weights


@pytest.fixture
def ours(tmp_path):
    save_file(small_weights(), tmp_path / "source.safetensors")
    files.save_ours(tmp_path / "ours.safetensors", files.load(tmp_path / "source.safetensors"))
    return tmp_path / "ours.safetensors"


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pyth"])
def test_a_torch_file_holds_every_tensor(suffix, ours, tmp_path):
    out = tmp_path / f"out{suffix}"
    assert main(["export", str(ours), "--out", str(out)]) == 0
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        pickled = archive.read("archive/data.pkl")
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickletools.dis(pickled, io.StringIO())  # raises where the opcodes make no sense
    where = torch_files._names_of_parts(pickled)
    found = {name: parts[f"archive/data/{number}"] for number, (name,) in where.items()}
    assert found == {name: value.tobytes() for name, value in small_weights().items()}


def test_equal_weights_give_equal_files(ours, tmp_path):
    for name in "ab":
        assert main(["export", str(ours), "--out", str(tmp_path / f"{name}.pth")]) == 0
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


@pytest.mark.torch
def test_torch_reads_it(ours, tmp_path):
    torch = pytest.importorskip("torch", reason="reading .pth needs torch")
    assert main(["export", str(ours), "--out", str(tmp_path / "out.pth")]) == 0
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert back.keys() == small_weights().keys()
    assert all(np.array_equal(back[name].numpy(), v) for name, v in small_weights().items())
    assert main(["inspect", str(tmp_path / "out.pth")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--out", "x"], "expected a file name that ends in .safetensors or .pth or"),
        (["export", "--out", "x.ckpt"], "expected a file name that ends in"),
        (["export", "--out", "x.safetensor"], "expected a file name that ends in"),
        (["export", "--out", "x.npz"], "expected a file name that ends in"),
        (["export", "--out", "none/x.pth"], "would be in a folder that does not exist"),
        (["export", "--out", "folder.pth"], "is a folder"),
        (["import", "--out", "x.pth"], "expected a file name that ends in .safetensors\n"),
        (["import", "--out", "x"], "expected a file name that ends in .safetensors\n"),
        (["export", "--layout=huggingface", "--out", "x.safetensors"], "named like a file"),
        (["export", "--layout=huggingface", "--out", "x.pth"], "named like a file"),
        (["export", "--layout=huggingface", "--out", "ours.safetensors"], "named like a file"),
    ],
)
def test_other_names_are_refused_before_any_work(
    arguments, message, ours, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pth").mkdir()
    monkeypatch.setattr(files, "load", None)  # not even read
    before = sorted(tmp_path.iterdir())
    command, *rest = arguments
    assert main([command, str(ours), *rest]) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: --out ") and said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_the_mean_of_two_models_is_a_file_of_ours(ours, tmp_path, capsys):
    average = ["average", str(ours), str(ours), "--out"]
    assert main([*average, str(tmp_path / "mean.pth")]) == 2
    assert "ends in .safetensors" in capsys.readouterr().err
    assert main([*average, str(tmp_path / "mean.safetensors")]) == 0


def test_a_write_that_fails_leaves_what_was_there(ours, tmp_path, monkeypatch):
    out = tmp_path / "out.pth"
    assert main(["export", str(ours), "--out", str(out)]) == 0
    before = out.read_bytes()

    def full(self, info, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    assert main(["export", str(ours), "--out", str(out)]) == ExitCode.AGAIN
    assert out.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


def test_the_source_may_be_replaced(ours):
    before = load_file(ours)
    assert main(["import", str(ours), "--out", str(ours)]) == 0
    after = load_file(ours)
    assert all(after[name].tobytes() == value.tobytes() for name, value in before.items())
