"""Jobs of two processes that have no folder in common, as hosts of a pod."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import ROOT, environment
from tests.interpreter import Interpreter
from tests.services.conftest import free_port

PROCESSES = 2
Ended = subprocess.CompletedProcess[str]


class Pod:
    """Two hosts, each with its own disk.

    Args:
      folder: of the disks.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._interpreters = [Interpreter(ROOT, environment()) for _ in range(PROCESSES)]

    def disk(self, number: int) -> Path:
        """What a host has of its own."""
        return self._folder / f"host{number}"

    def run(self, module: str, *arguments: str, private: bool = True) -> list[Ended]:
        """Runs `python -m MODULE ARGUMENTS` on every host, as one job.

        Args:
          private: whether the hosts have disks of their own only.
        """
        port = free_port()

        def on(number: int) -> Ended:
            disk = self.disk(number if private else 0)
            disk.mkdir(parents=True, exist_ok=True)
            settings = {
                **environment(),
                "IVJ_STAGING": f"{disk}/staging",
                "IVJ_WEIGHTS": f"{disk}/weights",
                "TMPDIR": str(disk),
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(PROCESSES),
                "JAX_PROCESS_ID": str(number),
            }
            return self._interpreters[number].run(module, arguments, settings, 300)

        with ThreadPoolExecutor(PROCESSES) as pool:
            return list(pool.map(on, range(PROCESSES)))

    def kill(self, number: int) -> None:
        """Ends the process on a host at once."""
        parent = self._interpreters[number].process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)

    def lose(self) -> None:
        """As if the next job ran on other hosts."""
        for number in range(PROCESSES):
            shutil.rmtree(self.disk(number), ignore_errors=True)

    def close(self) -> None:
        for each in self._interpreters:
            each.close()
