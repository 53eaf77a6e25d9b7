"""Arrays of several kinds and sizes, and their digests on a mesh of eight devices.

python -m tests.internvideo_jax.checkpoint.arrays
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax.checkpoint import digests

RNG = np.random.default_rng(0)
ARRAYS = {
    "params/matrix": RNG.standard_normal((6, 300, 40), np.float32),  # several chunks
    "params/vector": RNG.standard_normal(5, np.float32),
    "opt_state/count": np.full((), 7, np.int32),
    "half": RNG.standard_normal((8, 33)).astype(jnp.bfloat16),
    "mask": RNG.random((7, 9)) > 0.5,
    "bytes": RNG.integers(0, 256, (3, 100), np.uint8),
    "none": np.zeros((0, 4), np.float32),
}


def split(rows: int, columns: int) -> dict[str, jax.Array]:
    """The arrays on a mesh, each axis split where its size allows it."""
    mesh = Mesh(np.array(jax.devices()[: rows * columns]).reshape(rows, columns), ("x", "y"))

    def put(array: np.ndarray) -> jax.Array:
        spec: list[str | None] = [None] * array.ndim
        if array.ndim and array.size and array.shape[0] % rows == 0:
            spec[0] = "x"
        if array.ndim > 1 and array.shape[-1] % columns == 0:
            spec[-1] = "y"
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

    return {path: put(array) for path, array in ARRAYS.items()}


def main() -> None:
    whole = digests.examine(ARRAYS)
    for rows, columns in ((2, 4), (1, 2), (8, 1)):
        placed = split(rows, columns)
        parts = sum(not leaf.sharding.is_fully_replicated for leaf in placed.values())
        for on_host in (True, False):
            digests._on_host = lambda leaf, on_host=on_host: on_host
            same = digests.examine(placed) == whole
            print(f"{rows} x {columns}, host {on_host}: split {parts} same {same}", flush=True)


if __name__ == "__main__":
    main()
