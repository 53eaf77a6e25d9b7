"""Worker processes that crash, hang, are killed, or lose their parent."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from data_pipelines.ingest import pool
from data_pipelines.ingest.pool import Outcome, run_tasks
from tests.data_pipelines.ingest.jobs import Task

JOB = "tests.data_pipelines.ingest.jobs:obey"
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(*tasks: tuple[str, ...], workers: int = 1, **options) -> list[Outcome]:
    outcomes = list(run_tasks(JOB, [Task(items) for items in tasks], workers, **options))
    return sorted(outcomes, key=lambda outcome: outcome.number)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_of_all_tasks(workers):
    outcomes = run(("a", "b"), ("c",), (), ("d",), workers=workers)
    assert [outcome.result for outcome in outcomes] == [["a", "b"], ["c"], [], ["d"]]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_item_that_crashes_the_worker_is_left_out(name):
    [first, second] = run(("a", f"signal {name}", "b"), ("c",))
    assert first.result == ["a", f"skipped: the decoder crashed ({name})", "b"]
    assert second.result == ["c"]


def test_two_crashing_items_are_both_left_out():
    [outcome] = run(("signal SIGSEGV", "a", "signal SIGABRT"))
    assert [item.split(":")[0] for item in outcome.result] == ["skipped", "a", "skipped"]


def test_task_that_crashes_without_the_item_too_is_given_up():
    outcomes = run(("a", "always crash"), ("b",))
    assert outcomes[0].died and "crashed (SIGSEGV)" in outcomes[0].failure
    assert outcomes[1].result == ["b"]


def test_interrupt_from_the_terminal_does_not_reach_the_workers(tmp_path):
    """Ctrl-c signals the whole process group; only the parent knows how to stop."""

    def interrupt(number: int, items: int, frames: int) -> None:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGINT)

    outcomes = run_tasks(
        JOB,
        [Task((f"touch {tmp_path}/pid", "busy 1.2"))],
        workers=1,
        on_progress=interrupt,
    )
    assert next(outcomes).result is not None


def test_item_that_hangs_is_left_out():
    began = time.monotonic()
    [outcome] = run(("a", "sleep 60", "b"), stall_seconds=1.0)
    assert outcome.result[1] == "skipped: the decoder made no progress for 1 s"
    assert time.monotonic() - began < 10


def test_slow_item_that_shows_life_is_left_alone():
    [outcome] = run(("busy 1.8",), stall_seconds=1.2)
    assert outcome.result == ["busy 1.8"]


def test_pause_of_everybody_is_not_a_stall(tmp_path, monkeypatch):
    """Ctrl-z and fg: the pool must not take its own sleep for the silence of the workers."""
    monkeypatch.setattr(pool, "_PAUSE_SECONDS", 1.2)
    files = [tmp_path / "a", tmp_path / "b"]
    tasks = [Task(("pid",)), *(Task((f"touch {file}", "busy 0.6")) for file in files)]
    outcomes = run_tasks(JOB, tasks, workers=3, stall_seconds=1.0)
    next(outcomes)
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    first, second = (int(file.read_text()) for file in files)
    for worker in (first, second):
        os.kill(worker, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(first, signal.SIGCONT)
    threading.Timer(0.3, os.kill, (second, signal.SIGCONT)).start()
    assert [outcome.result[1] for outcome in outcomes] == ["busy 0.6", "busy 0.6"]


def test_killed_worker_costs_its_task_and_is_not_repeated():
    """SIGKILL is what the kernel does when memory runs out; the rest goes on."""
    outcomes = run(("a", "signal SIGKILL"), ("a",))
    assert outcomes[0].died and outcomes[0].result is None
    assert "was killed (SIGKILL" in outcomes[0].failure and "memory" in outcomes[0].failure
    assert outcomes[0].item == 1
    assert outcomes[1].result == ["a"]


def test_stopped_worker_does_not_blame_its_item():
    """A batch system sends SIGTERM to every process of a job."""
    [outcome] = run(("signal SIGTERM",))
    assert outcome.died and "was stopped (SIGTERM)" in outcome.failure and outcome.item is None


def test_worker_that_exits_is_reported():
    [outcome] = run(("exit 7",))
    assert outcome.died and "ended with exit code 7" in outcome.failure


@pytest.mark.parametrize("workers", [0, 1])
def test_problem_a_job_reports_is_not_a_death(workers):
    outcomes = run(("raise ValueError",), ("raise OSError",), ("a",), workers=workers)
    assert [outcome.failure for outcome in outcomes] == [
        "told to raise ValueError",
        "told to raise OSError",
        "",
    ]
    assert not any(outcome.died for outcome in outcomes)


def test_program_error_in_a_job_is_a_death_with_a_traceback(capfd):
    [outcome] = run(("raise KeyError",))
    assert outcome.died and "exit code 1" in outcome.failure
    assert "told to raise KeyError" in capfd.readouterr().err


def test_progress_is_reported_per_task():
    seen: dict[int, tuple[int, int]] = {}
    run(
        ("a", "busy 0.8"),
        ("busy 0.8",),
        workers=2,
        on_progress=lambda number, items, frames: seen.update({number: (items, frames)}),
    )
    assert seen[0][0] == 1 and seen[0][1] > 3 and seen[1][0] == 0


def test_workers_are_replaced_after_a_number_of_tasks(monkeypatch):
    monkeypatch.setattr(pool, "_TASKS_PER_WORKER", 2)
    pids = [outcome.result[0] for outcome in run(*[("pid",)] * 5)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [2, 2, 1]


def test_closing_the_generator_ends_the_workers(tmp_path):
    outcomes = run_tasks(
        JOB, [Task(("pid",)), Task((f"touch {tmp_path}/pid", "sleep 60"))], workers=2
    )
    next(outcomes)
    wait_for((tmp_path / "pid").exists)
    outcomes.close()
    assert not alive(int((tmp_path / "pid").read_text()))


def test_workers_import_neither_jax_nor_the_main_module():
    [outcome] = run(("modules",))
    loaded = set(outcome.result[0].split(","))
    assert not loaded & {"jax", "flax", "tensorflow", "torch", "grain", "cv2", "pytest"}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def wait_for(condition, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_workers_of_a_killed_parent_end_on_their_own(tmp_path):
    script = textwrap.dedent(
        f"""
        from data_pipelines.ingest.pool import run_tasks
        from tests.data_pipelines.ingest.jobs import Task
        list(run_tasks({JOB!r}, [Task(("touch {tmp_path}/pid", "busy 60"))], 1))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    worker = int((tmp_path / "pid").read_text())
    assert alive(worker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not alive(worker))
