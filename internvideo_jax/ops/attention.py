"""Scaled dot-product attention; the one place where its form is chosen.

Forms, all of the same function:
  xla: plain products that XLA arranges; the weights of all heads exist as a whole, which is fastest
    where they are small.
  flash: a Pallas kernel for TPUs that keeps them on the chip (`flash_attention.py`).
  blocked: the same in plain operations, block by block, for CPUs (`blocked_attention.py`).
  cudnn: NVIDIA's fused kernels.
  auto: one of these by the number of tokens and the devices that the program is made for.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from internvideo_jax.ops.blocked_attention import RESIDUALS, blocked_attention
from internvideo_jax.ops.flash_attention import LANES, MOST_KEYS, flash_attention
from internvideo_jax.registry import suggest

FORMS = ("auto", "xla", "flash", "blocked", "cudnn")
# Tokens from which weights are not kept as a whole. Below, they fit on a TPU and padding would cost
# more; on a CPU (two cores, 160 to 784 tokens measured) plain products are as fast or faster.
BLOCKS_FROM = 512
HALF = ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Site:
    """One attention of a program: what a form can depend on."""

    queries: int
    keys: int
    heads: int  # on all devices together, like `batch`
    channels: int  # of a head
    dtype: str
    batch: int = 1
    platform: str = "cpu"  # cpu | tpu | cuda | rocm, of the devices to run on
    shares: tuple[int, int] = (1, 1)  # devices that batch and heads are split over
    causal: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    form: str
    why: str


def check_form(name: str, where: str = "config.model.attention") -> None:
    """ValueError with the near matches for a form that does not exist."""
    if name not in FORMS:
        raise ValueError(f"{where}: unknown form of attention {name!r}: {suggest(name, FORMS)}")


def choose(site: Site, wanted: str = "auto") -> Choice:
    """The form that computes a site.

    Args:
      wanted: one of FORMS; others than "auto" are taken as they are.

    Raises:
      ValueError: an unknown form, or one that cannot compute this site.
    """
    check_form(wanted)
    if wanted == "xla":
        return Choice("xla", "asked for")
    if wanted != "auto":
        refused = causal_refuses(site) or REFUSES[wanted](site)
        if refused:
            raise ValueError(
                f"config.model.attention = {wanted!r} cannot compute {describe(site)}: {refused}; "
                "set it to 'auto' or 'xla'"
            )
        return Choice(wanted, "asked for")
    form = {"tpu": "flash", "cpu": "blocked", "cuda": "cudnn"}.get(site.platform)
    if form is None:
        return Choice("xla", f"on {site.platform}")
    if site.causal:
        return Choice("xla", causal_refuses(site))
    if form != "cudnn" and min(site.queries, site.keys) < BLOCKS_FROM:
        return Choice("xla", f"fewer than {BLOCKS_FROM} tokens")
    refused = REFUSES[form](site)
    return Choice("xla", refused) if refused else Choice(form, f"on {site.platform}")


def causal_refuses(site: Site) -> str:
    """Why no form but `xla` computes a site, or "": captions are far too short for blocks."""
    return "only the form xla has a causal mask" if site.causal else ""


def flash_refuses(site: Site) -> str:
    """Why the Pallas kernel cannot compute a site, or ""."""
    if site.platform not in ("tpu", "cpu"):
        return f"the kernel is for TPUs, not {site.platform}"
    if site.channels % 8 or site.channels > LANES:
        return f"{site.channels} channels per head are no multiple of 8 up to {LANES}"
    if site.keys > MOST_KEYS:
        return f"{site.keys} keys are more than the {MOST_KEYS} that fit on a chip"
    return blocked_refuses(site)


def blocked_refuses(site: Site) -> str:
    """Why batch and heads cannot be dealt out to the devices of the mesh, or ""."""
    for name, size, share in zip(
        ("batch", "heads"), (site.batch, site.heads), site.shares, strict=True
    ):
        if size % share:
            return f"{name} {size} cannot be split evenly over {share} devices"
    return ""


def cudnn_refuses(site: Site) -> str:
    """Why cuDNN cannot compute a site without bias, or ""."""
    if site.platform != "cuda":
        return f"cuDNN is for NVIDIA GPUs, not {site.platform}"
    if site.dtype not in HALF:
        return f"cuDNN takes {' and '.join(HALF)}, not {site.dtype}"
    if site.channels % 8 or site.channels > 128:
        return f"{site.channels} channels per head are no multiple of 8 up to 128"
    return ""


REFUSES = {"flash": flash_refuses, "blocked": blocked_refuses, "cudnn": cudnn_refuses}


def describe(site: Site) -> str:
    tokens = f"{site.queries} tokens" if site.queries == site.keys else ""
    tokens = tokens or f"{site.queries} queries on {site.keys} tokens"
    masked = ", causal" if site.causal else ""
    return f"{tokens}, {site.heads} heads of {site.channels}{masked}"


_record: contextvars.ContextVar[dict[Site, Choice] | None] = contextvars.ContextVar(
    "attention_record", default=None
)


@contextlib.contextmanager
def recording() -> Iterator[dict[Site, Choice]]:
    """Collects what is chosen while functions are traced in this context."""
    record: dict[Site, Choice] = {}
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)


def summary(record: dict[Site, Choice]) -> str:
    """One line: every site with its form and the reason."""
    parts = [f"{describe(site)}: {made.form} ({made.why})" for site, made in record.items()]
    return "; ".join(dict.fromkeys(parts)) or "none"


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float | None = None,
    causal: bool = False,
    form: str = "auto",
    batch_axes: Sequence[str] = (),
    head_axes: Sequence[str] = (),
) -> jax.Array:
    """Softmax attention over all keys, or over those up to a query's own place.

    Args:
      q: (B, N, K, C) queries.
      k: (B, S, K, C) keys.
      v: (B, S, K, C) values.
      scale: factor on the logits, default C ** -0.5.
      causal: query i sees keys 0 to i, for N = S. Only the form xla has it, so `auto` takes that.
      form: one of FORMS.
      batch_axes, head_axes: mesh axes that B and K are split over, where the mesh in use has them.
        The compiler does not partition kernels, nor loops over heads, so these run on every device
        with its part.

    Returns:
      (B, N, K, C) in the dtype of `v`. Logits and softmax are computed in float32.

    Raises:
      ValueError: an unknown form, or one that cannot compute this.
    """
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(
            f"causal attention of {q.shape[1]} queries on {k.shape[1]} keys; expected as many"
        )
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    mesh = jax.sharding.get_abstract_mesh()
    axes = free_axes(mesh, batch_axes), free_axes(mesh, head_axes)
    rows, parts = (math.prod(mesh.shape[name] for name in names) for names in axes)
    batch, queries, heads, channels = q.shape
    where = platform(mesh)
    site = Site(
        queries, k.shape[1], heads, channels, v.dtype.name, batch, where, (rows, parts), causal
    )
    choice = choose(site, form)
    record = _record.get()
    if record is not None:
        record[site] = choice
    if choice.form == "xla":
        return xla_attention(q, k, v, scale=factor, causal=causal)
    if choice.form == "cudnn":
        out = jax.nn.dot_product_attention(q, k, v, scale=factor, implementation="cudnn")
        return checkpoint_name(out, RESIDUALS)

    def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if choice.form == "blocked":
            return blocked_attention(q, k, v, scale=factor)
        return flash_attention(q, k, v, scale=factor, interpret=site.platform == "cpu")

    free = {name for name in mesh.axis_names if name not in mesh.manual_axes}
    if not free:
        return local(q, k, v)
    spec = PartitionSpec(axes[0] or None, None, axes[1] or None)
    # Kernels do not say over which axes their results vary, hence no check of it.
    mapped = jax.shard_map(
        local, in_specs=(spec,) * 3, out_specs=spec, axis_names=free, check_vma=False
    )
    return mapped(q, k, v)


def free_axes(mesh: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that the mesh has and that no surrounding shard_map has split already."""
    return tuple(name for name in names if name in mesh.axis_names and name not in mesh.manual_axes)


def platform(mesh: Any) -> str:
    """cpu, tpu, cuda or rocm: of the devices of the mesh in use, else of the default device.

    A program may be compiled on one machine for another, so it is the mesh that counts.
    """
    device = getattr(mesh, "abstract_device", None)
    name = device.platform if device is not None else jax.default_backend()
    return "cuda" if name == "gpu" else name


def xla_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, causal: bool = False
) -> jax.Array:
    """The form for XLA; shapes as in `attend`.

    The values are summed with the unnormalised weights and divided afterwards: N x C instead of
    N x N divisions, and one pass less over the logits. On CPU this is what makes the step faster
    than the usual softmax-then-product; the result differs by rounding only.
    """
    q, k, v = (checkpoint_name(x, RESIDUALS) for x in (q, k, v))
    logits = jnp.einsum("bnkc,bskc->bkns", q * scale, k, preferred_element_type=jnp.float32)
    if causal:
        logits = jnp.where(jnp.tri(*logits.shape[2:], dtype=bool), logits, -jnp.inf)
    # The maximum only guards against overflow; it cancels, so no gradient needs to flow into it.
    highest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - highest)
    total = jnp.einsum("bkns->bnk", weights)
    summed = jnp.einsum(
        "bkns,bskc->bnkc", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return checkpoint_name((summed / total[..., None]).astype(v.dtype), RESIDUALS)
