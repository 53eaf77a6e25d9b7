"""Damaged checkpoints: one message of ours from everybody who reads them, and no wrong number."""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest

from tests.data_pipelines.sets import write_set
from tests.faults import damage


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    return damage.Readers(write_set(folder / "set", 12), folder)


@pytest.fixture
def run(readers):
    readers.restore()
    return readers


def data_files(step):
    return sorted((step / "state/ocdbt.process_0/d").iterdir(), key=lambda f: f.stat().st_size)


DAMAGES = {
    "cut": lambda step: [os.truncate(file, 100) for file in data_files(step)],
    "no data file": lambda step: [file.unlink() for file in data_files(step)],
    "no index": lambda step: damage.empty(step / "state/d", random.Random(0)),
    "cut meta": lambda step: os.truncate(step / "meta/metadata", 500),
    "nothing": lambda step: damage.empty(step, random.Random(0)),
    "no state": lambda step: shutil.rmtree(step / "state"),
    "no meta": lambda step: shutil.rmtree(step / "meta"),
    "the arrays of another step": lambda step: take_state(step),
    "another setting": lambda step: edit(step, "config", {"steps": 7}),
    "no digests": lambda step: edit(step, "digests", None),
    "no digest": lambda step: edit(step, "digest", None),
    "a file": lambda step: damage.replace_folder(step, random.Random(0)),
    "another step": lambda step: another(step),
}
WHAT = {
    "cut": "its arrays cannot be read",
    "no index": "state/d|cannot be read",
    "cut meta": "meta/metadata is cut or changed: it is no JSON",
    "nothing": "its folder is empty",
    "no state": "state/ is missing",
    "no meta": "meta/metadata is missing",
    "the arrays of another step": r"array \S+: its digest is not the stored one",
    "another setting": "meta/metadata: its digest is not the stored one",
    "another step": "meta/metadata is that of step 3",
    "a file": "it is no folder",
}


def edit(step, key, value):
    file = step / "meta/metadata"
    meta = json.loads(file.read_text())
    meta[key] = value
    if value is None:
        del meta[key]
    file.write_text(json.dumps(meta))


def take_state(step):
    shutil.rmtree(step / "state")
    shutil.copytree(step.with_name("3") / "state", step / "state")


def swap_states(step):
    """Both steps can be read then, and neither holds what was saved."""
    one, other, aside = step / "state", step.with_name("3") / "state", step / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def another(step):
    shutil.rmtree(step)
    shutil.copytree(step.with_name("3"), step)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_step_is_named_with_the_complete_one(run, name):
    DAMAGES[name](run.step)
    for reader, kind, said in run.outcomes():
        assert kind == "refused", (reader, kind, said)
        assert damage.re.search(WHAT.get(name, ""), said), said


def test_one_flipped_bit_is_found_by_whoever_reads_the_array(run):
    """A reader of the averages alone does not see the moments."""
    file = data_files(run.step)[-1]
    whole, found = file.read_bytes(), set()
    for part in (2, 4, 6):
        content = bytearray(whole)
        content[len(content) * part // 8] ^= 1
        file.write_bytes(content)
        outcomes = {reader: kind for reader, kind, _ in run.outcomes()}
        assert set(outcomes.values()) <= {"refused", "harmless"}, outcomes
        found |= {reader for reader, kind in outcomes.items() if kind == "refused"}
    assert "train" in found


def test_an_older_step_is_complete_only_if_it_is(run):
    swap_states(run.step)
    with pytest.raises(ValueError, match="no other step is complete: remove or move .*/6; the run"):
        run.init_from()


def test_a_step_that_was_named_itself(run):
    take_state(run.step)
    with pytest.raises(ValueError, match=r"step 3 is complete: give \S+/checkpoints/3$"):
        damage.initial.load_params(str(run.step))


def test_steps_of_earlier_versions_are_read_with_a_note(run, capsys):
    file = run.step / "meta/metadata"
    meta = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in meta.items() if not k.startswith("digest")}))
    for reader, kind, _ in run.outcomes():
        assert kind == "harmless", reader
    assert capsys.readouterr().err.count("note: step 6 in") == 3  # and that of export
    take_state(run.step)  # now nothing tells
    assert "silent" in {kind for _, kind, _ in run.outcomes()}


def test_no_damage_gives_wrong_numbers_or_a_foreign_error(readers):
    said: list[str] = []
    counts = damage.attack(readers, 6, 11, said.append)
    assert not said and counts["refused"] > 0


@pytest.mark.slow
def test_two_hundred_damages(readers):
    said: list[str] = []
    counts = damage.attack(readers, 200, 0, said.append)
    assert not said and counts["refused"] > 200
