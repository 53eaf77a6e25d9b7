"""Commands that do not each pay for importing jax.

Importing the libraries costs a command of this project some seconds of CPU time, and a command of a
few steps spends most of its time there. So one interpreter imports the libraries, none of our own
modules, and forks for every command; the child then does what `python -m MODULE ARGUMENTS` does.

    python -m tests.interpreter REQUESTS REPLIES     # file descriptors; what `Interpreter` starts
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

# What the commands import from others, as far as importing it starts no threads.
LIBRARIES = (
    "numpy", "jax", "jax.numpy", "flax.nnx", "optax", "orbax.checkpoint", "grain", "cv2",
    "simplejpeg", "ml_collections.config_flags", "absl.app", "safetensors.numpy", "einops",
    "google.protobuf.message", "fsspec", "tqdm", "jinja2", "matplotlib.figure",
)  # fmt: skip


class Interpreter:
    """An interpreter that runs commands in forks of itself."""

    def __init__(self, root: Path, environment: Mapping[str, str]):
        """Starts it in `root`; `environment` is that of the importing interpreter."""
        requests, ours = os.pipe()
        replies, theirs = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.interpreter", str(requests), str(theirs)],
            cwd=root,
            env=dict(environment),
            pass_fds=(requests, theirs),
        )
        os.close(requests)
        os.close(theirs)
        self.root = root
        self.requests, self.replies = os.fdopen(ours, "wb"), os.fdopen(replies, "rb")

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        timeout: float,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run([python, "-m", module, *arguments])` gives, output as text.

        A `module` that ends in .py is a file, as in `python FILE`; one that is -c takes the code as
        the first of the arguments.
        """
        with contextlib.ExitStack() as stack:
            out, err = (stack.enter_context(tempfile.NamedTemporaryFile()) for _ in range(2))
            request = {
                "module": module,
                "arguments": list(arguments),
                "environment": dict(environment),
                "cwd": str(cwd or self.root),
                "streams": [out.name, err.name],
            }
            self.requests.write(json.dumps(request).encode() + b"\n")
            self.requests.flush()
            pid = self._reply(60)
            try:
                code = self._reply(timeout)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                self._reply(60)
                raise subprocess.TimeoutExpired([module, *arguments], timeout) from None
            command = [sys.executable, "-m", module, *arguments]
            return subprocess.CompletedProcess(command, code, _text(out), _text(err))

    def _reply(self, seconds: float) -> int:
        if not select.select([self.replies], [], [], seconds)[0]:
            raise TimeoutError
        line = self.replies.readline()
        if not line:
            raise RuntimeError(f"the interpreter of the tests ended with {self.process.wait()}")
        return int(line)

    def close(self) -> None:
        self.requests.close()
        self.process.wait()
        self.replies.close()


def _text(stream: Any) -> str:
    return Path(stream.name).read_text(errors="replace")


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Forks for every request until the other side closes."""
    for line in requests:
        pid = os.fork()
        if pid == 0:
            requests.close()
            replies.close()
            _become(json.loads(line))
        _answer(replies, pid)
        _, status = os.waitpid(pid, 0)
        _answer(replies, os.waitstatus_to_exitcode(status))


def _answer(replies: BinaryIO, number: int) -> None:
    replies.write(b"%d\n" % number)
    replies.flush()


def _become(request: dict[str, Any]) -> None:
    """Runs the command in this process and ends it as an interpreter would end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for number, name in enumerate(request["streams"], 1):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    _reread_settings_of_jax()
    module, arguments = request["module"], request["arguments"]
    is_file, is_code = module.endswith(".py"), module == "-c"
    sys.argv = [module, *arguments[is_code:]]
    sys.orig_argv[:] = [sys.executable, *([] if is_file or is_code else ["-m"]), module, *arguments]
    sys.path[0] = os.path.dirname(os.path.realpath(module)) if is_file else request["cwd"]
    code: Any = 0
    try:
        if is_file:
            runpy.run_path(module, run_name="__main__")
        elif is_code:
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(arguments[0], "<string>", "exec"), vars(sys.modules["__main__"]))
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - what an interpreter does at its border
        traceback.print_exc()
        code = 1
    if code is None or isinstance(code, int):
        code = code or 0
    else:
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF)


def _reread_settings_of_jax() -> None:
    """jax reads JAX_... when it is imported, which was before this command's environment."""
    import jax

    for name, text in os.environ.items():
        option = name.lower()
        if name.startswith("JAX_") and option in jax.config.values:
            kind = type(jax.config.values[option])
            value: Any = text.lower() in ("1", "true") if kind is bool else text
            jax.config.update(option, kind(value) if kind in (int, float) else value)


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    serve(os.fdopen(int(sys.argv[1]), "rb", buffering=0), os.fdopen(int(sys.argv[2]), "wb"))
