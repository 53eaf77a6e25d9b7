"""One of two processes cannot read the frozen parameters that are there; both write them anew.

python -m tests.faults.one_damaged FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax.checkpoint.apart import KEY, Apart
from internvideo_jax.parallel import multihost


def main() -> None:
    folder = Path(sys.argv[1])
    with multihost.joined():
        sharding = NamedSharding(Mesh(np.array(jax.devices()), "x"), PartitionSpec("x"))
        values = np.arange(4096, dtype=np.float32)
        kernel = jax.make_array_from_callback((4096,), sharding, lambda index: values[index])
        frozen = {"kernel": kernel}
        stored = Apart(folder).store(frozen)
        again = Apart(folder)
        if jax.process_index() == 1:
            again.restore = damaged
        assert again.store(frozen) == stored
        multihost.any_process(False)
        found = Apart(folder).restore(stored[KEY], frozen, {"kernel": sharding})
        np.testing.assert_array_equal(multihost.to_host(found)["kernel"], values)
        multihost.say("written anew")


def damaged(*arguments: object) -> None:
    raise OSError("a bad block")


if __name__ == "__main__":
    main()
