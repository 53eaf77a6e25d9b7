"""Heads of other classes: which rows are kept, and every way to say it wrong."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from data_pipelines.stream.identity import class_difference
from internvideo_jax.checkpoint import initial
from internvideo_jax.checkpoint.classes import ABSENT, head_rows
from internvideo_jax.checkpoint.manager import Checkpoints
from internvideo_jax.families.uniformerv2.model import UniFormerV2Config
from internvideo_jax.families.videomae.model import VideoMAEClassifierConfig
from internvideo_jax.types import flatten_paths, unflatten_paths

SMALL = {"frames": 4, "resolution": 16, "patch": 8, "dtype": "float32"}
VIDEOMAE = VideoMAEClassifierConfig.of_size("tiny", classes=4, **SMALL)
UNIFORMERV2 = UniFormerV2Config.of_size("tiny", classes=4, **SMALL)
THEIRS, OURS = ("run", "sit", "jump", "fall"), ("fall", "swim", "run")


def random_params(config, seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = flatten_paths(config.model().shapes())
    return {k: rng.standard_normal(v.shape).astype(np.float32) for k, v in shapes.items()}


def write_run(folder, config, params, classes=()):
    """A run with one checkpoint, as far as those read it who start from it."""
    step = folder / "checkpoints/7"
    ocp.PyTreeCheckpointer().save(step.absolute() / "state", {"params": unflatten_paths(params)})
    (step / "meta").mkdir()
    meta = {"config": {"model": dataclasses.asdict(config)}, "classes": classes}
    (step / "meta/metadata").write_text(json.dumps(meta))
    return str(folder)


def rows(choice, names=THEIRS, classes=OURS, count=4, wanted=3):
    return head_rows(str(choice), count=count, names=names, wanted=wanted, classes=classes)


def test_rows_by_name_first_and_fresh():
    by_name = rows("names")
    assert by_name.rows.tolist() == [3, ABSENT, 0] and by_name.absent == ("swim",)
    assert "2 of 3 rows by name, from 4; fresh: 'swim'" in by_name.note
    assert rows("first", classes=THEIRS[:3]).rows.tolist() == [0, 1, 2]
    assert rows("first", classes=()).rows.tolist() == [0, 1, 2]
    assert rows("fresh", classes=THEIRS, wanted=4).fresh
    default = rows("")
    assert default.fresh and "3 classes in the data, 4 in the checkpoint; class 0 is" in (
        default.note
    )
    assert rows("", classes=THEIRS, wanted=4).rows.tolist() == [0, 1, 2, 3]
    # Without names only the number is checked.
    for choice in ("", "names", "first"):
        assert rows(choice, names=(), classes=THEIRS, wanted=4).rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", ["json", "txt"])
def test_rows_by_a_list_of_numbers_or_names(tmp_path, suffix):
    path = tmp_path / f"list.{suffix}"

    def write(entries):
        path.write_text(json.dumps(entries) if suffix == "json" else "\n".join(map(str, entries)))

    write([2, 0, 3])
    found = rows(path)
    kernel = np.arange(8.0).reshape(2, 4)
    assert found.take(kernel, np.zeros((2, 3))).tolist() == [[2, 0, 3], [6, 4, 7]]
    assert not found.absent
    write(["swim", "a", "b", "run"])  # the names of a file that has none
    assert rows(path, names=()).rows.tolist() == [ABSENT, 0, 3]
    for entries, message in (
        ([0, 1], "has 2 row numbers, the data has 3 classes"),
        ([0, 1, 4], "entry 2 is 4, the checkpoint's head has rows 0 to 3"),
        (["run"], "has 1 class names, the head of the checkpoint has 4 classes"),
        (["run", "run", "a", "b"], "'run' is the name of 2 classes"),
        ([], "expected a list of row numbers or one of class names"),
    ):
        write(entries)
        with pytest.raises(ValueError, match=message):
            rows(path)
    path.write_text("{")
    if suffix == "json":
        with pytest.raises(ValueError, match="is no JSON"):
            rows(path)


@pytest.mark.parametrize(
    ("choice", "given", "message"),
    [
        ("", {"classes": ("run", "jump", "sit", "fall"), "wanted": 4}, r"class 1 is 'jump' in the "
         r"data, 'sit' in the checkpoint; the names are the same, their order is not"),
        ("first", {}, "class 0 is 'fall' in the data, 'run' in the checkpoint.*names takes"),
        ("first", {"wanted": 5}, "needs 5 rows, the head of the checkpoint has 4"),
        ("names", {"names": ()}, "the checkpoint has no class names; .* the 4 class names"),
        ("names", {"classes": ()}, "the data has no class names"),
        ("names", {"classes": ("a", "b", "c")}, "no class of the data is one of the checkpoint"),
        ("nmes", {}, "'nmes' is no file; expected fresh, names, first, nothing, or a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed(choice, given, message):
    with pytest.raises(ValueError, match=message):
        rows(choice, **given)


def test_the_first_difference_of_two_lists():
    assert class_difference(THEIRS, list(THEIRS), "it") == ""
    assert class_difference(THEIRS, THEIRS[:3], "it") == (
        "4 classes in the data, 3 in it; class 3 is 'fall' in the data, absent in it"
    )


@pytest.mark.parametrize("config", [VIDEOMAE, UNIFORMERV2], ids=["videomae", "uniformerv2"])
def test_a_run_starts_with_the_rows_of_its_classes(tmp_path, config):
    source = random_params(config)
    run = write_run(tmp_path / "run", config, source, THEIRS)
    three = dataclasses.replace(config, classes=3)
    fresh = random_params(three, seed=1)
    params, report = initial.initialise(
        run, unflatten_paths(jax.tree.map(jax.numpy.asarray, fresh)), three, rows="names",
        classes=OURS,
    )  # fmt: skip
    found = flatten_paths(params)
    for leaf in ("head/kernel", "head/bias"):
        for ours, theirs in ((0, 3), (2, 0)):
            np.testing.assert_array_equal(found[leaf][..., ours], source[leaf][..., theirs])
        np.testing.assert_array_equal(found[leaf][..., 1], fresh[leaf][..., 1])
    assert "head: 2 of 3 rows by name, from 4; fresh: 'swim'" in report.text()
    with pytest.raises(ValueError, match="no row in its head for 1 classes of the data: 'swim'"):
        report.require_all()


def test_an_evaluation_takes_a_subset_of_the_classes(tmp_path):
    source = random_params(VIDEOMAE)
    run = write_run(tmp_path / "run", VIDEOMAE, source, THEIRS)
    two = dataclasses.replace(VIDEOMAE, classes=2)
    shapes = two.model().shapes()
    params, report = initial.initialise(run, shapes, two, rows="names", classes=("jump", "run"))
    report.require_all()
    np.testing.assert_array_equal(params["head"]["kernel"], source["head/kernel"][:, [2, 0]])
    np.testing.assert_array_equal(params["head"]["bias"], source["head/bias"][[2, 0]])
    _, report = initial.initialise(run, shapes, two, classes=("jump", "run"))
    with pytest.raises(ValueError, match=r"lacks 2 parameters.* Its head: fresh: 2 classes in the"):
        report.require_all()


def test_a_run_does_not_go_on_with_other_classes(tmp_path, monkeypatch):
    checkpoints = Checkpoints(
        tmp_path, SimpleNamespace(accept_new_data=True, keep=1, asynchronous=False)  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    monkeypatch.setattr(checkpoints, "meta", lambda _: {"classes": list(THEIRS)})
    checkpoints.check_classes(3, THEIRS)
    checkpoints.check_classes(3, ())  # learns no classes
    with pytest.raises(ValueError, match="class 0 is 'sit' in the data, 'run' in the checkpoint"):
        checkpoints.check_classes(3, ("sit", "run", "jump", "fall"))
    monkeypatch.setattr(checkpoints, "meta", lambda _: {})  # written before names were kept
    checkpoints.check_classes(3, OURS)
    checkpoints.close()
