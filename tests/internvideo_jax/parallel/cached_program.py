"""Compiles a program with the cache that it is given, and says what was found there."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

from internvideo_jax.parallel import compile_cache

compile_cache.LEAST_SECONDS = 0.0
folder = compile_cache.use_compile_cache(sys.argv[1])
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
print(float(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(8.0))))
print(sum(name.endswith("cache_hits") for name in hits), folder)
