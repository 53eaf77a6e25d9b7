"""The meeting of processes before jax starts, and what they hear of each other, in threads."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_pipelines.commands.exit_codes import ExitCode, exit_code_of
from internvideo_jax.launch import processes as launch
from internvideo_jax.parallel import multihost, peers


@pytest.fixture
def address(monkeypatch) -> str:
    monkeypatch.delenv("IVJ_PEER_PORT", raising=False)
    return f"localhost:{launch.free_port()}"


def gather(address: str, jobs: list[tuple[int, int]], timeout: float = 10.0):
    """Peers or the error of each (processes, process), all at once."""

    def one(job):
        try:
            return peers.meet(address, *job, timeout)
        except RuntimeError as error:
            return str(error)

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(one, jobs))


class Heard:
    """What a watcher reported."""

    def __init__(self, watched: peers.Peers):
        self.event, self.what, self.code = threading.Event(), "", None
        watched.watch(self._lost)

    def _lost(self, what: str, code: int | None) -> None:
        self.what, self.code = what, code
        self.event.set()


def test_everybody_hears_within_a_second_who_is_gone(address):
    zero, one, two = gather(address, [(3, 0), (3, 1), (3, 2)])
    heard = Heard(zero), Heard(one)
    two._lines[0].connection.shutdown(socket.SHUT_RDWR)  # what the kernel does for a killed process
    for each in heard:
        assert each.event.wait(2.0)
        assert each.what.startswith("process 2 or its host is gone") and each.code is None


def test_the_end_of_process_0_reaches_the_others(address):
    zero, one = gather(address, [(2, 0), (2, 1)])
    heard = Heard(one)
    zero._lines[1].connection.shutdown(socket.SHUT_RDWR)
    assert heard.event.wait(2.0) and heard.what.startswith("process 0 or its host is gone")


def test_an_error_is_told_with_its_code_and_a_goodbye_is_no_error(address):
    zero, one, two = gather(address, [(3, 0), (3, 1), (3, 2)])
    heard_zero, heard_two = Heard(zero), Heard(two)
    one.leave("no such clip", 2)
    for each in (heard_zero, heard_two):
        assert each.event.wait(2.0)
        assert (each.what, each.code) == ("process 1 ended with an error: no such clip", 2)

    zero, one = gather(f"localhost:{launch.free_port()}", [(2, 0), (2, 1)])
    heard = Heard(zero)
    one.leave()
    one._lines[0].connection.close()
    assert not heard.event.wait(1.5) and not zero.lost


def test_a_silent_host_counts_as_gone(address, monkeypatch):
    monkeypatch.setattr(peers, "SILENCE_SECONDS", 1.0)
    zero, _ = gather(address, [(2, 0), (2, 1)])  # process 1 never beats: it does not watch
    heard = Heard(zero)
    assert heard.event.wait(5.0) and "silent for" in heard.what


def test_beats_keep_a_quiet_job_alive(address, monkeypatch):
    monkeypatch.setattr(peers, "SILENCE_SECONDS", 2.5)
    heard = [Heard(each) for each in gather(address, [(2, 0), (2, 1)])]
    assert not heard[0].event.wait(4.0) and not heard[1].event.is_set()


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([(3, 0), (2, 1)], "process 1 was started as one of 2, process 0 as one of 3"),
        ([(3, 0), (3, 1), (3, 1)], "two processes say that they are number 1 of 3"),
    ],
)
def test_processes_that_do_not_fit_together(address, jobs, message):
    for answer in gather(address, jobs):
        assert message in str(answer)


def test_missing_processes_are_named_to_all(address):
    for answer in gather(address, [(4, 0), (4, 2)], timeout=1.0):
        assert "after 1 s 2 of 4 processes had joined" in str(answer)
        assert "missing: 1, 3." in str(answer)


STRANGERS = {
    "nothing": b"",
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a number": b"7\n",
    "a list": b'[{"kind": "hello"}]\n',
    "hello of old": b'{"kind": "hello", "process": 1, "processes": 2}\n',
    "hello unasked": b'{"kind": "hello", "process": 1, "processes": 2, "proof": "x"}\n',
    "another size": b'{"kind": "hello", "process": 1, "processes": 9, "proof": ""}\n',
    "no number": b'{"kind": "hello", "process": "1", "processes": [], "proof": null}\n',
    "no kind": b'{"process": 1}\n',
    "a kind that is a list": b'{"kind": ["hello"]}\n',
    "refused": b'{"kind": "refused", "what": "go away", "code": 2}\n',
    "lost": b'{"kind": "lost", "what": "x", "code": 2}\n',
    "knocks twice": b'{"kind": "knock", "nonce": "a"}\n{"kind": "knock", "nonce": "b"}\n',
    "knocks and guesses": b'{"kind": "knock", "nonce": ""}\n'
    b'{"kind": "hello", "process": 1, "processes": 3, "proof": "\\ud800"}\n',
    "knocks and copies": b'{"kind": "knock", "nonce": "\\ud800"}\n'
    b'{"kind": "hello", "process": true, "processes": 3, "proof": ""}\n',
    "digits": b'{"kind": "hello", "process": ' + b"9" * 5000 + b"}\n",
    "deep": b"[" * 60000 + b"\n",
    "a line without an end": b"a" * 10**6,
    "zeros": bytes(5000),
    "not UTF-8": b"\xff\xfe\n",
}


@pytest.mark.parametrize("token", ["", "secret"])
def test_strangers_neither_end_nor_delay_a_meeting(address, monkeypatch, capsys, token):
    monkeypatch.setenv(peers.TOKEN, token)
    host, port = "localhost", int(address.rpartition(":")[2]) + 1
    with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as stack:
        zero = pool.submit(peers.meet, address, 2, 0, 60.0)
        began = time.monotonic()
        for number, data in enumerate(STRANGERS.values()):
            while True:
                try:
                    stranger = socket.create_connection((host, port), timeout=20)
                    break
                except ConnectionRefusedError:  # not up yet
                    time.sleep(0.01)
            stack.enter_context(stranger)
            with contextlib.suppress(ConnectionError):
                stranger.sendall(data)
            if number % 2:
                stranger.close()
        one = pool.submit(peers.meet, address, 2, 1, 60.0)
        found = zero.result(), one.result()
        assert time.monotonic() - began < peers.HANDSHAKE_SECONDS
    heard = [Heard(each) for each in found]
    found[1].leave("no such clip", 2)
    assert heard[0].event.wait(2.0) and heard[0].code == 2
    shown = capsys.readouterr().err
    assert shown.count("warning: ignored a connection from ") == 1 and "Traceback" not in shown


def test_a_silent_stranger_is_dropped(address, monkeypatch):
    monkeypatch.setattr(peers, "HANDSHAKE_SECONDS", 0.3)
    with ThreadPoolExecutor(1) as pool:
        zero = pool.submit(peers.meet, address, 2, 0, 30.0)
        time.sleep(0.3)
        with socket.create_connection(("localhost", int(address[10:]) + 1), timeout=20) as one:
            assert one.recv(100) == b""
        assert gather(address, [(2, 1)])[0].process == 1 and zero.result().processes == 2


def test_another_token_is_another_job(address, monkeypatch, capsys):
    real = peers.prove
    monkeypatch.setattr(
        peers,
        "prove",
        lambda nonce, *facts: real(nonce, *facts, threading.current_thread().name[-1]),
    )
    answers = gather(address, [(2, 0), (2, 1)], timeout=1.5)
    assert "after 2 s 1 of 2 processes had joined" in answers[0]
    assert "is no process of this job, or has another IVJ_JOB_TOKEN" in answers[1]
    assert "another IVJ_JOB_TOKEN" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b'{"kind": "go"}\n',
        b'{"kind": "refused", "what": "go", "code": 2}\n',
        b'{"kind": "challenge", "nonce": "a", "proof": "b"}\n',
    ],
)
def test_what_answers_in_place_of_process_0_is_not_believed(address, answer):
    """Another program at the port; it makes room, and process 0 comes."""
    port = int(address.rpartition(":")[2]) + 1
    server = socket.create_server(("127.0.0.1", port))
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(peers.meet, address, 2, 1, 30.0)
        with server:
            for _ in range(2):
                connection, _ = server.accept()
                connection.sendall(answer)
                connection.close()
        assert not one.done()
        zero = pool.submit(peers.meet, address, 2, 0, 30.0)
        assert one.result().process == 1 and zero.result().process == 0


def test_no_message_on_a_line_of_the_job_is_told_and_ignored(address, capsys):
    zero, one = gather(address, [(2, 0), (2, 1)])
    heard = Heard(zero)
    one._lines[0].connection.sendall(b'nonsense\n{"kind": "lost"}\n{"kind": "beat"}\n[]\n')
    one._lines[0].connection.sendall(b"x" * 30000)
    assert not heard.event.wait(1.2)
    one.leave("an error", 3)
    assert heard.event.wait(2.0) and heard.code == 3
    assert "warning: process 1 sent what is no message" in capsys.readouterr().err


def test_ends_of_a_meeting_have_their_codes(address):
    def code(job, timeout=0.5) -> int:
        with pytest.raises(RuntimeError) as caught:
            peers.meet(address, *job, timeout)
        return exit_code_of(caught.value)

    assert code((2, 1)) == code((2, 0)) == ExitCode.AGAIN  # nobody there, somebody missing
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        assert code((2, 0)) == ExitCode.AGAIN
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda job: code(job, 20.0), [(3, 0), (2, 1)]))
    assert codes == [ExitCode.FAILED] * 2


def test_a_coordinator_that_does_not_answer_and_a_port_that_is_taken(address):
    (answer,) = gather(address, [(2, 1)], timeout=0.5)
    port = int(address.rpartition(":")[2])
    assert f"process 0 at {address} could not be reached for 0 s on port {port + 1}" in str(answer)
    (answer,) = gather("no-such-host.invalid:2000", [(2, 1)], timeout=0.5)
    assert "process 0 at no-such-host.invalid:2000 could not be reached" in str(answer)
    with socket.create_server(("", port)):
        (answer,) = gather(address, [(2, 0)])
    assert f"process 0 cannot listen on port {port} (Address already in use)" in str(answer)


@pytest.fixture
def clean(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith(("JAX_", "SLURM_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_")):
            monkeypatch.delenv(name)
    return monkeypatch


def test_a_job_by_arguments_or_environment(clean):
    assert multihost.find_job() is None
    assert multihost.find_job("a:1", 2, 1) == ("a:1", 2, 1)
    assert multihost.find_job("[::1]:12", 2, 0) == ("[::1]:12", 2, 0)
    assert multihost.find_job("a:1", 1, 0) is None
    with pytest.raises(ValueError, match=r"--coordinator is set but --process is not; a job"):
        multihost.find_job("a:1", 2)
    with pytest.raises(ValueError, match=r"--processes is set but --coordinator is not"):
        multihost.find_job(processes=2)
    with pytest.raises(ValueError, match="--process = 2 with --processes = 2: expected 0 to 1"):
        multihost.find_job("a:1", 2, 2)
    with pytest.raises(ValueError, match="--coordinator = 'a': expected host:port"):
        multihost.find_job("a", 2, 1)
    clean.setenv("JAX_NUM_PROCESSES", "4")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is set but JAX_COORDINATOR_ADDRESS"):
        multihost.find_job()
    clean.setenv("JAX_COORDINATOR_ADDRESS", "b:7")
    clean.setenv("JAX_PROCESS_ID", "x")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID = 'x': expected a whole number"):
        multihost.find_job()
    clean.setenv("JAX_PROCESS_ID", "3")
    assert multihost.find_job() == ("b:7", 4, 3)
    assert multihost.find_job("a:1", 2, 1) == ("a:1", 2, 1)  # flags win


def test_a_slurm_step(clean):
    clean.setenv("SLURM_STEP_ID", "0")
    clean.setenv("SLURM_NTASKS", "3")
    with pytest.raises(ValueError, match="a Slurm step of 3 tasks, .*start with srun"):
        multihost.find_job()
    for name, value in (
        ("JOB_ID", "17"),
        ("STEP_NODELIST", "node[07-09]"),
        ("PROCID", "2"),
        ("LOCALID", "0"),
    ):
        clean.setenv(f"SLURM_{name}", value)
    assert multihost.find_job() == (f"node07:{65536 - 4096 + 17}", 3, 2)
    clean.setenv("SLURM_NTASKS", "1")
    assert multihost.find_job() is None


def test_tpu_slices_of_gke(clean):
    """The variables that GKE sets in the pods of a JobSet on one slice and on two."""
    from jax._src.clusters import cloud_tpu_cluster

    clean.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    clean.setenv("TPU_SKIP_MDS_QUERY", "1")
    clean.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    clean.setenv("TPU_WORKER_ID", "0")
    for name in ("MEGASCALE_COORDINATOR_ADDRESS", "MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID"):
        clean.setenv(name, "")
    assert multihost.find_job() is None  # one host
    clean.setenv("TPU_WORKER_HOSTNAMES", "localhost,other-host")
    clean.setenv("TPU_WORKER_ID", "1")
    assert multihost.find_job() == ("localhost:8482", 2, 1)
    clean.setenv("MEGASCALE_COORDINATOR_ADDRESS", "127.0.0.1:8080")
    clean.setenv("MEGASCALE_NUM_SLICES", "2")
    clean.setenv("MEGASCALE_SLICE_ID", "1")
    assert multihost.find_job() == ("127.0.0.1:8482", 4, 3)
    clean.setenv("JAX_PLATFORMS", "cpu")  # a rehearsal on a TPU VM
    assert multihost.find_job() is None
