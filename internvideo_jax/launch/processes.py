"""Starts the processes of a job on this machine, and starts them again when one dies.

    ivj launch --processes=2 --devices-per-process=4 --restarts=3 -- \\
        ivj train --config=... --workdir=runs/x

With --processes=1, the default, it only watches one process and starts it again: run it so on every
host of a slice. `python` and `ivj` in the command are those of this interpreter. With several
processes each gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID and IVJ_JOB_TOKEN.

exit codes (docs/launch.md has the table for all commands):
  0        all processes ended well
  130,143  stopped by ctrl-c or SIGTERM after a save; not started again
  2, 3     a process refused its input or settings, or has no hope; not started again
  1, 70    an exception that nobody expected; started again once, where --restarts allows it
  other    the code of the process that died first (75: a fault that may pass; 128 + its signal
           where one killed it), after --restarts attempts without a newer checkpoint
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from data_pipelines.commands.arguments import Parser
from data_pipelines.commands.exit_codes import STOPPED, ExitCode, starts_again
from data_pipelines.records.outputs import local_argument
from internvideo_jax.checkpoint.steps import newest_step
from internvideo_jax.parallel.peers import TOKEN

POLL_SECONDS = 0.1
# After one process died the others end by themselves, with a message; then they are killed.
GRACE_SECONDS = 15.0
# After one ended well. The last save and report of the others may take their time.
FINISH_SECONDS = 600.0
LONGEST_PAUSE = 60.0
DEVICE_FLAG = "--xla_force_host_platform_device_count"


def say(text: str) -> None:
    """Tells the person who waits, on the standard error."""
    print(f"launch: {text}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of `ivj launch`."""
    parser = Parser(
        "ivj launch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=_count, default=1, help="processes to start (1)")
    parser.add_argument(
        "--devices-per-process",
        type=_count,
        help="rehearse on the CPU with this many virtual devices in each process",
    )
    parser.add_argument(
        "--restarts",
        type=lambda text: _count(text, 0),
        default=0,
        help="attempts after the first without a newer checkpoint in the command's --workdir (0)",
    )
    parser.add_argument(
        "--backoff",
        type=float,
        default=1.0,
        help="seconds before the first restart, doubled with every attempt without progress (1)",
    )
    parser.add_argument(
        "--logs",
        type=local_argument,
        help="folder for the output of process > 0; by default it is shown with [process] before "
        "every line",
    )
    parser.add_argument("command", nargs="+", metavar="-- COMMAND", help="what every process runs")
    return parser.parse_args(arguments)


def _count(text: str, least: int = 1) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least}, found {text!r}")
    return int(text)


def workdir_of(command: Sequence[str]) -> str | None:
    """The --workdir of a training command, whose checkpoints are its progress."""
    for number, word in enumerate(command):
        if match := re.fullmatch(r"--?workdir=(.+)", word):
            return match[1]
        if word in ("--workdir", "-workdir") and number + 1 < len(command):
            return command[number + 1]
    return None


def free_port() -> int:
    """A free port whose successor, where the processes meet, is free too."""
    for _ in range(100):
        port = random.randrange(20000, 32000)  # below the ports that systems hand out themselves
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as two:
            one.bind(("", port))
            two.bind(("", port + 1))
            return port
    raise RuntimeError("found no two free ports in a row from 20000 to 32000 on this machine")


def environment(options: argparse.Namespace, process: int, port: int, token: str) -> dict[str, str]:
    """Environment of one process; with `token` the processes of a job know each other."""
    found = dict(os.environ)
    if options.processes > 1:
        found["JAX_COORDINATOR_ADDRESS"] = f"localhost:{port}"
        found["JAX_NUM_PROCESSES"] = str(options.processes)
        found["JAX_PROCESS_ID"] = str(process)
        found.setdefault(TOKEN, token)
    if options.devices_per_process:
        kept = [
            flag for flag in found.get("XLA_FLAGS", "").split() if not flag.startswith(DEVICE_FLAG)
        ]
        found["XLA_FLAGS"] = " ".join([*kept, f"{DEVICE_FLAG}={options.devices_per_process}"])
        found["JAX_PLATFORMS"] = "cpu"
    return found


class Attempt:
    """The processes of one start."""

    def __init__(self, options: argparse.Namespace):
        command = list(options.command)
        if command[0] in ("python", "python3"):
            command[0] = sys.executable
        elif command[0] == "ivj":
            command[:1] = [sys.executable, "-m", "internvideo_jax"]
        port = free_port() if options.processes > 1 else 0
        self.children: list[subprocess.Popen] = []
        self._pumps: list[threading.Thread] = []
        token = secrets.token_hex(16)
        for process in range(options.processes):
            env = environment(options, process, port, token)
            self._start(command, process, env, options.logs)

    def _start(
        self, command: list[str], process: int, env: dict[str, str], logs: Path | None
    ) -> None:
        output: IO[bytes] | int | None = None
        with contextlib.ExitStack() as stack:
            if process and logs:
                logs.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(open(logs / f"process-{process}.log", "ab"))
            elif process:
                output = subprocess.PIPE
            # A session of its own: ctrl-c of a terminal comes once, from us.
            child = subprocess.Popen(
                command,
                env=env,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_launcher,
            )
        self.children.append(child)
        if child.stdout is not None:
            pump = threading.Thread(target=_prefixed, args=(child.stdout, process), daemon=True)
            pump.start()
            self._pumps.append(pump)

    def signal(self, number: int) -> None:
        """To every process that is still there, and to what it started."""
        for child in self.children:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    if number == signal.SIGKILL:
                        os.killpg(child.pid, number)
                    else:
                        child.send_signal(number)

    def wait(self) -> list[int]:
        """Exit codes in the order in which the processes ended, once all have."""
        left, ended, deadline = dict(enumerate(self.children)), [], float("inf")
        while left:
            for process, child in list(left.items()):
                if (code := child.poll()) is None:
                    continue
                del left[process]
                code = 128 - code if code < 0 else code
                ended.append(code)
                if code not in (ExitCode.GOOD, ExitCode.AGAIN):
                    say(f"process {process} of {len(self.children)} ended with code {code}")
                grace = FINISH_SECONDS if code in (0, *STOPPED) else GRACE_SECONDS
                deadline = min(deadline, time.monotonic() + grace)
            if left and time.monotonic() > deadline:
                say(f"processes {', '.join(map(str, left))} did not end by themselves: killed")
                self.signal(signal.SIGKILL)
                deadline = float("inf")
            time.sleep(POLL_SECONDS)
        for pump in self._pumps:
            pump.join(timeout=5)
        return ended


# Looked up before any fork: between fork and exec nothing may be imported.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _end_with_launcher() -> None:
    """In the child: a launcher that is killed itself leaves no processes behind (Linux)."""
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prefixed(output: IO[bytes], process: int) -> None:
    for line in output:
        sys.stdout.buffer.write(f"[{process}] ".encode() + line)
        sys.stdout.flush()


def verdict(codes: Sequence[int]) -> int:
    """One code for all: what would come again first, then who died first, then a stop, then 0.

    A process that ends with AGAIN mostly did so because of another one.
    """
    for of_interest in (
        [code for code in codes if code in (ExitCode.USAGE, ExitCode.FAILED)],
        [code for code in codes if code not in (ExitCode.GOOD, ExitCode.AGAIN, *STOPPED)],
        [code for code in codes if code == ExitCode.AGAIN],
        [code for code in codes if code in STOPPED],
    ):
        if of_interest:
            return of_interest[0]
    return 0


def _progress(workdir: str | None) -> int | None:
    """The newest complete step of a run; None where there is none, or storage does not say."""
    try:
        return newest_step(workdir) if workdir else None
    except (OSError, RuntimeError, ImportError) as error:
        say(f"the checkpoints of {workdir} cannot be listed ({error})")
        return None


def launch(options: argparse.Namespace) -> int:
    """Runs the job to its end; returns the exit code of the launcher."""
    workdir = workdir_of(options.command)
    stopped = 0
    attempt: Attempt | None = None
    wake = threading.Event()

    def forward(number: int, _: object) -> None:
        nonlocal stopped
        stopped = number
        wake.set()
        if attempt is not None:
            attempt.signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ends: list[int] = []  # codes of the attempts since the last progress
        best = _progress(workdir)
        while True:
            attempt = Attempt(options)
            if stopped:  # it came between two attempts, or while the processes were started
                attempt.signal(stopped)
            code = verdict(attempt.wait())
            attempt = None
            if not starts_again([code], 1):
                return code
            if stopped:
                return 128 + stopped
            newest = _progress(workdir)
            if newest is not None and (best is None or newest > best):
                ends, best = [], newest
            ends.append(code)
            where = "no checkpoint yet"
            if newest is not None:
                where = f"the newest checkpoint is step {newest}"
            if not starts_again(ends, options.restarts):
                count = len(ends) - 1
                say(f"ends with code {code} after {count} restarts without progress; {where}")
                return code
            pause = min(LONGEST_PAUSE, options.backoff * 2 ** (len(ends) - 1))
            say(f"restart {len(ends)} of {options.restarts} in {pause:.0f} s; {where}")
            if wake.wait(pause):
                return 128 + stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `ivj launch`; returns the exit code."""
    try:
        return launch(parse(sys.argv[1:] if arguments is None else arguments))
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.USAGE
