"""A JobSet of a GKE cluster: the job of one TPU slice, as kubectl applies it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.commands.exit_codes import ExitCode, starts_again
from internvideo_jax.launch.cloud import CloudSlice

HOPELESS = sorted(
    int(code) for code in ExitCode if code != ExitCode.GOOD and not starts_again([code] * 2, 3)
)


def pod_of(
    command: Sequence[str],
    target: CloudSlice,
    image: str,
    *,
    grace: int,
    nfs: tuple[str, str] = ("", ""),
    spot: bool = False,
    variables: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The pod of one host of the slice.

    Args:
      command: of its container.
      image: with this package installed, started in the directory of the checkout.
      grace: seconds between SIGTERM and SIGKILL, for saving.
      nfs: (HOST:/EXPORT, where it is mounted); empty: none.
      variables: of the environment of the command.
    """
    export, mount = nfs
    chips = {"google.com/tpu": target.chips_per_node}
    selector = {
        "cloud.google.com/gke-tpu-accelerator": target.generation.node_label,
        "cloud.google.com/gke-tpu-topology": target.topology,
    }
    tolerations = []
    if spot:
        label = "cloud.google.com/gke-spot"
        selector[label] = "true"
        taint = {"key": label, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        tolerations.append(taint)
    # Data workers hand over batches in shared memory, of which a pod has 64 MB otherwise.
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if export:
        server, _, path = export.partition(":")
        volumes.append({"name": "shared", "nfs": {"server": server, "path": path}})
        mounts.append({"name": "shared", "mountPath": mount})
    env = [{"name": name, "value": value} for name, value in (variables or {}).items()]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [
            {
                "name": "train",
                "image": image,
                "command": list(command),
                **({"env": env} if env else {}),
                "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
                "resources": {"requests": chips, "limits": chips},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def manifest(
    name: str, pod: Mapping[str, Any], target: CloudSlice, restarts: int
) -> dict[str, Any]:
    """The JobSet: one pod per host, restarted together when one is lost."""
    # What would come again; the launcher in the pod has tried again what may be tried once.
    hopeless = {
        "action": "FailJob",
        "onExitCodes": {"containerName": "train", "operator": "In", "values": HOPELESS},
    }
    failed = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    hosts = target.nodes
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "annotations": {
                # One slice is one node pool; no other job may take nodes of it.
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {"maxRestarts": restarts, "rules": [failed]},
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": 1,
                    "template": {
                        "spec": {
                            "completionMode": "Indexed",
                            "completions": hosts,
                            "parallelism": hosts,
                            "backoffLimit": 0,
                            "podFailurePolicy": {"rules": [hopeless]},
                            "template": {"spec": pod},
                        }
                    },
                }
            ],
        },
    }


def yaml_text(value: Any, indent: str = "") -> str:
    """Mappings and lists as block YAML, strings quoted as in JSON (which YAML reads).

    But for characters beyond 16 bits, of which JSON makes two escapes and YAML one.
    """
    lines = ""
    items = value.items() if isinstance(value, Mapping) else ((None, one) for one in value)
    for key, item in items:
        head = (
            f"{indent}- " if key is None else f"{indent}{json.dumps(key) if '/' in key else key}:"
        )
        if not isinstance(item, Mapping | list) or not item:
            lines += f"{head}{'' if key is None else ' '}{_quoted(item)}\n"
        elif key is None:
            lines += head + yaml_text(item, f"{indent}  ").removeprefix(f"{indent}  ")
        else:
            lines += f"{head}\n{yaml_text(item, f'{indent}  ')}"
    return lines


def _quoted(item: object) -> str:
    def one(pair: re.Match[str]) -> str:
        character = json.loads('"' + pair[0] + '"')
        return f"\\U{ord(character):08x}"

    return re.sub(r"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}", one, json.dumps(item))
