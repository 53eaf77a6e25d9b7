"""Runs on hosts that have nothing in common but an object store."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.commands.exit_codes import ExitCode
from data_pipelines.records import storage, trees
from internvideo_jax.checkpoint.steps import newest_step
from internvideo_jax.weights import remote
from tests.services.conftest import STEPS, Store, train
from tests.services.pods import Pod
from tests.services.proxy import Fault

pytestmark = pytest.mark.services

TRAIN = "internvideo_jax.train"
# Every array is divided over the hosts.
DIVIDED = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.shard_above=64")


@pytest.fixture(scope="session")
def pod(stores, tmp_path_factory) -> Iterator[Pod]:
    found = Pod(tmp_path_factory.mktemp("pod"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def undisturbed(local, pod, tmp_path_factory) -> Path:
    """What such a run leaves on a disk that the hosts share."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    passed(pod.run(TRAIN, *train(f"{local}/set", str(folder), *DIVIDED), private=False))
    return folder


def passed(processes) -> str:
    for each in processes:
        assert each.returncode == 0, each.stdout + each.stderr
    return processes[0].stdout


def digest(run: str) -> str:
    return json.loads(storage.read_text(storage.join(run, "run.json")))["params_digest"]


def kinds(names) -> set[str]:
    """File names without what is random in them."""
    return {re.sub(r"[0-9a-f]{32}", "*", name) for name in names}


def test_a_pod_trains_on_nothing_but_an_object_store(
    store: Store, local, undisturbed, pod, command, tmp_path
):
    run, proxy = f"{store.url}/pod", store.proxy
    words = train(f"{local}/set", run, *DIVIDED)
    _is_killed(pod, words, run, proxy)
    pod.lose()
    # One host meets faults, in both directions.
    proxy.faults += [
        Fault("GET .*ocdbt.process_1.*d(/|%2F)", "cut"),
        Fault("GET .*ocdbt.process_0", "503"),
        Fault("(PUT|POST) .*4(/|%2F)state(/|%2F)ocdbt.process_1", "503", times=2),
        Fault("(PUT|POST) .*6(/|%2F)state(/|%2F)ocdbt.process_1", "delay"),
        Fault("(PUT|POST) .*6(/|%2F)state(/|%2F)ocdbt.process_1", "cut_upload"),
    ]
    assert f"continuing at step 2 from {run}/checkpoints" in passed(pod.run(TRAIN, *words))
    assert digest(run) == digest(str(undisturbed))
    metrics = storage.read_bytes(f"{run}/metrics.jsonl")
    assert metrics == (undisturbed / "metrics.jsonl").read_bytes()
    assert storage.listdir(f"{run}/checkpoints") == ["4", "6"]
    there = kinds(storage.below(f"{run}/checkpoints/6")) - {remote.COMMITTED}
    assert there == kinds(trees.files_below(undisturbed / "checkpoints/6"))
    _is_evaluated(pod, run, store)
    _goes_on_with_any_number(pod, words, run, undisturbed, command)


def _is_killed(pod: Pod, words: list[str], run: str, proxy) -> None:
    """One host is lost in the middle of what it uploads; the other one ends."""
    kill = lambda: pod.kill(1)  # noqa: E731
    pattern = "(PUT|POST) .*checkpoints(/|%2F)4(/|%2F)state(/|%2F)ocdbt.process_1"
    proxy.faults.append(Fault(pattern, "delay", do=kill))
    first, second = pod.run(TRAIN, *words)
    assert second.returncode == -signal.SIGKILL, second.stdout + second.stderr
    assert first.returncode == ExitCode.AGAIN, first.stdout + first.stderr
    assert f"step 2 in {run}/checkpoints" in first.stderr
    assert newest_step(run) == 2 and "4" in storage.listdir(f"{run}/checkpoints")


def _is_evaluated(pod: Pod, run: str, store: Store) -> None:
    pod.lose()
    out = f"{store.url}/pod-result.json"
    passed(pod.run("internvideo_jax.evaluate", f"--checkpoint={run}", f"--out={out}", *DIVIDED))
    found = json.loads(storage.read_text(out))
    trained = json.loads(storage.read_text(f"{run}/results/test.json"))
    assert found["results"]["test"]["metrics"] == trained["metrics"]
    assert found["checkpoint"] == f"{run}/checkpoints/{STEPS}"


def _goes_on_with_any_number(pod: Pod, words, run: str, undisturbed: Path, command) -> None:
    """One process takes what the pod saved, and the pod what lay in one folder."""
    storage.remove(f"{run}/run.json")
    done = command(TRAIN, *words, devices=2)
    assert done.returncode == 0, done.stderr
    assert f"continuing at step {STEPS} from {run}/checkpoints" in done.stdout
    assert digest(run) == digest(str(undisturbed))
    other = f"{run}-other"
    step = undisturbed / f"checkpoints/{STEPS}"
    names = trees.files_below(step)
    trees.upload_tree(step, f"{other}/checkpoints/{STEPS}", names)
    remote.commit(
        f"{other}/checkpoints/{STEPS}", {name: (step / name).stat().st_size for name in names}
    )
    pod.lose()
    said = passed(pod.run(TRAIN, *(word.replace(run, other) for word in words)))
    assert f"continuing at step {STEPS} from {other}/checkpoints" in said
    assert digest(other) == digest(str(undisturbed))
