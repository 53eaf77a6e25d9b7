"""Weights in several files with an index, and folders of Hugging Face."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from internvideo_jax.checkpoint.initial import load_source
from internvideo_jax.recipes.stored import stored_config
from internvideo_jax.weights import files, huggingface, torch_files
from internvideo_jax.weights.__main__ import main
from internvideo_jax.weights.folders import is_weights
from tests.internvideo_jax.weights.made import small_weights
from tests.internvideo_jax.weights.test_huggingface import classifier, weights

INDEX = "model.safetensors.index.json"


def write(folder: Path, write_part=save_file, stem: str = "model", ending: str = "safetensors"):
    """A model in the layout of Hugging Face, in three files with an index; its parameters."""
    config = classifier()
    params = weights(config)
    huggingface.save(folder, params, config)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {}
    for number in range(3):
        name = f"{stem}-{number + 1:05d}-of-00003.{ending}"
        part = dict(list(tensors.items())[number::3])
        write_part(part, folder / name)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": dict(sorted(where.items()))}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index, indent=1))
    return params


@pytest.mark.parametrize("place", ["", INDEX], ids=["folder", "index"])
def test_files_with_an_index_are_one_model(place, tmp_path, capsys):
    folder = tmp_path / "model"
    params = write(folder)
    source = str(folder / place)
    assert main(["inspect", source]) == 0
    count = len(json.loads((folder / INDEX).read_text())["weight_map"])
    assert f"{count} tensors converted, 0 ignored" in capsys.readouterr().out
    assert main(["import", source, "--out", str(tmp_path / "ours.safetensors")]) == 0
    for back in (load_file(tmp_path / "ours.safetensors"), load_source(source).params):
        assert back.keys() == params.keys()
        assert all(back[path].tobytes() == value.tobytes() for path, value in params.items())


def test_a_folder_with_one_file_is_taken_everywhere(tmp_path):
    huggingface.save(tmp_path, weights(classifier()), classifier())
    assert load_source(str(tmp_path)).params.keys() == weights(classifier()).keys()
    assert main(["inspect", str(tmp_path)]) == 0


def test_one_file_wins_over_an_index(tmp_path):
    write(tmp_path)
    huggingface.save(tmp_path, weights(classifier(), seed=1), classifier())
    back = files.load(tmp_path).params
    assert back["head/kernel"].tobytes() == weights(classifier(), 1)["head/kernel"].tobytes()


def test_weights_exported_into_the_folder_of_a_run_do_not_replace_it(tmp_path):
    huggingface.save(tmp_path, weights(classifier()), classifier())
    assert is_weights(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert not is_weights(tmp_path)


def test_a_folder_without_weights_names_what_it_has(tmp_path):
    with pytest.raises(ValueError, match=r"a folder without weights; expected model.safetensors, "):
        files.load(tmp_path)
    save_file({"a": np.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"It has other.safetensors: name that file"):
        files.load(tmp_path)
    assert not is_weights(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"It has other.safetensors: name that file"):
        load_source(str(tmp_path))
    with pytest.raises(ValueError, match="is a weight file, which does not say what model"):
        stored_config(str(tmp_path))  # and is no run that would


def changed(folder: Path, **entries: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    for tensor, name in entries.items():
        index["weight_map"][tensor.replace("__", ".")] = name
    (folder / INDEX).write_text(json.dumps(index))


FIRST, SECOND = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"


def cut(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-7])


def without(folder: Path, name: str) -> None:
    tensors = load_file(folder / name)
    save_file(dict(list(tensors.items())[1:]), folder / name)


def twice(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    line = re.search(r'"classifier.bias": "[^"]+",', text)
    assert line
    (folder / INDEX).write_text(text.replace(line[0], line[0] * 2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / SECOND).unlink(), f"1 of 3 files that it names are missing, .*{SECOND}"),
        (lambda f: cut(f, SECOND), f"{SECOND}: the file is cut off: download it again"),
        (lambda f: (f / SECOND).write_bytes(b""), f"{SECOND}: empty file"),
        (lambda f: (f / SECOND).write_text("version https://git-lfs.g"), f"{SECOND}: the pointer"),
        (lambda f: without(f, FIRST), f"does not fit {FIRST}: 1 tensors are not in it, first "),
        (lambda f: changed(f, more__weight=FIRST), "1 tensors are not in it, first more.weight"),
        (
            lambda f: changed(f, classifier__bias=SECOND),
            "does not fit .*: 1 .*first classifier.bias",
        ),
        (
            lambda f: save_file({**load_file(f / FIRST), "x": np.zeros(1)}, f / FIRST),
            f"does not fit {FIRST}: 1 are in it unnamed, first x",
        ),
        (twice, "'classifier.bias' is in it twice"),
        (lambda f: changed(f, a="../../etc/passwd"), "names '../../etc/passwd' as the file of a"),
        (lambda f: changed(f, a="/etc/passwd"), "names '/etc/passwd' as the file of a"),
        (lambda f: changed(f, a=".."), "names '..' as the file of a"),
        (lambda f: changed(f, a=""), "names '' as the file of a"),
        (lambda f: changed(f, a=7), "names 7 as the file of a"),
        (lambda f: changed(f, a="a\0b"), "expected the name of a file in the same folder"),
        (lambda f: changed(f, a="x" * 300), "expected the name of a file in the same folder"),
        (lambda f: changed(f, a=INDEX), "names model.safetensors.index.json .* which is an index"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), "expected an index with a weight"),
        (lambda f: (f / INDEX).write_text('{"weight_map": []}'), "expected an index with a weight"),
        (lambda f: (f / INDEX).write_text('{"weight_map"'), "not a readable index of weight files"),
        (lambda f: (f / INDEX).write_text('{"a":' * 9999), "not a readable index of weight files"),
        (lambda f: (f / INDEX).write_bytes(b'{"\xff": 1}'), "not a readable index of weight files"),
    ],
)
def test_an_index_and_files_that_do_not_fit(damage, message, tmp_path, capsys):
    write(tmp_path)
    damage(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.startswith(f"error: {tmp_path}/")
    assert said.count("\n") == 1
    with pytest.raises(ValueError, match="model"):
        load_source(str(tmp_path))


def test_a_config_in_place_of_weights(tmp_path):
    huggingface.save(tmp_path, weights(classifier()), classifier())
    with pytest.raises(ValueError, match=r"config.json: JSON, not weights; expected an index"):
        files.load(tmp_path / "config.json")


def test_a_key_is_for_torch_files(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="--key model is for torch files"):
        files.load(tmp_path, "model")


@pytest.mark.torch
@pytest.mark.parametrize("sharded", [True, False], ids=["index", "one-file"])
def test_folders_with_pytorch_model_bin(sharded, tmp_path):
    pytest.importorskip("torch", reason="reading .bin needs torch")

    def part(tensors, path):
        torch_files.write(path, tensors)

    params = write(tmp_path, part, "pytorch_model", "bin")
    if not sharded:
        for path in tmp_path.glob("pytorch_model*"):
            path.unlink()
        huggingface.save(tmp_path, params, classifier())
        part(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    back = load_source(str(tmp_path)).params
    assert all(back[path].tobytes() == value.tobytes() for path, value in params.items())


@pytest.mark.torch
def test_a_damaged_part_of_a_torch_model_is_named(tmp_path):
    pytest.importorskip("torch", reason="reading .bin needs torch")
    write(tmp_path, lambda tensors, path: torch_files.write(path, tensors), "pytorch_model", "bin")
    path = tmp_path / "pytorch_model-00002-of-00003.bin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name}: damaged, download it again: 1 of"):
        files.load(tmp_path)


@pytest.mark.torch
@pytest.mark.slow
def test_what_transformers_saves_in_shards_is_read(tmp_path):
    transformers = pytest.importorskip("transformers", reason="saves in shards")
    config = classifier()
    params = weights(config)
    huggingface.save(tmp_path / "ours", params, config)
    model = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    back = files.load(tmp_path / "theirs").params
    assert all(back[path].tobytes() == value.tobytes() for path, value in params.items())


def test_small_weights_are_a_whole_model(tmp_path):
    save_file(small_weights(), tmp_path / "x.safetensors")
    assert files.load(tmp_path / "x.safetensors").kind == "videomae_classifier"
