"""What a slice is called where it is rented: accelerator type, runtime version, hosts, node labels.

    python -m internvideo_jax.launch.cloud v5e:16x16

prints these facts as NAME=value lines, which scripts/tpu_vm.sh reads. Slices are named as in
compile_check. Sources: the Cloud TPU pages on configurations and software versions, the GKE page on
planning TPUs, as of 2025.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys

from internvideo_jax.compile_check.hardware import BOARD, chips_per_host, parse_topology


@dataclasses.dataclass(frozen=True)
class Generation:
    """One chip generation in Google Cloud."""

    accelerator: str  # prefix of the accelerator type
    counts_cores: bool  # the number in the accelerator type counts cores, two per chip
    runtime: str  # software version of a TPU VM
    node_label: str  # cloud.google.com/gke-tpu-accelerator
    zone: str  # one zone that has it; quota decides


GENERATIONS = {
    "v4": Generation("v4", True, "tpu-ubuntu2204-base", "tpu-v4-podslice", "us-central2-b"),
    "v5e": Generation(
        "v5litepod", False, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "us-west4-a"
    ),
    "v5p": Generation("v5p", True, "v2-alpha-tpuv5", "tpu-v5p-slice", "us-east5-a"),
    "v6e": Generation("v6e", False, "v2-alpha-tpuv6e", "tpu-v6e-slice", "us-east5-b"),
}


@dataclasses.dataclass(frozen=True)
class CloudSlice:
    """A slice that can be rented.

    Raises:
      ValueError: not a slice of a TPU, or a shape that the chip does not come in.
    """

    name: str  # of compile_check, such as v5e:16x16

    def __post_init__(self) -> None:
        kind, _ = parse_topology(self.name, "--slice")
        if kind not in GENERATIONS:
            raise ValueError(
                f"--slice={self.name}: names in the cloud are known for {', '.join(GENERATIONS)}; "
                f"{kind} is for compile_check"
            )

    @property
    def generation(self) -> Generation:
        """The generation of its chips; ValueError for an unknown name."""
        return GENERATIONS[parse_topology(self.name)[0]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each axis of the topology."""
        return parse_topology(self.name)[1]

    @property
    def topology(self) -> str:
        """`16x16`, as gcloud and the node label write it."""
        return _text(self.shape)

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def accelerator_type(self) -> str:
        """`v5litepod-256`, `v5p-512`."""
        cores = 2 if self.generation.counts_cores else 1
        return f"{self.generation.accelerator}-{self.chips * cores}"

    @property
    def chips_per_vm(self) -> int:
        """Chips of one host of a TPU VM slice."""
        return chips_per_host(self.shape)

    @property
    def vms(self) -> int:
        """Hosts of a TPU VM slice."""
        return self.chips // self.chips_per_vm

    @property
    def chips_per_node(self) -> int:
        """Chips of one GKE node, with the machine types that end in -4t (or -1t for one chip)."""
        return min(self.chips, BOARD)

    @property
    def nodes(self) -> int:
        """Hosts of a GKE slice."""
        return self.chips // self.chips_per_node

    def facts(self) -> dict[str, str]:
        """What a shell script needs."""
        return {
            "SLICE": self.name,
            "ACCELERATOR_TYPE": self.accelerator_type,
            "TOPOLOGY": self.topology,
            "RUNTIME_VERSION": self.generation.runtime,
            "ZONE": self.generation.zone,
            "HOSTS": str(self.vms),
            "CHIPS_PER_HOST": str(self.chips_per_vm),
        }


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def main() -> None:
    """The command; its output is read by scripts."""
    parser = argparse.ArgumentParser(
        prog="python -m internvideo_jax.launch.cloud",
        description="Facts of a TPU slice in Google Cloud, as NAME=value lines.",
    )
    parser.add_argument("slice", help="as for compile_check, for example v5e:16x16")
    try:
        facts = CloudSlice(parser.parse_args().slice).facts()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for name, value in facts.items():
        print(f"{name}={value}")


if __name__ == "__main__":
    main()
