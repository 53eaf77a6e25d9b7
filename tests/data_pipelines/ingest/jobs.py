"""Jobs for the tests of the worker pool; workers import this module by name."""

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Task:
    """Items are instructions; ``crashed`` as the pool wants it."""

    items: tuple[str, ...]
    crashed: dict[int, str] = field(default_factory=dict)


def obey(task: Task, progress) -> list[str]:
    """Do what each item says; returns the items done and what is known of the others."""
    result = []
    for position, item in enumerate(task.items):
        progress.item(position)
        if item == "always crash":  # also when it should be left out
            os.kill(os.getpid(), signal.SIGSEGV)
        if position in task.crashed:
            result.append(f"skipped: {task.crashed[position]}")
            continue
        verb, _, argument = item.partition(" ")
        if verb == "signal":
            os.kill(os.getpid(), getattr(signal, argument))
            time.sleep(10)
        elif verb == "exit":
            os._exit(int(argument))
        elif verb == "raise":
            raise {"ValueError": ValueError, "OSError": OSError, "KeyError": KeyError}[argument](
                f"told to raise {argument}"
            )
        elif verb == "sleep":
            time.sleep(float(argument))
        elif verb == "busy":  # alive, but slow
            end = time.monotonic() + float(argument)
            while time.monotonic() < end:
                time.sleep(0.05)
                progress.tick(1)
        elif verb == "touch":
            Path(argument).write_text(str(os.getpid()))
        elif verb == "pid":
            item = f"pid {os.getpid()}"
        elif verb == "modules":
            import sys

            item = ",".join(sorted(name for name in sys.modules if "." not in name))
        result.append(item)
    progress.item(len(task.items))
    return result
