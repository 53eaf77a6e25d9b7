"""scripts/xmanager_launch.py: what each executor would run, and the JobSet it writes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from tests.scripts.conftest import SCRIPTS, Script

BASE = ("--name=lr", "--config=c.py:x", "--workdir=/mnt/shared/lr")
SWEEP = ("--set=optim.lr=1e-3,3e-4", "--set=seed=1")


def worker(rate: str) -> list[str]:
    return [
        *("python", "-m", "internvideo_jax.launch", "--restarts=3", "--"),
        *("python", "-m", "internvideo_jax.train", "--config=c.py:x"),
        f"--workdir=/mnt/shared/lr/optim.lr={rate}",
        *("--config.seed=1", f"--config.optim.lr={rate}"),
    ]


def launch(script: Script, *arguments: str):
    done = script("xmanager_launch.py", *BASE, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_local(script: Script):
    assert shlex.split(launch(script, "--dry-run", "--set=seed=1", "--restarts=0")) == [
        *("python", "-m", "internvideo_jax.train", "--config=c.py:x", "--workdir=/mnt/shared/lr"),
        "--config.seed=1",
    ]
    swept = shlex.split(launch(script, "--dry-run", *SWEEP, "--parallel=2"))
    assert swept == [
        *("python", str(SCRIPTS / "sweep.py"), "--config=c.py:x", "--out=/mnt/shared/lr"),
        '--set=seed=["1"]',
        '--set=optim.lr=["1e-3", "3e-4"]',
        *("--parallel=2", "--restarts=3"),
    ]
    # The printed command is one: sweep.py makes the same runs of it.
    done = script("sweep.py", *swept[2:], "--dry-run")
    runs = [shlex.split(line) for line in done.stdout.splitlines()]
    assert runs == [worker("1e-3"), worker("3e-4")]


def test_tpu_vm(script: Script):
    out = launch(
        script, "--dry-run", *SWEEP, "--executor=tpu-vm", "--slice=v5e:4x4", "--spot",
        "--nfs=h:/e", "--project=p",
    ).splitlines()  # fmt: skip
    starts = [line for line in out if line.startswith("# ")]
    assert shlex.split(starts[1].removeprefix("# ")) == [
        *(str(SCRIPTS / "tpu_vm.sh"), "launch", "lr-1", "--slice=v5e:4x4", "--restarts=3"),
        *("--spot", "--project=p", "--nfs=h:/e", "--", *worker("3e-4")[8:]),
    ]
    creates = [line for line in out if "tpu-vm create" in line]
    assert creates == [
        f"gcloud compute tpus tpu-vm create lr-{number} --accelerator-type=v5litepod-16 "
        "--version=v2-alpha-tpuv5-lite --spot --zone=us-west4-a --project=p"
        for number in (0, 1)
    ]
    assert shlex.join(worker("3e-4")[8:]) in out[-1]


@pytest.mark.parametrize(
    ("slice", "hosts", "chips", "label", "topology"),
    [
        ("v4:2x2x4", 4, 4, "tpu-v4-podslice", "2x2x4"),
        ("v5e:16x16", 64, 4, "tpu-v5-lite-podslice", "16x16"),
        ("v5e:1x1", 1, 1, "tpu-v5-lite-podslice", "1x1"),
        ("v5p:4x8x8", 64, 4, "tpu-v5p-slice", "4x8x8"),
        ("v6e:2x4", 2, 4, "tpu-v6e-slice", "2x4"),
    ],
)
def test_jobset_of_a_slice(script: Script, tmp_path: Path, slice, hosts, chips, label, topology):
    out = launch(
        script, *SWEEP, "--executor=gke", f"--slice={slice}", "--image=registry/image:1",
        "--nfs=10.0.0.2:/share", "--spot", "--grace=600", "--emit=job.yaml",
    )  # fmt: skip
    assert out == "wrote job.yaml; start it with: kubectl apply --filename=job.yaml\n"
    first, second = yaml.safe_load_all((tmp_path / "job.yaml").read_text())
    assert (first["metadata"]["name"], second["metadata"]["name"]) == ("lr-0", "lr-1")
    assert (second["apiVersion"], second["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert second["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    # What the launcher would not start again, nothing else does.
    rule = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert second["spec"]["failurePolicy"] == {"maxRestarts": 3, "rules": [rule]}
    (ends,) = second["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    codes = {"containerName": "train", "operator": "In", "values": [1, 2, 3, 70]}
    assert ends == {"action": "FailJob", "onExitCodes": codes}
    (group,) = second["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    assert group["replicas"] == 1 and job["completions"] == job["parallelism"] == hosts
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 600
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": topology,
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    (container,) = pod["containers"]
    assert container["image"] == "registry/image:1" and container["command"] == worker("3e-4")
    assert container["resources"] == {
        "limits": {"google.com/tpu": chips},
        "requests": {"google.com/tpu": chips},
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shared"]["nfs"] == {"server": "10.0.0.2", "path": "/share"}
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert paths == {"shm": "/dev/shm", "shared": "/mnt/shared"}


def test_the_mount_is_that_of_tpu_vm():
    text = (SCRIPTS / "tpu_vm.sh").read_text()
    assert "\nMOUNT=/mnt/shared\n" in text
    assert '\nMOUNT = "/mnt/shared"' in (SCRIPTS / "xmanager_launch.py").read_text()


def test_jobset_dry_run_is_the_manifest(script: Script, tmp_path: Path):
    gke = ("--executor=gke", "--slice=v5e:4x4", "--image=i")
    out = launch(script, *gke, "--dry-run", "--set=a.b=it's: [1]\n")
    assert out.endswith("# kubectl apply --filename=-\n")
    manifest = yaml.safe_load(out)
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    # Whatever the text holds, it reaches the process unchanged.
    assert pod["containers"][0]["command"][-1] == "--config.a.b=it's: [1]\n"
    assert pod["tolerations"] == [] and len(pod["volumes"]) == 1


def test_any_command_with_variables(script: Script):
    extract = ("ivj", "extract", "--checkpoint=gs://bucket/run", "--out=gs://bucket/features")
    done = script(
        "xmanager_launch.py", "--name=a", "--executor=gke", "--slice=v5e:2x2", "--image=i",
        "--env=A=it's", "--env=HOME", "--restarts=0", "--dry-run", "--", *extract,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "check: the workers need internvideo-jax[tpu,remote]" in done.stderr
    pod = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["command"][1:] == ["-m", "internvideo_jax.offline.extract", *extract[2:]]
    assert container["env"][0] == {"name": "A", "value": "it's"}


def test_xmanager_without_the_package_says_what_to_install(script: Script):
    words = ("--name=a", "--executor=xmanager", "--", "ivj", "search", "a dog")
    shown = script("xmanager_launch.py", "--dry-run", *words)
    assert shown.stdout.splitlines() == [
        "# XManager experiment a: 1 x xm.Binary(python) by xm_local.Local",
        "a: python -m internvideo_jax.launch --restarts=3 -- "
        "python -m internvideo_jax.search search 'a dog'",
    ]
    done = script("xmanager_launch.py", *words)
    assert done.returncode == 2 and "needs the package xmanager: pip install" in done.stderr


def test_xpk(script: Script):
    out = launch(
        script, "--dry-run", *SWEEP, "--executor=gke", "--slice=v5p:4x8x8", "--image=i",
        "--submit=xpk", "--cluster=c",
    )  # fmt: skip
    assert shlex.split(out.splitlines()[1]) == [
        *("xpk", "workload", "create", "--cluster=c", "--workload=lr-1", "--tpu-type=v5p-512"),
        *("--num-slices=1", "--docker-image=i", "--max-restarts=3"),
        "--termination-grace-period-seconds=300",
        f"--command={shlex.join(worker('3e-4'))}",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor=gke", "--image=i"], "--executor=gke needs --slice"),
        (["--executor=gke", "--slice=v5e:4x4"], "--executor=gke needs --image"),
        (["--executor=gke", "--slice=cpu:8", "--image=i"], "cpu is for compile_check"),
        (
            ["--executor=gke", "--slice=v5e:5x5", "--image=i"],
            "the nearest are v5e:",
        ),
        (["--executor=gke", "--slice=v5e:4x4", "--image=i", "--grace=5"], "at least 30 seconds"),
        (["--executor=gke", "--slice=v5e:4x4", "--image=i", "--workdir=r"], "own disks are lost"),
        (["--executor=gke", "--slice=v5e:4x4", "--image=i", "--submit=xpk"], "needs --cluster"),
        (["--extras=text"], "--extras is for --executor=tpu-vm or gke or xmanager, not local"),
        (["--slice=v5e:4x4"], "--slice is for --executor=tpu-vm or gke, not local"),
        (["--name=A_b"], "--name=A_b: expected at most 40 lower-case letters"),
        (["--set=seed"], "--set seed: expected FIELD=VALUE"),
    ],
)
def test_errors_say_what_to_do(script: Script, arguments, message):
    done = script("xmanager_launch.py", *BASE, *arguments, "--dry-run")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_a_missing_kubectl_is_named(script: Script):
    done = script("xmanager_launch.py", *BASE, "--executor=gke", "--slice=v5e:4x4", "--image=i")
    assert done.returncode == 2 and "kubectl is not installed; --dry-run shows" in done.stderr


def test_values_survive_the_way_to_the_sweep(script: Script):
    value = json.dumps(["a,b", "c"])
    printed = launch(script, "--dry-run", f"--set=data.train={value}")
    done = script("sweep.py", *shlex.split(printed)[2:], "--dry-run")
    ends = [shlex.split(line)[-1] for line in done.stdout.splitlines()]
    assert ends == ["--config.data.train=a,b", "--config.data.train=c"]
