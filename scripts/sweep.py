"""Runs a recipe with many settings on this machine and compares the results.

    python scripts/sweep.py --config=configs/videomae/pretrain.py:size=tiny --out=runs/sweep \\
        --set=optim.lr=1e-3,3e-4 --set=seed=0,1,2 --set=data.train=shards/ \\
        --parallel=2 --sort=eval/test/top1

Another command than train stands behind --, with what all its runs have:

    python scripts/sweep.py --out=runs/tests --set=evals.test.views.clips=1,4 -- \\
        ivj evaluate --config=RECIPE --checkpoint=runs/x

Every run has its own directory below --out. Starting the same command again goes on: finished runs
are skipped, others continue from their newest checkpoint. It ends with a table, also in table.csv
and table.md.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.commands.exit_codes import exit_code_of
from internvideo_jax.launch.experiment import Experiment, Job, command_of, split, worker_command

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ARGUMENTS, LOG, LOCK = "sweep.json", "sweep.log", "sweep.lock"
ENDED = "sweep.ended"  # left by a command that ended well and is no training


def finished(job: Job) -> bool:
    """True when the run of this directory has ended; ValueError when it was another run."""
    folder = Path(job.workdir)
    known = folder / ARGUMENTS
    if known.exists():
        before = json.loads(known.read_text())
        if before != list(job.arguments):
            changed = sorted(set(before) ^ set(job.arguments))
            raise ValueError(
                f"{folder} holds a run with other arguments ({', '.join(changed)}); give another "
                "directory, or delete this one"
            )
    elif (folder / "run.json").exists():
        raise ValueError(f"{folder} holds a run that no sweep started; give another directory")
    run = folder / "run.json"
    if command_of(job.arguments)[0] != "train":
        return (folder / ENDED).exists()
    try:
        return "params_digest" in json.loads(run.read_text())
    except (FileNotFoundError, json.JSONDecodeError):  # the latter: killed while it was written
        return False


def start(job: Job, restarts: int) -> subprocess.Popen[bytes]:
    """The process of one run; its output goes to a file in its directory.

    Raises:
      RuntimeError: a process of an earlier sweep still works there.
    """
    folder = Path(job.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    # The child inherits the lock, so it lasts as long as the child, whatever happens to us.
    with open(folder / LOCK, "w") as lock, open(folder / LOG, "ab") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"a process of an earlier sweep still works in {folder}; wait for it, or end it"
            ) from error
        (folder / ARGUMENTS).write_text(json.dumps(list(job.arguments)))
        command = worker_command(job.arguments, restarts=restarts, python=sys.executable)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[lock.fileno()],
            # ctrl-c reaches only us; a second signal would end a run that is about to save.
            start_new_session=True,
        )


def run_jobs(jobs: Sequence[Job], parallel: int, restarts: int) -> dict[str, str]:
    """Runs what is not finished, `parallel` at a time.

    Returns:
      name -> "finished", or what happened instead.
    """
    status = {job.name: "finished" if finished(job) else "waiting" for job in jobs}
    waiting = [job for job in jobs if status[job.name] == "waiting"]
    say(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished before")
    running: dict[str, tuple[Job, subprocess.Popen[bytes], float]] = {}
    stop: list[int] = []
    before = {number: signal.signal(number, lambda n, _: stop.append(n)) for number in SIGNALS}
    try:
        while running or (waiting and not stop):
            while waiting and len(running) < parallel and not stop:
                job = waiting.pop(0)
                running[job.name] = (job, start(job, restarts), time.monotonic())
                say(f"started {job.name} ({len(waiting)} waiting)")
            if stop:
                for _, process, _ in running.values():
                    process.terminate()
                say(f"{signal.Signals(stop[0]).name}: {len(running)} runs save and end")
            for name, (job, process, since) in list(running.items()):
                # After a signal each is waited for, without a limit: they save.
                if stop:
                    process.wait()
                code = process.poll()
                if code is None:
                    continue
                del running[name]
                status[name] = "finished" if code == 0 else f"exit code {code}"
                if code == 0 and command_of(job.arguments)[0] != "train":
                    (Path(job.workdir) / ENDED).touch()
                if code and stop:
                    status[name] = "stopped"
                elif code:
                    say(f"{name} failed:\n{tail(Path(job.workdir) / LOG)}")
                say(f"{status[name]}: {name}, {time.monotonic() - since:.0f} s")
            time.sleep(0.1)
    except BaseException:
        for _, process, _ in running.values():
            process.terminate()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop:
        raise KeyboardInterrupt(stop[0])
    return status


def tail(path: Path, lines: int = 5) -> str:
    text = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(f"  {line}" for line in text[-lines:])


def say(text: str) -> None:
    print(text, flush=True)


def last_values(workdir: Path) -> dict[str, Any]:
    """The newest value of every metric of a run, or of an evaluation; `step` is the last one."""
    path = workdir / "metrics.jsonl"
    values: dict[str, Any] = {}
    if (workdir / "result.json").exists():
        for label, result in json.loads((workdir / "result.json").read_text())["results"].items():
            values |= {f"eval/{label}/{name}": one for name, one in result["metrics"].items()}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            values.update(json.loads(line))
        except json.JSONDecodeError:  # the run writes it at this moment
            break
    return values


def table(
    experiment: Experiment,
    status: Mapping[str, str],
    sort: str,
    ascending: bool,
    columns: Sequence[str],
) -> list[list[str]]:
    """Header and one row per run: fields of the sweep, status, step, metrics.

    Raises:
      ValueError: a metric that no run has.
    """
    jobs = experiment.jobs()
    rows = experiment.combinations() if experiment.sweep else [{}]
    values = {job.name: last_values(Path(job.workdir)) for job in jobs}
    known = sorted({key for found in values.values() for key in found if key != "step"})
    for name in [*columns, *([sort] if sort else [])]:
        if known and name not in known:
            raise ValueError(f"no run has the metric {name!r}; known: {', '.join(known)}")
    shown = list(columns) or [key for key in known if key.startswith("eval/")] or ["train/loss"]
    if sort and sort not in shown:
        shown.insert(0, sort)
    order = list(zip(jobs, rows, strict=True))
    if sort:
        # Runs without the metric come last.
        sign = 1 if ascending else -1
        order.sort(
            key=lambda pair: (
                sign * values[pair[0].name][sort] if sort in values[pair[0].name] else float("inf")
            )
        )
    fields = list(experiment.sweep)
    result = [[*fields, "status", "step", *shown]]
    for job, row in order:
        found = values[job.name]
        result.append(
            [
                *(row[field] for field in fields),
                status.get(job.name, "waiting"),
                str(found.get("step", "")),
                *(f"{found[name]:.6g}" if name in found else "" for name in shown),
            ]
        )
    return result


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The options before `--`."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit code 0: all runs finished, 1: some did not, 2: a wrong command line; "
        "docs/launch.md has all.",
    )
    parser.add_argument("--config", default="", help="recipe, as for ivj train")
    parser.add_argument("--out", required=True, help="directory of the sweep")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=V1,V2",
        help="values of a config field; one value is the same in all runs; values with commas as "
        "a JSON list. All combinations are run",
    )
    parser.add_argument("--zip", action="store_true", help="first values together, then second...")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--restarts", type=int, default=0, help="of a run that fails")
    parser.add_argument("--sort", default="", metavar="METRIC", help="order of the table")
    parser.add_argument("--ascending", action="store_true", help="smallest first, as for a loss")
    parser.add_argument("--metrics", default="", help="columns of the table; default: all eval/")
    parser.add_argument("--table", action="store_true", help="only the table, of what is there")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    return parser.parse_args(words)


def main() -> int:
    own, _, command = split(sys.argv[1:])
    options = parsed(own)
    try:
        if options.parallel < 1:
            raise ValueError(f"--parallel={options.parallel}: expected at least 1")
        experiment = Experiment.from_sets(
            "sweep", options.config, options.out, options.set, options.zip, command
        )
        if not experiment.sweep:
            raise ValueError("nothing to sweep over; expected --set with several values")
        jobs = experiment.jobs()
        if options.dry_run:
            for job in jobs:
                command = shlex.join(worker_command(job.arguments, restarts=options.restarts))
                say(f"# finished: {command}" if finished(job) else command)
            return 0
        if options.table:
            status = {job.name: "finished" if finished(job) else "not finished" for job in jobs}
        else:
            status = run_jobs(jobs, options.parallel, options.restarts)
        columns = [name for name in options.metrics.split(",") if name]
        rows = table(experiment, status, options.sort, options.ascending, columns)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code_of(error)
    except KeyboardInterrupt as stop:
        say("stopped; start the same command again to go on")
        return 128 + stop.args[0]
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    (out / "table.md").write_text(markdown(rows))
    say(markdown(rows))
    return int(any(state != "finished" for state in status.values()))


if __name__ == "__main__":
    sys.exit(main())
