"""The launcher, with processes that need no jax."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internvideo_jax.launch import processes as launch
from tests.conftest import ROOT, environment


def start(code: str, *options: str, arguments: tuple[str, ...] = ()) -> subprocess.Popen:
    return subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "internvideo_jax.launch",
                "--backoff=0.05",
                *options,
                "--",
            ),
            *("python", "-c", "import os, sys, time, signal, pathlib\n" + code, *arguments),
        ],
        cwd=ROOT,
        env=environment(fast=False),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, *options: str, arguments: tuple[str, ...] = ()) -> tuple[int, str, str]:
    job = start(code, *options, arguments=arguments)
    output, errors = job.communicate(timeout=60)
    return job.returncode, output, errors


def test_processes_get_their_numbers_devices_and_a_prefix():
    # In one write: both processes share the pipe.
    show = "sys.stdout.write(' '.join(str(os.environ.get(n)) for n in ('JAX_NUM_PROCESSES', "
    show += "'JAX_PROCESS_ID', 'JAX_PLATFORMS', 'XLA_FLAGS', 'IVJ_JOB_TOKEN')) + '\\n')"
    code, output, _ = run(show, "--processes=2", "--devices-per-process=4")
    flags = "cpu --xla_force_host_platform_device_count=4"
    assert code == 0
    lines, tokens = zip(*(line.rsplit(" ", 1) for line in output.splitlines()), strict=True)
    assert sorted(lines) == [f"2 0 {flags}", f"[1] 2 1 {flags}"]
    assert len(set(tokens)) == 1 and len(tokens[0]) == 32
    code, output, _ = run(show)  # alone: the environment stays as it is
    assert output.split()[:2] == ["None", "None"]


def test_output_of_the_others_in_files(tmp_path):
    say = "print('from', os.environ['JAX_PROCESS_ID'])"
    code, output, _ = run(say, "--processes=3", f"--logs={tmp_path}/logs")
    assert (code, output) == (0, "from 0\n")
    assert (tmp_path / "logs/process-2.log").read_text() == "from 2\n"


def test_attempts_without_progress_are_counted(tmp_path):
    count = f"p = pathlib.Path({str(tmp_path)!r}) / 'n'; p.open('a').write('x')\n"
    code, _, errors = run(count + "os.kill(os.getpid(), 9)", "--restarts=2")
    assert code == 137 and (tmp_path / "n").read_text() == "xxx"
    assert "ends with code 137 after 2 restarts without progress; no checkpoint yet" in errors


def test_a_newer_checkpoint_starts_the_count_again(tmp_path):
    grow = """
steps = pathlib.Path(sys.argv[1].partition("=")[2]) / "checkpoints"
steps.mkdir(parents=True, exist_ok=True)
(steps / "9.orbax-checkpoint-tmp").mkdir(exist_ok=True)  # not complete, so no progress
n = len(list(steps.iterdir()))
if n < 4: (steps / str(n)).mkdir()
sys.exit(7)
"""
    code, _, errors = run(grow, "--restarts=1", arguments=(f"--workdir={tmp_path}",))
    # Three attempts leave a step each, the fourth, which is the restart of the third, does not.
    assert code == 7 and errors.count("ended with code 7") == 4
    assert "after 1 restarts without progress; the newest checkpoint is step 3" in errors


def test_settings_are_not_tried_again_and_win_over_what_they_caused():
    code, _, errors = run(
        "i = int(os.environ['JAX_PROCESS_ID']); time.sleep(i / 5); sys.exit((75, 2)[i])",
        "--processes=2",
        "--restarts=5",
    )
    assert code == 2 and "restart" not in errors


@pytest.mark.parametrize(
    ("code", "attempts"),
    [(0, 1), (2, 1), (3, 1), (130, 1), (143, 1), (1, 2), (70, 2), (75, 4), (7, 4), (134, 4)],
)
def test_every_code_of_the_table_is_obeyed(tmp_path, monkeypatch, code, attempts):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers of pytest stay
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.01)
    job = tmp_path / "job.sh"
    job.write_text(f"printf x >> {tmp_path}/attempts; exit {code}")
    options = launch.parse(["--restarts=3", "--backoff=0.01", "--", "sh", str(job)])
    assert launch.launch(options) == code
    assert (tmp_path / "attempts").read_text() == "x" * attempts


def test_a_bug_after_a_fault_that_passed_is_tried_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    job = tmp_path / "job.sh"
    job.write_text(
        f"cd {tmp_path}; printf x >> n; case $(cat n) in x) mkdir -p checkpoints/1; exit 75;; esac;"
        " exit 70"
    )
    options = launch.parse(
        ["--restarts=5", "--backoff=0.01", "--", "sh", str(job), f"--workdir={tmp_path}"]
    )
    assert launch.launch(options) == 70
    assert (tmp_path / "n").read_text() == "xxx"


def test_the_one_that_died_gives_the_code():
    assert launch.verdict([0, 0]) == 0
    assert launch.verdict([75, 137, 75]) == 137
    assert launch.verdict([75, 75]) == 75
    assert launch.verdict([143, 143]) == 143
    assert launch.verdict([143, 137]) == 137
    assert launch.verdict([75, 2]) == 2
    assert launch.verdict([75, 3, 137]) == 3
    assert launch.verdict([75, 70]) == 70


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all_and_a_stopped_job_is_not_started_again(tmp_path, number):
    wait = f"""
def stop(number, _):
    print("stopped", flush=True); sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
pathlib.Path({str(tmp_path)!r}, os.environ["JAX_PROCESS_ID"]).touch()
time.sleep(60)
"""
    job = start(wait, "--processes=2", "--restarts=3")
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    job.send_signal(number)
    output, errors = job.communicate(timeout=30)
    assert job.returncode == 128 + number, errors
    assert output.count("stopped") == 2 and "restart" not in errors


def _runs(process: str) -> bool:
    try:
        return bool(Path("/proc", process, "cmdline").read_bytes())  # empty: a zombie
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does it on Linux only")
def test_a_killed_launcher_leaves_nothing_behind(tmp_path):
    job = start(
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch(); time.sleep(60)",
        "--processes=2",
    )
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.02)
    job.kill()
    job.communicate(timeout=30)
    deadline = time.monotonic() + 10  # of their 60 seconds
    while alive := [path.name for path in tmp_path.iterdir() if _runs(path.name)]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.02)


def test_a_process_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.5)
    code = (
        "import os, sys, time\nif os.environ['JAX_PROCESS_ID'] == '1': sys.exit(9)\ntime.sleep(60)"
    )
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the handlers of pytest stay
    options = launch.parse(["--processes=2", "--", "python", "-c", code])
    began = time.monotonic()
    assert launch.launch(options) == 9
    assert time.monotonic() - began < 20


def test_workdir_and_usage(capsys):
    assert launch.workdir_of(["x", "--workdir=a/b"]) == "a/b"
    assert launch.workdir_of(["x", "--workdir", "c"]) == "c"
    assert launch.workdir_of(["x"]) is None
    for bad in (["--processes=0", "--", "x"], ["--processes=2"]):
        with pytest.raises(SystemExit) as error:
            launch.parse(bad)
        assert error.value.code == 2
    with pytest.raises(SystemExit):
        launch.parse(["--help"])
    assert "exit codes" in capsys.readouterr().out
    assert launch.main(["--", str(Path(os.sep, "no", "such", "program"))]) == 2
