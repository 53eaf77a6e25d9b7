"""Weights of the networks that look at a batch but never learn: teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from internvideo_jax.checkpoint.initial import initialise
from internvideo_jax.checkpoint.metadata import digest_of
from internvideo_jax.protocols import FrozenNetwork
from internvideo_jax.types import Params, flatten_paths, unflatten_paths

# As init_from: fresh weights, to rehearse with. `random` draws them by the seed of the run,
# `random:7` by another one, which gives runs of several seeds the same teacher.
RANDOM = "random"


def load_frozen(
    plans: Mapping[str, FrozenNetwork], seed: int, say: Callable[[str], None]
) -> tuple[dict[str, Params], dict[str, str]]:
    """Parameters of frozen networks on their devices, and what they are.

    Every parameter must come from `init_from` of the network's config.

    Args:
      plans: by name.
      seed: of random weights that name none.
      say: is told what was loaded.

    Returns:
      parameters by name, in the types and shardings of the plans; their digests by name.

    Raises:
      ValueError: no weights are named, or they lack a parameter or do not fit.
    """
    frozen, digests = {}, {}
    for number, (name, plan) in enumerate(plans.items()):
        source = plan.config.init_from
        if not source:
            raise ValueError(
                f"{plan.field}.init_from is empty: a teacher needs its weights; give a run, a "
                f"checkpoint or a weight file, or {RANDOM!r} to rehearse"
            )
        kind, named, own = source.partition(":")
        if kind == RANDOM:
            drawn = _seed(plan, own) if named else seed
            frozen[name] = _random(plan, jax.random.fold_in(jax.random.key(drawn), 2 + number))
            # A function of these only; a digest would gather the network on every host.
            digests[name] = f"random, seed {drawn}"
        else:
            frozen[name], digests[name], text = _load(plan, source)
            say(f"{plan.field}: {text}")
        say(f"{plan.field}: {plan.config.name} with weights {digests[name]}")
    return frozen, digests


def _seed(plan: FrozenNetwork, text: str) -> int:
    if not text.isdigit() or int(text) >= 1 << 32:
        raise ValueError(
            f"{plan.field}.init_from = '{RANDOM}:{text}': expected {RANDOM!r}, or '{RANDOM}:N' "
            "with a seed N from 0 to 4294967295"
        )
    return int(text)


def _random(plan: FrozenNetwork, key: jax.Array) -> Params:
    def create(key: jax.Array) -> Params:
        fresh = plan.model.init(key)
        return jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), fresh, plan.shapes)

    return jax.jit(create, out_shardings=plan.shardings)(key)


def _load(plan: FrozenNetwork, source: str) -> tuple[Params, str, str]:
    try:
        params, report = initialise(source, plan.model.shapes(), plan.config)
        report.require_all()
    except ValueError as error:
        raise ValueError(f"{plan.field}.init_from: {error}") from error
    shapes, shardings = flatten_paths(plan.shapes), flatten_paths(plan.shardings)
    values = {
        path: np.asarray(value).astype(shapes[path].dtype)
        for path, value in flatten_paths(params).items()
    }
    digest = digest_of(sorted(values.items()))
    placed = {
        path: jax.make_array_from_callback(
            value.shape, shardings[path], lambda index, value=value: value[index]
        )
        for path, value in values.items()
    }
    return unflatten_paths(placed), digest, report.text()


def check_frozen(digests: Mapping[str, str], stored: Mapping[str, str], where: str | Path) -> str:
    """Checks the frozen networks of a run that goes on against those of its checkpoint.

    Args:
      digests: of the networks now.
      stored: of those that the checkpoint was trained with.

    Returns:
      A line on them to print.

    Raises:
      ValueError: one of them is another network now.
    """
    other = [
        f"  {name}: found {digest}, the checkpoint has {stored[name]}"
        for name, digest in digests.items()
        if stored.get(name, digest) != digest
    ]
    if other:
        raise ValueError(
            f"the frozen networks are not those that {where} was trained with:\n"
            + "\n".join(other)
            + "\nGive the same init_from and dtype of the teacher, or another --workdir"
        )
    moved = sorted(digests.keys() ^ stored.keys())
    if moved:
        return (
            f"frozen networks: {', '.join(moved)} "
            "moved between the step and cached features since the checkpoint"
        )
    return f"frozen networks as in {where}: {', '.join(digests) or 'none'}"
