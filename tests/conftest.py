"""A small rendered and ingested world, and a way to run the commands as a user would."""

from __future__ import annotations

import atexit
import fcntl
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interpreter import Interpreter
from tests.parity import listing

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    # Smaller still than `size=tiny`: what a test of the machinery needs, not of learning.
    "--config.model.encoder.width=32",
    "--config.model.encoder.hidden=64",
    "--config.model.encoder.depth=2",
    "--config.model.encoder.heads=2",
    "--config.data.global_batch=8",
    "--config.data.reader.threads=2",
)
TINY_PRETRAIN = (
    *TINY,
    "--config.model.decoder.width=32",
    "--config.model.decoder.hidden=64",
    "--config.model.decoder.heads=2",
    "--config.model.decoder.depth=1",
)

# A shell starts background jobs with ctrl-c ignored, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Programs that the commands of a test session compile: most of their time, were each to do it anew.
# The folder is new in every session, so that nothing depends on what others left there or leaves
# anything; the workers of pytest-xdist inherit its name.
CACHE = "IVJ_TESTS_COMPILED"
if CACHE not in os.environ:
    os.environ[CACHE] = tempfile.mkdtemp(prefix="ivj-tests-")
    atexit.register(shutil.rmtree, os.environ[CACHE], ignore_errors=True)

# Most tests compile longer than they compute: XLA without its optimizations, and with its older
# emitter of fused loops, compiles in less than half the time. The bits are not those of users.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # others may not know the flag
    FAST += " --xla_cpu_use_fusion_emitters=false"
# The same for this process. Read when jax is imported.
QUICK = {
    # A folder for each worker: jax does not write its files at once.
    "JAX_COMPILATION_CACHE_DIR": os.path.join(
        os.environ[CACHE], os.environ.get("PYTEST_XDIST_WORKER", "main")
    ),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "XLA_FLAGS": FAST,
}
# What a command gives itself by starting again (cli.py), which costs its imports twice; workers of
# pytest-xdist start with it.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
os.environ.update(QUICK | LARGE_PAGES)

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment(devices: int = 1, *, fast: bool = True) -> dict[str, str]:
    """Environment of a command on `devices` virtual CPU devices.

    Args:
      fast: with the flags `FAST`; without them it computes as users do.
    """
    kept = {k: v for k, v in os.environ.items() if k not in QUICK}
    flags = f"--xla_force_host_platform_device_count={devices}"
    if fast:
        flags += f" {FAST}"
    return {
        **kept,
        "JAX_COMPILATION_CACHE_DIR": QUICK["JAX_COMPILATION_CACHE_DIR"],
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(ROOT),
        **LARGE_PAGES,
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skips what needs the vocabulary of CLIP where no wheel brings it; the message says more."""
    report = yield
    error = call.excinfo and call.excinfo.value
    if sys.version_info >= (3, 13) and isinstance(error, ImportError):
        if str(error).startswith("no CLIP vocabulary here"):
            report.outcome, report.longrepr = "skipped", (str(item.path), None, str(error))
    return report


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter]:
    """What runs commands without importing the libraries anew for each."""
    started = Interpreter(ROOT, environment())
    yield started
    started.close()


@pytest.fixture(scope="session")
def command(interpreter) -> Run:
    """Runs `python -m MODULE ARGUMENTS` and returns the finished process."""

    def run(
        module: str,
        *arguments: str,
        devices: int = 1,
        timeout: float = 300,
        cwd: Path | None = None,
    ):
        words = [str(argument) for argument in arguments]
        return interpreter.run(module, words, environment(devices), timeout, cwd)

    return run


@pytest.fixture(scope="session")
def program(interpreter) -> Run:
    """Runs `python -c CODE ARGUMENTS` and returns the finished process."""

    def run(
        code: str, *arguments: object, devices: int = 1, timeout: float = 300, fast: bool = True
    ):
        words = [code, *map(str, arguments)]
        return interpreter.run("-c", words, environment(devices, fast=fast), timeout)

    return run


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills, once for all workers of a session; others wait for it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"once-{name}"
    with open(f"{folder}.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if lock.read() != "made":
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
            folder.mkdir()
            make(folder)
            lock.write("made")
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training and 20 test clips of the built-in world as shards."""
    return once(tmp_path_factory, "world", _write_shards) / "shards"


def _write_shards(folder: Path) -> None:
    from data_pipelines.ingest.__main__ import main as ingest
    from data_pipelines.synthetic import World, write_world

    write_world(World(size=64, frames=20), folder / "videos", {"train": 60, "test": 20})
    code = ingest(
        [
            f"--source={folder}/videos/annotations.jsonl",
            f"--out={folder}/shards",
            "--name=world",
            "--workers=1",
            "--flip-changes-label",
        ]
    )
    if code:
        raise RuntimeError(f"ingest of the test world ended with {code}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in listing.summary(terminalreporter.stats.get("skipped", ())):
        terminalreporter.write_line(line)
