"""Scaled dot-product attention; the one place where its form is chosen.

Forms, all of the same function:
  xla: plain products that XLA arranges; the weights of all heads exist as a whole, which is fastest
    where they are small (`xla_attention.py`).
  flash: a Pallas kernel for TPUs that keeps them on the chip (`flash_attention.py`).
  blocked: the same in plain operations, block by block, for CPUs (`blocked_attention.py`).
  cudnn: NVIDIA's fused kernels.
  auto: one of these by the number of tokens and the devices that the program is made for.

What is asked for beside plain attention (`ABILITIES`) not every form has. One that was named is
then refused, `auto` takes the plain products.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, PartitionSpec
from jax.typing import DTypeLike

from internvideo_jax.ops.blocked_attention import RESIDUALS, blocked_attention
from internvideo_jax.ops.flash_attention import LANES, MOST_KEYS, flash_attention, query_block
from internvideo_jax.ops.ring_attention import Blocked, Flash, Ring, ring_attention
from internvideo_jax.ops.xla_attention import Dropped, xla_attention
from internvideo_jax.registry import suggest

FORMS = ("auto", "xla", "flash", "blocked", "cudnn")
# Tokens from which weights are not kept as a whole. Below, they fit on a TPU and padding would cost
# more; on a CPU (two cores, 160 to 784 tokens measured) plain products are as fast or faster.
BLOCKS_FROM = 512
HALF = ("bfloat16", "float16")
# What a site may need -> what that is, and the forms that have it.
ABILITIES = {
    "causal": ("a causal mask", ("xla",)),
    "masked": ("a padding mask", ("xla", "blocked")),
    "biased": ("an additive bias", ("xla",)),
    "cached": ("cached keys", ("xla",)),
    "dropped": ("dropout of its weights", ("xla",)),
}


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
    spread: int = 1  # devices that tokens are split over
    causal: bool = False
    masked: bool = False  # some keys are padding
    biased: bool = False
    cached: bool = False  # keys of earlier calls come first
    dropped: bool = False  # some weights are dropped


@dataclasses.dataclass(frozen=True)
class Choice:
    """The form that computes a site, and why that one."""

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
        refused = lacks(wanted, site) or REFUSES[wanted](site)
        if refused:
            raise ValueError(
                f"config.model.attention = {wanted!r} cannot compute {describe(site)}: {refused}; "
                "set it to 'auto' or 'xla'"
            )
        return Choice(wanted, "asked for")
    form = {"tpu": "flash", "cpu": "blocked", "cuda": "cudnn"}.get(site.platform)
    if form is None:
        return Choice("xla", f"on {site.platform}")
    if missing := lacks(form, site):
        return Choice("xla", missing)
    if form != "cudnn" and min(site.queries, site.keys) < BLOCKS_FROM:
        return Choice("xla", f"fewer than {BLOCKS_FROM} tokens")
    refused = REFUSES[form](site)
    return Choice("xla", refused) if refused else Choice(form, f"on {site.platform}")


def lacks(form: str, site: Site) -> str:
    """What a site needs and the form does not have, and which forms do; "" for nothing."""
    for need, (what, forms) in ABILITIES.items():
        if vars(site)[need] and form not in forms:
            names = "forms" if len(forms) > 1 else "form"
            has = "have" if len(forms) > 1 else "has"
            return f"only the {names} {' and '.join(forms)} {has} {what}"
    return ""


def flash_refuses(site: Site) -> str:
    """Why the Pallas kernel cannot compute a site, or ""."""
    if site.platform not in ("tpu", "cpu"):
        return f"the kernel is for TPUs, not {site.platform}"
    if site.channels % 8 or site.channels > LANES:
        return f"{site.channels} channels per head are no multiple of 8 up to {LANES}"
    if site.keys > MOST_KEYS and site.spread == 1:
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
    if site.spread > 1:
        return f"cuDNN computes on one device, not on tokens that {site.spread} share"
    if site.dtype not in HALF:
        return f"cuDNN takes {' and '.join(HALF)}, not {site.dtype}"
    if site.channels % 8 or site.channels > 128:
        return f"{site.channels} channels per head are no multiple of 8 up to 128"
    return ""


REFUSES = {"flash": flash_refuses, "blocked": blocked_refuses, "cudnn": cudnn_refuses}


def describe(site: Site) -> str:
    """A site in words."""
    tokens = f"{site.queries} tokens" if site.queries == site.keys else ""
    tokens = tokens or f"{site.queries} queries on {site.keys} tokens"
    needs = "".join(f", {need}" for need in ABILITIES if vars(site)[need])
    tokens += f" over {site.spread} devices" if site.spread > 1 else ""
    return f"{tokens}, {site.heads} heads of {site.channels}{needs}"


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


class Cache(NamedTuple):
    """Keys and values of the tokens before, for tokens that come one after the other.

    Of M positions the first `length` are filled. Whoever fills it keeps count: what goes beyond the
    last position overwrites others.
    """

    k: jax.Array  # (B, M, K, C)
    v: jax.Array  # (B, M, K, C)
    length: jax.Array  # () int32

    @classmethod
    def empty(cls, batch: int, most: int, heads: int, channels: int, dtype: DTypeLike) -> Cache:
        """Room for `most` tokens, of which there are none."""
        zeros = jnp.zeros((batch, most, heads, channels), dtype)
        return cls(zeros, zeros, jnp.zeros((), jnp.int32))

    def append(self, k: jax.Array, v: jax.Array) -> Cache:
        """With the keys and values (B, N, K, C) of N more tokens."""
        put = jax.lax.dynamic_update_slice_in_dim
        return Cache(
            put(self.k, k.astype(self.k.dtype), self.length, axis=1),
            put(self.v, v.astype(self.v.dtype), self.length, axis=1),
            self.length + k.shape[1],
        )


Opt = jax.Array | None


class How(TypedDict, total=False):
    """Settings of `attend`, which says what they are."""

    dropped: Dropped | None

    scale: float | None
    causal: bool
    form: str
    batch_axes: Sequence[str]
    head_axes: Sequence[str]
    token_axes: Sequence[str]


@overload
def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Opt = ..., bias: Opt = ..., **how: Unpack[How]
) -> jax.Array: ...
@overload
def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Opt = ...,
    bias: Opt = ...,
    *,
    cache: Cache,
    **how: Unpack[How],
) -> tuple[jax.Array, Cache]: ...


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    cache: Cache | None = None,
    *,
    dropped: Dropped | None = None,
    scale: float | None = None,
    causal: bool = False,
    form: str = "auto",
    batch_axes: Sequence[str] = (),
    head_axes: Sequence[str] = (),
    token_axes: Sequence[str] = (),
) -> jax.Array | tuple[jax.Array, Cache]:
    """Softmax attention over all keys, or over those that a query may see.

    Keys of another sequence than the queries' make it cross-attention.

    Args:
      q: (B, N, K, C) queries.
      k: (B, S, K, C) keys; of fewer heads, where each is for equally many of the queries'.
      v: (B, S, K, C) values, of as many heads as the keys.
      mask: (B, S) bool, False for keys that are padding (with a cache (B, M), of its places). A
        query that sees no key gets zeros.
      bias: added to the logits, of a shape that spreads to (B, K, N, S) (with a cache M for S);
        -inf hides a key from a query.
      cache: keys and values of the tokens before; those of `k` and `v` are appended.
      dropped: which weights are dropped, after the softmax; None: none.
      scale: factor on the logits, default C ** -0.5.
      causal: query i sees keys 0 to i, for N = S; with a cache those before too.
      form: one of FORMS.
      batch_axes, head_axes: mesh axes that B and K are split over, where the mesh in use has them.
        The compiler does not partition kernels, nor loops over heads, so these run on every device
        with its part.
      token_axes: mesh axes that N and S are split over, likewise, evenly or not: keys go round
        (`ring_attention.py`), or with the plain products the shorter of both sides is gathered.

    Returns:
      (B, N, K, C) in the dtype of `v`. Logits and softmax are computed in float32. With a cache the
      pair of this and the longer cache.

    Raises:
      ValueError: an unknown form, one that cannot compute this, or a mask of another shape.
    """
    _check_causal(causal, q.shape[1], k.shape[1])
    seen = None
    if cache is not None:
        seen = _seen(cache, q.shape[1], causal)
        cache = cache.append(k, v)
        k, v = cache.k, cache.v
    if k.shape[2] != q.shape[2]:
        k, v = (jnp.repeat(part, q.shape[2] // k.shape[2], axis=2) for part in (k, v))
    if mask is not None and mask.shape != k.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, expected one value per key: {k.shape[:2]}")
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    mesh = jax.sharding.get_abstract_mesh()
    axes = Axes(*(free_axes(mesh, names) for names in (batch_axes, head_axes, token_axes)))
    needs = {
        "causal": causal,
        "masked": mask is not None,
        "biased": bias is not None,
        "cached": cache is not None,
        "dropped": dropped is not None,
    }
    made = _choice(q, k, mesh, axes, form, needs)
    if made == "xla":
        q, k, v = _shorter_gathered(q, k, v) if axes.tokens else (q, k, v)
        if mask is not None:
            seen = mask[:, None, None] if seen is None else seen & mask[:, None, None]
        here = causal and cache is None
        out = xla_attention(
            q, k, v, scale=factor, causal=here, seen=seen, bias=bias, dropped=dropped
        )
        return out if cache is None else (out, cache)
    if made == "cudnn":
        out = jax.nn.dot_product_attention(q, k, v, scale=factor, implementation="cudnn")
        return checkpoint_name(out, RESIDUALS)
    return _on_each_device(made, (q, k, v), mask, mesh, axes, factor)


def _check_causal(causal: bool, queries: int, keys: int) -> None:
    """ValueError where causal attention has other keys than queries."""
    if causal and queries != keys:
        raise ValueError(f"causal attention of {queries} queries on {keys} keys; expected as many")


class Axes(NamedTuple):
    """Of the mesh, that these are split over."""

    batch: tuple[str, ...]
    heads: tuple[str, ...]
    tokens: tuple[str, ...]

    def shares(self, mesh: AbstractMesh) -> tuple[int, ...]:
        """Devices of each."""
        return tuple(math.prod(mesh.shape[name] for name in names) for names in self)


def _choice(
    q: jax.Array, k: jax.Array, mesh: AbstractMesh, axes: Axes, form: str, needs: Mapping[str, bool]
) -> str:
    """The form of this site, which goes into the record."""
    rows, parts, spread = axes.shares(mesh)
    batch, queries, heads, channels = q.shape
    keys, dtype, where = k.shape[1], k.dtype.name, platform(mesh)
    shares = rows, parts
    site = Site(queries, keys, heads, channels, dtype, batch, where, shares, spread, **needs)
    made = choose(site, form)
    record = _record.get()
    if record is not None:
        record[site] = made
    return made.form


def _on_each_device(
    form: str,
    arrays: tuple[jax.Array, jax.Array, jax.Array],
    mask: jax.Array | None,
    mesh: AbstractMesh,
    axes: Axes,
    scale: float,
) -> jax.Array:
    """A form that the compiler does not partition, run by every device on its part."""

    interpret, spread = platform(mesh) == "cpu", axes.shares(mesh)[-1]
    queries, keys = arrays[0].shape[1], arrays[1].shape[1]

    def local(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        if spread > 1:
            flash = Flash(k.shape[1], query_block(q.shape[1]), interpret)
            kernel = Blocked(q.shape[2]) if form == "blocked" else flash
            ring = Ring(axes.tokens, spread, keys, k.shape[1])
            return ring_attention(q, k, v, mask, ring=ring, kernel=kernel, scale=scale)
        if form == "blocked":
            return blocked_attention(q, k, v, mask, scale=scale)
        return flash_attention(q, k, v, scale=scale, interpret=interpret)

    given = arrays if mask is None else (*arrays, mask)
    free = {name for name in mesh.axis_names if name not in mesh.manual_axes}
    if not free:
        return local(*given)
    if spread > 1:  # every device gets as many, as the compiler deals out what does not divide
        given = [_padded(x, -x.shape[1] % spread) for x in given]
    spec = PartitionSpec(axes.batch or None, axes.tokens or None, axes.heads or None)
    specs = (spec, spec, spec, PartitionSpec(axes.batch or None, axes.tokens or None))[: len(given)]
    # Kernels do not say over which axes their results vary, hence no check of it.
    mapped = jax.shard_map(local, in_specs=specs, out_specs=spec, axis_names=free, check_vma=False)
    out = mapped(*given)
    return out[:, :queries] if spread > 1 else out


def _padded(x: jax.Array, tokens: int) -> jax.Array:
    """(B, N, ...) with so many tokens more: zeros, or False."""
    return jnp.pad(x, [(0, 0), (0, tokens), *[(0, 0)] * (x.ndim - 2)])


def _shorter_gathered(
    q: jax.Array, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values of which those on the side with fewer tokens are on every device."""
    free = PartitionSpec.UNCONSTRAINED

    def whole(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, PartitionSpec(free, None, free, free))

    return (whole(q), k, v) if q.shape[1] < k.shape[1] else (q, whole(k), whole(v))


def _seen(cache: Cache, queries: int, causal: bool) -> jax.Array:
    """(1, 1, N, M) bool: which positions of the cache each of the next `queries` tokens sees."""
    last = cache.length + (jnp.arange(queries) if causal else jnp.full(queries, queries - 1))
    return (jnp.arange(cache.k.shape[1]) <= last[:, None])[None, None]


def free_axes(mesh: AbstractMesh, names: Sequence[str]) -> tuple[str, ...]:
    """Those of `names` that the mesh has and that no surrounding shard_map has split already."""
    return tuple(name for name in names if name in mesh.axis_names and name not in mesh.manual_axes)


def platform(mesh: AbstractMesh | None) -> str:
    """cpu, tpu, cuda or rocm: of the devices of the mesh in use, else of the default device.

    A program may be compiled on one machine for another, so it is the mesh that counts.
    """
    device = getattr(mesh, "abstract_device", None)
    name = device.platform if device is not None else jax.default_backend()
    return "cuda" if name == "gpu" else name
