"""Weights by name, from servers of our own on the loopback that break off, move and lie."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.commands.exit_codes import PassingFault
from internvideo_jax.checkpoint.initial import check_source, load_source
from internvideo_jax.checkpoint.metadata import weights_provenance
from internvideo_jax.weights import download, named, safetensors_files, zoo
from internvideo_jax.weights.__main__ import main
from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.files import FORMAT
from tests.conftest import ROOT

PAGE = b"<!DOCTYPE html><html>please log in</html>"


@dataclasses.dataclass
class Server:
    """What it has by path, and how it misbehaves."""

    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    moved: dict[str, str] = dataclasses.field(default_factory=dict)
    refused: dict[str, int] = dataclasses.field(default_factory=dict)
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    breaks: int = 0  # answers left that end half-way
    ranges: bool = True
    asked: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # path, Range
    base: str = ""

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path, wanted = request.path, request.headers.get("Range", "")
        self.asked.append((path, wanted))
        if path in self.moved:
            request.send_response(302)
            request.send_header("Location", self.moved[path])
            for name, value in self.headers.items():
                request.send_header(name, value)
            request.end_headers()
            return
        if path in self.refused or path not in self.files:
            request.send_error(self.refused.get(path, 404))
            return
        content, begin = self.files[path], 0
        version = f'"{hashlib.md5(content).hexdigest()}"'
        if wanted and self.ranges and request.headers.get("If-Range") == version:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(content):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(content)}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            request.send_response(206)
            span = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            request.send_header("Content-Range", span)
        else:
            request.send_response(200)
        body = content[begin:]
        request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", version)
        request.end_headers()
        if self.breaks:
            self.breaks -= 1
            body = body[: len(body) // 2]
            request.close_connection = True
        request.wfile.write(body)


@pytest.fixture
def server():
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.answer(self)

        def log_message(self, format, *args):
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.base = f"http://127.0.0.1:{serving.server_port}"
    thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    serving.shutdown()
    serving.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The cache, in a folder of the test."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv(named.FOLDER, str(tmp_path / "cache"))
    for name in (named.MIRROR, named.OFFLINE, "HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def weights(tmp_path) -> bytes:
    """A file of ours."""
    tensors = {"encoder/blocks/norm1/scale": np.arange(3000, dtype=np.float32).reshape(1, -1)}
    known = {"format": FORMAT, "kind": "videomae_pretrain", "geometry": '{"patch": 16}'}
    safetensors_files.write(tmp_path / "made.safetensors", tensors, known)
    return (tmp_path / "made.safetensors").read_bytes()


@pytest.fixture
def published(server, monkeypatch, weights):
    """A zoo of one model, `some/model` or `short`, on the server."""

    def make(**changes) -> Entry:
        server.files["/model.safetensors"] = weights
        entry = Entry(
            name="some/model", kind="videomae_pretrain", size="base", data="", config="",
            changes={"decoder_depth": 4}, short="short",
            **{"url": f"{server.base}/model.safetensors", **changes},
        )  # fmt: skip
        monkeypatch.setattr(zoo, "sources", lambda: {"some": (entry,)})
        return entry

    return make


def ranges(server: Server) -> list[str]:
    return [wanted for _, wanted in server.asked]


def test_a_name_is_fetched_once_and_taken_everywhere(server, published, weights, folder, capsys):
    sha256 = hashlib.sha256(weights).hexdigest()
    published(sha256=sha256, bytes=len(weights))
    check_source("short")  # as a run does before its first step
    (place,) = folder.rglob("model.safetensors")
    assert place.read_bytes() == weights and list(folder.rglob("*.part*")) == []
    for name in ("some/model", "model", "short", f"{server.base}/model.safetensors"):
        assert named.resolve(name) == place
        assert load_source(name).params["encoder/blocks/norm1/scale"].shape == (1, 3000)
    assert weights_provenance("short", {})["checkpoint"] == str(place)
    assert len(server.asked) == 1
    capsys.readouterr()
    assert main(["get", "short"]) == 0 and capsys.readouterr().out.strip() == str(place)
    assert main(["inspect", "short"]) == 0 and "videomae_pretrain" in capsys.readouterr().out


def test_what_broke_off_is_continued(server, published, weights, folder):
    published()
    server.breaks = 3
    assert named.resolve("short").read_bytes() == weights
    starts = [int(wanted[6:-1]) for wanted in ranges(server)[1:]]
    assert ranges(server)[0] == "" and starts == sorted(starts) and starts[0] == len(weights) // 2


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, published, weights, folder):
    published()
    server.breaks, kept = 99, download.TRIES
    server.ranges = False  # every answer begins anew, so none brings more than the first
    with pytest.raises(PassingFault, match=r"the connection ended at .* bytes that came are kept"):
        named.resolve("short")
    assert len(server.asked) == kept
    server.breaks, server.ranges = 0, True
    assert named.resolve("short").read_bytes() == weights
    assert ranges(server)[-1] == f"bytes={len(weights) // 2}-"


@pytest.mark.parametrize("more", [b"", b"and more"])
def test_a_whole_part_is_taken_and_one_that_is_too_long_begins_anew(
    server, published, weights, folder, more
):
    published()
    named.resolve("short").rename(part := next(folder.rglob("*.safetensors")).with_name("x"))
    part = part.rename(part.with_name("model.safetensors.part"))
    part.write_bytes(weights + more)
    version = f'"{hashlib.md5(weights).hexdigest()}"'
    part.with_name(f"{part.name}.version").write_text(version)
    assert named.resolve("short").read_bytes() == weights
    assert len(server.asked) == (3 if more else 2)


def test_a_file_that_changed_meanwhile_begins_anew(server, published, weights, folder):
    published()
    server.breaks, server.ranges = download.TRIES, False
    with pytest.raises(PassingFault):
        named.resolve("short")
    changed = weights[:-4] + b"\0\0\0\1"
    server.files["/model.safetensors"], server.ranges = changed, True
    assert named.resolve("short").read_bytes() == changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, r"the sha256 of what came is \w{16}\.\.\., expected 0000"),
        ({"bytes": 5}, "its size is not 5 bytes, as expected; it was discarded"),
    ],
)
def test_another_content_is_discarded(published, folder, changes, message):
    published(**changes)
    with pytest.raises(ValueError, match=message):
        named.resolve("short")
    assert not [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".part")]


def test_redirects_are_followed_and_what_the_hub_states_is_compared(
    server, weights, folder, monkeypatch
):
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    at = "/owner/some.repo/resolve/main/a/model.safetensors"
    server.moved[at] = f"{server.base}/store/1"
    server.files["/store/1"] = weights
    server.headers["X-Linked-Etag"] = f'"{hashlib.sha256(weights).hexdigest()}"'
    place = named.resolve("hf://owner/some.repo/a/model.safetensors")
    assert place.read_bytes() == weights and place.parts[-2:] == ("a", "model.safetensors")
    place.unlink()
    server.headers["X-Linked-Etag"] = f'"{"1" * 64}"'
    with pytest.raises(ValueError, match=r"expected 1111"):
        named.resolve("hf://owner/some.repo/a/model.safetensors")


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (404, ValueError, r"the server has no such file \(404\); was it moved\?"),
        (410, ValueError, r"no such file \(410\)"),
        (401, ValueError, "gated or private. Accept its terms"),
        (403, ValueError, "set HF_TOKEN"),
        (400, ValueError, "refused: 400"),
        (503, PassingFault, r"cannot be fetched \(Service Unavailable\)\. Start"),
    ],
)
def test_a_server_that_refuses_is_one_message(server, published, code, kind, message):
    published()
    server.refused["/model.safetensors"] = code
    with pytest.raises(kind, match=message):
        named.resolve("short")


def test_a_page_instead_of_weights_is_told_and_not_kept(server, published, folder):
    published()
    server.files["/model.safetensors"] = PAGE
    with pytest.raises(ValueError, match="a web page, not weights"):
        named.resolve("short")
    assert not list(folder.rglob("model.safetensors"))


def test_without_network_the_message_says_where_a_file_could_be_put(published, folder, capsys):
    published(url="http://127.0.0.1:9/gone/model.safetensors")  # the discard port: nobody listens
    assert main(["get", "short"]) == 75
    said = capsys.readouterr().err
    assert "Connection refused" in said and f"put the file at {folder}/127.0.0.1_9/gone" in said
    assert "Traceback" not in said
    assert [said.count(f"Connection refused; try {n} in 0 s\n") for n in (2, 3, 4, 5)] == [
        1,
        1,
        1,
        0,
    ]


def test_mirrors_and_offline_folders(server, published, weights, folder, tmp_path, monkeypatch):
    published(url="http://127.0.0.1:9/gone/model.safetensors")
    server.files["/mirror/127.0.0.1_9/gone/model.safetensors"] = weights
    monkeypatch.setenv(named.MIRROR, f"{server.base}/mirror/")
    place = named.resolve("short")
    assert place.read_bytes() == weights
    place.unlink()
    monkeypatch.setenv(named.OFFLINE, "1")
    monkeypatch.setenv(named.MIRROR, str(tmp_path / "disk"))
    with pytest.raises(ValueError, match=f"not in .* and {named.OFFLINE} is set: nothing is fet"):
        named.resolve("short")
    there = tmp_path / "disk/127.0.0.1_9/gone/model.safetensors"
    there.parent.mkdir(parents=True)
    there.write_bytes(weights)
    assert named.resolve("short").read_bytes() == weights


def test_a_repository_is_a_folder_with_all_files_of_its_index(server, folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    cases = Path(__file__).resolve().parents[2] / "golden/video_language/viclip_full"
    tensors, _ = safetensors_files.read(cases / "weights.safetensors")
    at, names = "/o/r/resolve/v1/", sorted(tensors)
    where = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    for file in set(where.values()):
        mine = {name: tensors[name] for name in names if where[name] == file}
        safetensors_files.write(folder.parent / file, mine, {"format": "pt"})
        server.files[at + file] = (folder.parent / file).read_bytes()
    index = json.dumps({"weight_map": where}).encode()
    server.files[f"{at}model.safetensors.index.json"] = index
    server.files[f"{at}config.json"] = b"{}"
    found = load_source("hf://o/r@v1")
    assert found.params["temperature"].shape == ()
    place = named.resolve("hf://o/r@v1")
    assert sorted(path.name for path in place.iterdir() if path.suffix != ".lock") == [
        "config.json", "model.safetensors.index.json", "part-0.safetensors", "part-1.safetensors",
    ]  # fmt: skip
    server.asked.clear()
    monkeypatch.setenv(named.OFFLINE, "1")
    assert named.resolve("hf://o/r@v1") == place and not server.asked  # as it is here
    monkeypatch.delenv(named.OFFLINE)
    with pytest.raises(ValueError, match=r"hf://o/empty: has none of .*; name the weight file"):
        named.resolve("hf://o/empty")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("viclip-l15", "no such file or run, and no published checkpoint 'viclip-l15': did you m"),
        ("runs-of-mine", "'runs-of-mine': `ivj weights list` shows all 1"),
        ("hf://owner", "expected hf://OWNER/REPOSITORY"),
        ("https://host/", "not the address of a file"),
        ("https://host/a/%2e%2e/b", "not the address of a file"),
        ("videomae/b_k400_1600e", "no address of its file is known, only that it is published"),
    ],
)
def test_what_no_name_stands_for_is_said(source, message):
    with pytest.raises(ValueError, match=message):
        named.resolve(source)


def test_paths_are_never_taken_for_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "viclip-l14").mkdir()
    assert named.resolve("viclip-l14") == Path("viclip-l14")
    for path in ("runs/viclip", "./clip-b16", "/none", "a.pth"):
        assert named.resolve(path) == Path(path)


def test_a_file_without_an_address_may_be_put_in_its_place(folder):
    place = folder / "videomae/b_k400_1600e.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    assert named.resolve("videomae/b_k400_1600e") == place


def test_every_row_says_where_its_file_is_or_that_it_is_not_known():
    entries = zoo.entries()
    page = (ROOT / "docs/models.md").read_text()
    assert page.count("no address") > sum(not entry.url for entry in entries) > 0
    for entry in entries:
        assert entry.licence
        assert not entry.sha256 or len(entry.sha256) == 64
        assert not entry.url or (entry.file and entry.url.startswith("https://"))
    addresses = [entry.url for entry in entries if entry.url]
    shorts = [entry.short for entry in entries if entry.short]
    assert len(set(addresses)) == len(addresses) and len(set(shorts)) == len(shorts)
    assert zoo.find("viclip-l14").name == "viclip/ViClip-InternVid-10M-FLT"
