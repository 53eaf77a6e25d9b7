"""Compiled programs kept on disk, so that the next start of the same run compiles nothing."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # jax's own; wins over our default
# Programs that compile faster than this are not worth a file.
LEAST_SECONDS = 0.3


def default_folder() -> Path:
    """A folder of the user, with a part that names this kind of processor.

    A program for CPUs contains the instructions of the one it was compiled on, and home directories
    are shared between machines.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "internvideo_jax" / "compiled" / processor()


def processor() -> str:
    """A short name of this machine's processor and instruction set."""
    facts = {platform.machine(), platform.processor()}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""  # not Linux
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "flags", "Features", "CPU part"):
            facts.add(value.strip())
    digest = hashlib.sha256("\n".join(sorted(facts)).encode()).hexdigest()
    return f"{platform.machine()}-{digest[:12]}"


def use_compile_cache(asked: str) -> str:
    """Switches the cache on, or off; returns the folder, "" for none. Call before compiling.

    Several processes may share a folder, on one machine or several: of a job only the first one
    writes, and a file that does not fit or was cut short is compiled anew with a warning.

    Args:
      asked: a folder or gs:// path, "off", or "" for the folder of the environment variable
        JAX_COMPILATION_CACHE_DIR or else `default_folder`.

    Raises:
      ValueError: a folder that cannot be written to was asked for.
    """
    if asked == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return ""
    folder = asked or os.environ.get(VARIABLE) or str(default_folder())
    if "://" not in folder:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            if not asked:
                return ""  # a read-only home directory is no reason not to train
            raise ValueError(
                f"--compile_cache={asked} cannot be written to; give another folder or off"
            )
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return folder
