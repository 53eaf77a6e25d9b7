"""The contrastive loss with its gradients: beside torch on this CPU, or compiled for a slice.

    python benchmarks/contrastive.py                   # this machine, torch beside us
    python benchmarks/contrastive.py --aot             # memory and traffic on v5e:16x16

The torch side does what OpenCLIP's loss does on one process: embeddings normalised, logits of both
directions, two cross entropies, gradients of both embeddings and of the scale; every logit is held.
Each side is a process of its own and they take turns; a ratio is the median of the ratios of
neighbours, with quartiles. The losses must agree. With --aot nothing runs: the TPU compiler
(pip install 'internvideo-jax[tpu]') says what a chip holds and sends for 32768 pairs of bfloat16
embeddings of 768. Exit codes: 0, 1 a target was missed, 2 an error, 3 the host was busy.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import turns
from host import Host, ratio, spread

from internvideo_jax.compile_check.hardware import open_slice
from internvideo_jax.compile_check.program import read_program
from internvideo_jax.config import MeshConfig
from internvideo_jax.ops.contrastive import contrastive_loss
from internvideo_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh, replicated

BATCHES, WIDTH = (1024, 4096), 512
TOPOLOGY, PAIRS, PAIR_WIDTH = "v5e:16x16", 32768, 768
TEMPERATURE = 0.07
PEAK = {"global": 103.0, "ring": 10.0}  # MB on a chip, at most
FASTER = 1.0  # times, at least
LOSS_TOLERANCE = 1e-5  # relative


def embeddings(batch: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Two (batch, width) float32 arrays whose rows belong together a little."""
    rng = np.random.default_rng(0)
    video = rng.standard_normal((batch, width), np.float32)
    return video, video + 4 * rng.standard_normal((batch, width), np.float32)


def own_step(batch: int, kind: str, form: str) -> tuple[Callable[[], float], dict[str, Any]]:
    """Loss and gradients of both embeddings and the temperature."""
    placed = jax.device_put(embeddings(batch, WIDTH))
    temperature = jnp.float32(TEMPERATURE)
    run = jax.jit(_with_gradient(kind, form, "float32"))

    def step() -> float:
        value, gradients = run(*placed, temperature)
        jax.block_until_ready(gradients)
        return float(value)

    return step, {}


def _with_gradient(kind: str, form: str, dtype: str) -> Callable[..., Any]:
    def loss(video: jax.Array, text: jax.Array, temperature: jax.Array) -> jax.Array:
        bias = jnp.float32(-10.0)
        mean, _ = contrastive_loss(
            video,
            text,
            temperature,
            bias=bias,
            kind=kind,
            form=form,
            dtype=dtype,
            batch_axes=BATCH_AXES,
        )
        return mean.value()

    return jax.value_and_grad(loss, argnums=(0, 1, 2))


def torch_step(batch: int) -> tuple[Callable[[], float], dict[str, Any]]:
    """The same in torch, written as OpenCLIP computes it; ValueError without torch."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import torch.nn.functional as functional  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("the torch side needs torch: pip install torch") from error
    video, text = (torch.from_numpy(x).requires_grad_() for x in embeddings(batch, WIDTH))
    logarithm = torch.tensor(float(-np.log(TEMPERATURE)), requires_grad=True)
    labels = torch.arange(batch)

    def step() -> float:
        for leaf in (video, text, logarithm):
            leaf.grad = None
        v, t = functional.normalize(video, dim=-1), functional.normalize(text, dim=-1)
        scale = logarithm.exp()
        by_video, by_text = scale * v @ t.T, scale * t @ v.T
        one, two = (functional.cross_entropy(logits, labels) for logits in (by_video, by_text))
        loss = (one + two) / 2
        loss.backward()
        return float(loss.detach())

    return step, {}


def compare(batch: int, rounds: int, forms: list[str]) -> list[str]:
    """Prints one batch size; the missed targets."""
    base = [sys.executable, os.path.abspath(__file__), f"--batch={batch}"]
    sides: dict[str, turns.Side] = {}
    try:
        for name in ["torch", *forms]:
            sides[name] = turns.Side(
                [*base, f"--side={name}"], ["GLIBC_TUNABLES"] if name == "torch" else []
            )
        turns.take_turns(sides, rounds)
    finally:
        for side in sides.values():
            side.close()
    print(f"batch {batch}, width {WIDTH}, float32, loss and gradients")
    missed, peer = [], sides["torch"]
    for name, side in sides.items():
        first = side.facts["first_loss"], peer.facts["first_loss"]
        if abs(first[0] - first[1]) > LOSS_TOLERANCE * abs(first[1]):
            raise RuntimeError(f"{name} has the loss {first[0]}, torch {first[1]}: not the same")
        line = f"  {name:<8} {spread([1e3 * s for s in side.seconds]).text('ms')}"
        line += f", {side.memory['steps_peak_mib']:.0f} MiB"
        if name != "torch":
            times = ratio(peer.seconds, side.seconds)
            line += f", {times.median:.2f} x as fast ({times.low:.2f} to {times.high:.2f})"
            if name == "global" and times.median < FASTER:
                missed.append(f"batch {batch}: {times.median:.2f} x torch, expected {FASTER}")
        print(line, flush=True)
    return missed


def compile_form(mesh: Any, kind: str, form: str, dtype: str) -> tuple[str, float]:
    """A line on the compiled loss and its peak in MB."""
    rows = batch_sharding(mesh)
    array = jax.ShapeDtypeStruct((PAIRS, PAIR_WIDTH), jnp.bfloat16, sharding=rows)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    out = replicated(mesh), (rows, rows, replicated(mesh))
    with jax.set_mesh(mesh):
        jitted = jax.jit(_with_gradient(kind, form, dtype), out_shardings=out)
        compiled = jitted.lower(array, array, number).compile()
    stats: Any = compiled.memory_analysis()
    program = read_program(compiled.as_text() or "", mesh.size)
    kinds = ", ".join(
        f"{item.count} {item.kind} {item.dtype} {item.wire / 1e6:.1f}"
        for item in program.collectives
        if item.wire > 1e5
    )
    peak = stats.peak_memory_in_bytes / 1e6
    return (
        f"{kind:<8} {form:<7} {dtype:<9} peak {peak:6.1f} MB, temporaries "
        f"{stats.temp_size_in_bytes / 1e6:6.1f} MB, sends {program.wire_bytes / 1e6:6.1f} MB "
        f"({kinds})",
        peak,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--aot", action="store_true", help=f"compile for {TOPOLOGY}, run nothing")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=0, help="only this batch size")
    parser.add_argument("--forms", default="global", help="of global, ring; comma-separated")
    parser.add_argument("--kinds", default="softmax,sigmoid", help="for --aot")
    parser.add_argument("--dtypes", default="bfloat16,float32", help="for --aot")
    parser.add_argument("--anyway", action="store_true", help="conclude on a busy host too")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        if options.side == "torch":
            return turns.serve(lambda: torch_step(options.batch))
        return turns.serve(lambda: own_step(options.batch, "softmax", options.side))
    host, missed, targets = Host(), [], 0
    try:
        if options.aot:
            target = open_slice(TOPOLOGY)
            mesh = make_mesh(MeshConfig(), target.devices)
            print(f"{PAIRS} pairs of {PAIR_WIDTH} on {TOPOLOGY}; nothing was run")
            for kind in options.kinds.split(","):
                for form in PEAK:
                    for dtype in options.dtypes.split(","):
                        line, peak = compile_form(mesh, kind, form, dtype)
                        print(line, flush=True)
                        targets += 1
                        if peak > PEAK[form]:
                            missed.append(f"{kind} {form} {dtype}: {peak:.1f} MB > {PEAK[form]}")
            return host.verdict(missed, targets=targets, anyway=True)
        for batch in [options.batch] if options.batch else BATCHES:
            targets += 1
            missed += compare(batch, options.rounds, options.forms.split(","))
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return host.verdict(missed, targets=targets, anyway=options.anyway)


if __name__ == "__main__":
    sys.exit(main())
