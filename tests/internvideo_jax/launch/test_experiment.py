"""Experiments as data and the command of every worker."""

from __future__ import annotations

import shlex

import pytest
from ml_collections import ConfigDict, config_flags

from internvideo_jax.launch.experiment import Experiment, parse_sweep, run_name, worker_command


def test_zip_takes_values_together():
    made = Experiment.from_sets("a", "c.py", "w/", ["x=1,2", "y=3,4", "z=5"], zipped=True)
    assert [job.arguments[2:] for job in made.jobs()] == [
        ("--config.z=5", "--config.x=1", "--config.y=3"),
        ("--config.z=5", "--config.x=2", "--config.y=4"),
    ]
    assert [job.workdir for job in made.jobs()] == ["w/x=1,y=3", "w/x=2,y=4"]


def test_one_run_has_the_directory_itself():
    (job,) = Experiment.from_sets("a", "c.py", "w", ["x=1"]).jobs()
    assert job.arguments == ("--config=c.py", "--workdir=w", "--config.x=1")


def test_a_field_is_fixed_or_swept():
    with pytest.raises(ValueError, match="x is both set to one value and swept over"):
        Experiment("a", "c.py", "w", [("x", "1")], {"x": ["1", "2"]})


def test_names_are_safe_for_a_file_system():
    assert run_name({"a.b": "x/y z'", "c": "-1e-3"}) == "a.b=x_y_z_,c=-1e-3"


def test_lists_of_a_sweep_are_read_by_the_flags_of_train():
    """What a JSON list becomes is a tuple for config_flags."""
    (values,) = parse_sweep(['freeze=[["a,b", "c"], [], "text", 3, true]']).values()
    assert values == ["('a,b','c',)", "()", "text", "3", "True"]
    for text, expected in zip(values[:2], [("a,b", "c"), ()], strict=True):
        assert config_flags.config_flags.tuple_parser.TupleParser().parse(text) == expected
    assert ConfigDict({"freeze": expected})["freeze"] == ()


def test_worker_command():
    train = ["--config=c", "--workdir=w"]
    assert worker_command(train) == ["python", "-m", "internvideo_jax.train", *train]
    assert worker_command(train, restarts=2, python="p") == [
        *("p", "-m", "internvideo_jax.launch", "--restarts=2", "--"),
        *("p", "-m", "internvideo_jax.train", *train),
    ]
    with pytest.raises(ValueError, match="no --config for the training"):
        worker_command(["--workdir=w"])
    with pytest.raises(ValueError, match="--restarts=-1"):
        worker_command(train, restarts=-1)


def test_the_command_line_quotes(command):
    module = "internvideo_jax.launch.experiment"
    words = ["--config=c", "--workdir=it's $HOME", "--config.x=--"]
    done = command(module, "--restarts=1", "--", *words)
    assert done.returncode == 0, done.stderr
    assert shlex.split(done.stdout) == worker_command(words, restarts=1)
    for bad, message in (
        (["--restart=1", "--", *words], "unexpected '--restart=1'"),
        (["--restarts=x", "--", *words], "invalid literal"),
        (words, "unexpected"),
        ([], "no -- before the arguments"),
    ):
        done = command(module, *bad)
        assert done.returncode == 2 and message in done.stderr, bad
