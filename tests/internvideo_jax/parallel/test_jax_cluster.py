"""Jobs that jax detects, where its private names for asking are not those that are known."""

from __future__ import annotations

import sys

import jax
import pytest

from internvideo_jax.launch.processes import free_port
from internvideo_jax.parallel import jax_cluster, multihost


@pytest.fixture
def slurm(monkeypatch):
    """A Slurm step of two tasks on this machine."""
    names = {"STEP_ID": "0", "NTASKS": "2", "JOB_ID": "17", "STEP_NODELIST": "localhost"}
    for name, value in (names | {"PROCID": "0", "LOCALID": "0"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", str(free_port()))
    return monkeypatch


@pytest.fixture
def hidden(slurm):
    """And a jax without the private names."""
    slurm.setitem(sys.modules, "jax._src.clusters", None)
    return slurm


def test_a_tpu_vm_is_known_by_what_importing_jax_leaves(hidden):
    hidden.delenv("TPU_ML_PLATFORM", raising=False)
    assert not jax_cluster.on_tpu_vm()
    hidden.setenv("TPU_ML_PLATFORM", "JAX")
    assert jax_cluster.on_tpu_vm()


def test_a_job_without_the_names_or_with_another_signature_is_untold(slurm):
    address, *numbers = multihost.find_job() or ()
    assert address.startswith("localhost:") and numbers == [2, 0]
    ask = "jax._src.clusters.ClusterEnv.auto_detect_unset_distributed_params"
    for answer in (lambda one: one, lambda *_: ("a:1", 2, 0)):
        slurm.setattr(ask, answer)
        assert multihost.find_job() == multihost.UNTOLD
    slurm.setitem(sys.modules, "jax._src.clusters", None)
    assert multihost.find_job() == multihost.UNTOLD


def test_what_jax_does_not_find_is_told_with_what_to_set(hidden):
    def initialize(**_):
        raise ValueError("coordinator_address should be defined.")

    hidden.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match=r"which job this is \(coordinator_.*JAX_PROCESS_ID in"):
        multihost.initialize()


JOIN = """
import jax, os, sys
child = os.fork() == 0  # nothing has started threads yet
os.environ["SLURM_PROCID"] = os.environ["SLURM_LOCALID"] = str(int(child))
sys.modules["jax._src.clusters"] = None
from internvideo_jax.parallel import multihost
with multihost.joined():
    print(f"any {multihost.any_process(child)}, notices {multihost.takes_notices()}", flush=True)
jax.distributed.shutdown()  # waits for the other one
if not child:
    assert os.wait()[1] == 0
"""


def test_jax_joins_a_job_that_it_does_not_tell(hidden, program):
    done = program(JOIN, timeout=60)
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        assert f"process {number} of 2: 1 local devices (cpu), 2 in all; " in done.stdout
    assert done.stdout.count("any True, notices True") == 2
    assert done.stderr.count("does not tell where its processes meet") == 1
