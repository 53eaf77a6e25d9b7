"""Ends a command by every kind of error in turn, and prints the codes; test_exits.py runs it."""

from __future__ import annotations

import errno
import os

from data_pipelines.commands.exit_codes import PassingFault
from internvideo_jax import cli


def ends(error):
    def main():
        if isinstance(error, int):
            return error
        raise error

    child = os.fork()
    if not child:
        cli.run(main)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


for error in (
    0,
    1,
    ValueError("w"),
    FileNotFoundError("f"),
    ImportError("extra"),
    RuntimeError("hopeless"),
    PassingFault("worker"),
    OSError(errno.ENOSPC, "full"),
    KeyError("row"),
    KeyboardInterrupt(),
):
    ends(error)
