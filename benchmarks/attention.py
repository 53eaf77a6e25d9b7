"""Attention forward and backward at the sizes of the models: every form that runs here, in turns.

    python benchmarks/attention.py                          # this machine
    python benchmarks/attention.py --topology=v5e:2x2       # memory, compiled ahead of time

Times are medians over rounds in which the forms alternate, with quartiles, and refuse to be a
conclusion on a busy machine (exit code 3). With --topology nothing runs: the TPU compiler
(pip install 'internvideo-jax[tpu]') says what each form needs, the library's own TPU kernels
included. Exit code 2: nothing to measure.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from host import Host, ratio, spread

from internvideo_jax.compile_check.hardware import open_slice
from internvideo_jax.ops.attention import Site, attend, choose, describe
from internvideo_jax.ops.attention import platform as devices_kind

# (tokens, heads, channels): encoder on visible tokens and decoder of B, encoder of H, all tokens
# of H and g.
SHAPES = ((160, 12, 64), (1568, 6, 64), (160, 16, 80), (1568, 16, 80), (2048, 16, 88))


def splash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The library's sparse kernel with a full mask, tokens padded and told apart by segments."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (q, k, v), segment = _padded(q, k, v)
    full = masks.MultiHeadMask([masks.FullMask((q.shape[2], k.shape[2]))] * q.shape[1])
    run = kernel.make_splash_mha(full, head_shards=1, q_seq_shards=1)
    segments = kernel.SegmentIds(segment, segment)
    scaled = q * q.shape[-1] ** -0.5
    return jax.vmap(lambda q, k, v: run(q, k, v, segments))(scaled, k, v)  # pyright: ignore[reportReturnType]


def library_flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The library's flash kernel, padded in the same way."""
    from jax.experimental.pallas.ops.tpu import flash_attention as library

    (q, k, v), segment = _padded(q, k, v)
    rows = jnp.broadcast_to(segment, (len(q), len(segment)))
    segments = library.SegmentIds(rows, rows)
    return library.flash_attention(q, k, v, segment_ids=segments, sm_scale=q.shape[-1] ** -0.5)


def _padded(*arrays: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """(B, N, K, C) -> (B, K, N padded to 128, C), and which of the tokens are real."""
    tokens = arrays[0].shape[1]
    pad = -tokens % 128
    padded = [jnp.pad(x, [(0, 0), (0, pad), (0, 0), (0, 0)]).transpose(0, 2, 1, 3) for x in arrays]
    return padded, (jnp.arange(tokens + pad) >= tokens).astype(jnp.int32)


def with_gradient(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The gradients of all three inputs, and the sum that keeps the forward pass alive."""
    return jax.value_and_grad(
        lambda *arrays: function(*arrays).astype(jnp.float32).sum(), argnums=(0, 1, 2)
    )


def forms_here(site: Site) -> dict[str, Callable[..., jax.Array]]:
    """What computes a site on the devices of this machine."""
    found: dict[str, Callable[..., jax.Array]] = {}
    for form in ("xla", "blocked", "flash", "cudnn"):
        if form == "flash" and site.platform != "tpu":
            continue  # it would be interpreted
        try:
            choose(site, form)
        except ValueError:
            continue
        found[form] = lambda *a, form=form: attend(*a, form=form)
    found["jax.nn"] = jax.nn.dot_product_attention
    if site.platform == "tpu":
        found |= {"library flash": library_flash, "library splash": splash}
    return found


def time_site(site: Site, rounds: int) -> list[str]:
    """One line per form: median, quartiles and ratio to `xla`."""
    shape = (site.batch, site.queries, site.heads, site.channels)
    arrays = [jax.random.normal(jax.random.key(i), shape, site.dtype) for i in range(3)]
    runs = {name: jax.jit(with_gradient(form)) for name, form in forms_here(site).items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run(*arrays))
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run(*arrays))
            seconds[name].append(time.perf_counter() - started)
    lines, auto = [], choose(site).form
    for name, taken in seconds.items():
        mark = "  <- auto" if name == auto else ""
        found = spread([1e3 * each for each in taken]).text("ms")
        faster = ratio(seconds["xla"], taken).median
        lines.append(f"  {name:<15} {found}, {faster:.2f} x as fast as xla{mark}")
    return lines


def compile_site(site: Site, device: Any) -> list[str]:
    """One line per form: temporaries and peak of the compiled program."""
    mesh = jax.sharding.Mesh(np.array([device]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shape = (site.batch, site.queries, site.heads, site.channels)
    array = jax.ShapeDtypeStruct(shape, jnp.dtype(site.dtype), sharding=sharding)
    lines, auto = [], choose(site).form
    for name, form in forms_here(site).items():
        with jax.set_mesh(mesh):
            traced = jax.jit(with_gradient(_on_one_device(form, name))).trace(*[array] * 3)
        stats: Any = traced.lower().compile().memory_analysis()
        mark = "  <- auto" if name == auto else ""
        lines.append(
            f"  {name:<15} temporaries {stats.temp_size_in_bytes / 1e6:9.1f} MB, peak "
            f"{stats.peak_memory_in_bytes / 1e6:9.1f} MB{mark}"
        )
    return lines


def _on_one_device(form: Callable[..., jax.Array], name: str) -> Callable[..., jax.Array]:
    """The library's kernels run inside shard_map, as ours do on their own account."""
    if not name.startswith("library"):
        return form
    whole = jax.sharding.PartitionSpec()
    return jax.shard_map(form, in_specs=(whole,) * 3, out_specs=whole, check_vma=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--topology", default="", help="compile for this slice, as v5e:2x2")
    parser.add_argument("--batch", type=int, default=0, help="clips; default 8, on a CPU 1")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=0, help="only the shapes of so many tokens")
    parser.add_argument("--dtype", default="", help="default bfloat16, on a CPU float32")
    parser.add_argument("--anyway", action="store_true", help="conclude on a busy host too")
    options = parser.parse_args()
    shapes = [shape for shape in SHAPES if options.tokens in (0, shape[0])]
    if not shapes:
        known = sorted({shape[0] for shape in SHAPES})
        print(f"--tokens={options.tokens}: expected one of {known}", file=sys.stderr)
        return 2
    host = Host()
    if options.topology:
        device = open_slice(options.topology).devices[0]
        kind, title = device.platform, f"compiled for {options.topology}; nothing was run"
    else:
        device, kind = None, devices_kind(None)
        title = f"{jax.devices()[0].device_kind} ({kind}), forward and backward"
    dtype = options.dtype or ("float32" if kind == "cpu" else "bfloat16")
    batch = options.batch or (1 if kind == "cpu" else 8)
    print(title)
    for tokens, heads, channels in shapes:
        site = Site(tokens, tokens, heads, channels, dtype, batch, kind)
        print(f"{describe(site)}, batch {batch}, {dtype}", flush=True)
        lines = compile_site(site, device) if device else time_site(site, options.rounds)
        print("\n".join(lines), flush=True)
    return 0 if options.topology else host.verdict(anyway=options.anyway)


if __name__ == "__main__":
    sys.exit(main())
