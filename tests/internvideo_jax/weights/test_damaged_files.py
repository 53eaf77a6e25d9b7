"""Files that arrived cut off or damaged, and files of other kinds; at the end with torch."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from internvideo_jax.weights import files, torch_files
from internvideo_jax.weights.__main__ import main
from tests.internvideo_jax.weights.made import small_weights, torch_file, with_parts


def refusal(path: Path, content: bytes, error: type[Exception] = ValueError) -> str:
    """The one message about a file of this content; it names the file."""
    path.write_bytes(content)
    with pytest.raises(error) as found:
        files.load(path)
    message = str(found.value)
    assert message.startswith(f"{path}: ") and "weights_only" not in message
    return message


def place_of(data: bytes, part: str) -> slice:
    """Where the bytes of a stored part of a zip archive lie."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = archive.getinfo(part)
    at = member.header_offset + 30 + len(part)
    return slice(at, at + member.file_size)


@pytest.mark.parametrize("damage", ["bit", "hole", "swapped"])
def test_a_damaged_tensor_of_a_torch_file_is_named(damage, tmp_path):
    data, names = bytearray(torch_file()), list(small_weights())
    number = names.index("blocks.0.attn.qkv.weight")
    place = place_of(bytes(data), f"archive/data/{number}")
    if damage == "bit":
        data[place.start + 77] ^= 0x10
    elif damage == "hole":
        data[place.start : place.start + 64] = bytes(64)
    else:
        data[place.start : place.start + 8] = data[place.start + 8 : place.start + 16]
    message = refusal(tmp_path / "x.pth", bytes(data))
    assert f"first archive/data/{number} (blocks.0.attn.qkv.weight): Bad CRC-32" in message
    assert "damaged, download it again: 1 of" in message


def test_damaged_parts_are_counted(tmp_path):
    data = bytearray(torch_file())
    for name in ("archive/data.pkl", "archive/data/3"):
        data[place_of(bytes(data), name).start + 2] ^= 1
    assert "2 of 22 parts are not what was written, first archive/data.pkl: " in refusal(
        tmp_path / "x.pth", bytes(data)
    )


def test_a_torch_file_cut_anywhere_is_cut_off(tmp_path):
    data = torch_file()
    ends = [1, 2, 3, 4, 5, 29, *range(60, len(data), 97), len(data) - 1]
    for end in ends:
        message = refusal(tmp_path / "x.pth", data[:end])
        assert "the file is cut off: download it again" in message, end


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "published"])
def test_a_safetensors_file_cut_anywhere_is_cut_off(ours, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(small_weights()))
    if ours:
        files.save_ours(path, files.load(path))
    data = path.read_bytes()
    for end in [1, 7, 8, 9, 100, *range(200, len(data), 131), len(data) - 1]:
        message = refusal(path, data[:end])
        assert "the file is cut off: download it again" in message, end


def flipped(data: bytes, at: int, rng: random.Random) -> bytes:
    """The data with one bit of the byte `at` turned."""
    changed = bytearray(data)
    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def test_a_flipped_bit_anywhere_in_our_own_file_is_refused_or_changes_nothing(tmp_path):
    path, rng = tmp_path / "x.safetensors", random.Random(0)
    path.write_bytes(save(small_weights()))
    whole = files.load(path)
    files.save_ours(path, whole)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    places = [*rng.sample(range(8 + length), 150), *rng.sample(range(8 + length, len(data)), 150)]
    refused = 0
    for at in places:
        path.write_bytes(flipped(data, at, rng))
        try:
            found = files.load(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            continue
        assert found.kind == whole.kind and dict(found.geometry) == dict(whole.geometry)
        assert all(found.params[name].tobytes() == v.tobytes() for name, v in whole.params.items())
    assert refused > 280


def with_header(**changes: str) -> bytes:
    """A file of ours whose header says something else, without checksums that would tell."""
    texts = {"format": "internvideo_jax", "kind": "videomae_classifier", "geometry": '{"patch": 4}'}
    kept = {name: text for name, text in (texts | changes).items() if text is not None}
    return save({"head/bias": np.zeros(2, np.float32)}, kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": None}, "its header names the model ''"),
        ({"kind": "os:system"}, "its header names the model 'os:system': .*known: clip"),
        ({"kind": "videomae_clasifier"}, "did you mean 'videomae_classifier'"),
        ({"geometry": None}, "its header has the geometry ''; expected JSON such as"),
        ({"geometry": "{x"}, "its header has the geometry '{x'"),
        ({"geometry": "[1]"}, r"its header has the geometry '\[1\]'"),
        ({"geometry": '{"patch": "16"}'}, "its header has the geometry"),
        ({"geometry": '{"patch": 0}'}, "its header has the geometry"),
        ({"geometry": '{"patch": true}'}, "its header has the geometry"),
        ({"geometry": '{"patch": 4, "pos_table": ["sincos"]}'}, "its header has the geometry"),
        ({"geometry": '{"patch": 1e999}'}, "its header has the geometry"),
        ({"geometry": f'{{"patch": {"9" * 5000}}}'}, "its header has the geometry"),
        ({"geometry": "[" * 100_000}, "its header has the geometry"),
        ({"crc32": "{"}, "its checksums cannot be read"),
        ({"crc32": "7"}, "its checksums cannot be read"),
        ({"crc32": '{"head/bias": 1}'}, "damaged, take another copy: 2 of 2 parts"),
    ],
)
def test_a_header_that_is_not_ours(changes, message, tmp_path):
    assert re.search(message, refusal(tmp_path / "x.safetensors", with_header(**changes)))


def header(content: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def one(dtype: str, shape: list[int], size: int, body: int | None = None) -> bytes:
    """A file of one tensor that says it has `size` bytes and has `body`."""
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    return header({"a": entry}, bytes(size if body is None else body))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (one("F32", [2**62, 4], 8), "not a readable safetensors file"),
        (one("F32", [1] * 70, 4), "not a readable safetensors file"),
        (one("F32", [0, 2**62, 2**10], 0), "not a readable safetensors file"),
        (one("F32", [1], 4, body=9), "not a readable safetensors file"),
        (one("I4", [2], 1), "I4"),
        (one("F8_E4M3", [1], 1), "quantised weights (1 tensors, first a F8_E4M3)"),
        (header({"__metadata__": {"a": 1}}), "damaged header"),
        (header(b"{" * 9), "damaged header"),
        (header(b"{\xff\xfe}"), "damaged header"),
        (header(b'{"a":' * 10_000), "damaged header"),
        (header({}, length=10**12), "header too large"),
    ],
)
def test_headers_that_make_no_sense(data, message, tmp_path):
    assert message in refusal(tmp_path / "x.safetensors", data)


def archive(make) -> bytes:
    out = io.BytesIO()
    make(out)
    return out.getvalue()


def tar_of(out: io.BytesIO) -> None:
    with tarfile.open(fileobj=out, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.pth"))


def zip_of(out: io.BytesIO, **parts: bytes) -> None:
    with zipfile.ZipFile(out, "w") as file:
        for name, content in parts.items():
            file.writestr(name.replace("__", "/").replace("_", "."), content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"weights", mtime=0), "a gzip file; unpack it"),
        (archive(tar_of), "a tar archive; unpack it"),
        (archive(lambda out: np.savez(out, a=np.zeros(3))), "a zip archive, but none that torch"),
        (archive(lambda out: np.save(out, np.zeros(3))), "a numpy array"),
        (archive(lambda out: zip_of(out, x_pth=b"1")), r"none that torch wrote \(x.pth\)"),
        (archive(lambda out: zip_of(out, a__constants_pkl=b"1")), "a TorchScript archive"),
        (archive(lambda out: zip_of(out, a__data_pkl=b"\x80\x02X")), r"torch file \(data.pkl: "),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"Entry not found", "a text, not a readable torch file: 'Entry not found'"),
        (b'{"error": "Access denied"}', "JSON, not weights"),
        (b'{"model_type": "videomae"}', "JSON, not weights"),
        (b"{", "not a readable index"),
        (b"\x80\x04\x95\x05\0\0\0", "a pickle, but none that torch wrote"),
        (b"\0\1\2\3" * 200, "not a readable torch file: begins with"),
    ],
)
def test_files_of_other_kinds(content, message, tmp_path):
    assert re.search(message, refusal(tmp_path / "model.pth", content))


def pickle_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode() + b"X\4\0\0\0true\x85R"


@pytest.mark.parametrize(
    "module, name",
    [
        ("posix", "system"),
        ("nt", "system"),
        ("sys", "exit"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("functools", "partial"),
        ("numpy.core.multiarray", "scalar"),
        ("pathlib", "PosixPath"),
        ("torchx", "anything"),
        ("torch.hub", "x" * 5000),
    ],
)
def test_objects_that_could_run_code_are_named_without_the_advice_to_run_them(
    module, name, tmp_path
):
    for pickled in (
        b"\x80\x02}X\1\0\0\0a" + pickle_of(module, name) + b"s.",
        # Protocol 4 spells the same otherwise.
        b"\x80\x04X"
        + len(module).to_bytes(4, "little")
        + module.encode()
        + b"X"
        + len(name).to_bytes(4, "little")
        + name.encode()
        + b"\x93.",
    ):
        message = refusal(tmp_path / "x.pth", with_parts(torch_file(), data_pkl=pickled))
        assert f"holds an object of {module}.{name}"[:200] in message
        assert "could run any code" in message and len(message) < 600


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")
        file.writestr("archive/data/0", bytes(101 << 20))
    assert "would take 105,906,180 bytes of memory" in refusal(tmp_path / "x.pth", out.getvalue())


def test_a_wrong_shape_is_named(tmp_path):
    for name, shape, message in (
        (
            "blocks.0.attn.qkv.weight",
            (48,),
            "has shape (48,), which fits no encoder/blocks/attn/qkv",
        ),
        ("blocks.0.attn.qkv.weight", (11, 4), "has shape (11, 4), which fits no"),
        ("blocks.1.norm1.weight", (5,), "layer 0 has shape (4,), layer 1 (5,)"),
    ):
        tensors = small_weights()
        if ".1." in name:
            tensors |= {k.replace("s.0.", "s.1."): v for k, v in tensors.items() if "s.0." in k}
        tensors[name] = np.zeros(shape, np.float32)
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=re.escape(message)):
            files.load(tmp_path / "x.safetensors")


# With torch.


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="reading .pth needs torch")


@pytest.mark.torch
def test_flipped_bits_of_a_torch_file_are_refused_or_change_nothing(torch, tmp_path):
    whole, path, rng = small_weights(), tmp_path / "x.pth", random.Random(1)
    torch.save({name: torch.from_numpy(value) for name, value in whole.items()}, path)
    for data in (torch_file(), path.read_bytes()):
        index = data.index(b"PK\x01\x02")  # every byte of the table of contents, some of the rest
        places = [*range(index, len(data), 2), *rng.sample(range(index), 200)]
        refused = 0
        for at in places:
            path.write_bytes(flipped(data, at, rng))
            try:
                found, _, _ = torch_files.read(path, "")
            except ValueError as error:
                refused += 1
                assert str(error).startswith(f"{path}: "), error
                continue
            assert all(found[n].tobytes() == value.tobytes() for n, value in whole.items()), at
        assert refused > len(places) // 3
    for at in (found.start() for found in re.finditer(b"PK\x01\x02", data)):
        changed = bytearray(data)
        changed[at + 38] ^= torch_files.FOLDER  # torch itself reads zeros then
        assert "marked as a folder" in refusal(path, bytes(changed))


@pytest.mark.torch
def test_what_is_written_as_a_torch_file_is_what_torch_reads(torch, tmp_path):
    import ml_dtypes

    tensors = {
        **small_weights(),
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "brain": np.arange(4).astype(ml_dtypes.bfloat16),
        "double": np.full((2, 1, 2), np.pi),
        "number": np.array(7, np.int64),
        "none": np.zeros((0, 3), np.float32),
        "turned": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    }
    torch_files.write(tmp_path / "x.pth", tensors)
    back = torch.load(tmp_path / "x.pth", weights_only=True)
    assert list(back) == list(tensors)
    for name, value in tensors.items():
        assert tuple(back[name].shape) == value.shape and back[name].is_contiguous()
        found, _, _ = torch_files.read(tmp_path / "x.pth", "")
        assert found[name].dtype == value.dtype
        assert found[name].tobytes() == np.ascontiguousarray(value).tobytes(), name
    torch.save(back, tmp_path / "again.pth")
    assert torch.load(tmp_path / "again.pth", mmap=True)["turned"][1, 2] == 9


@pytest.mark.torch
def test_files_without_checksums_are_read(torch, tmp_path):
    state = {name: torch.from_numpy(value) for name, value in small_weights().items()}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert main(["inspect", str(tmp_path / "x.pth")]) == 0


@pytest.mark.torch
def test_legacy_files_are_read_and_cut_ones_are_cut_off(torch, tmp_path):
    state = {name: torch.from_numpy(value) for name, value in small_weights().items()}
    path = tmp_path / "x.pth"
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    found, place, _ = torch_files.read(path, "")
    assert place == "model" and found["head.bias"].tobytes() == state["head.bias"].numpy().tobytes()
    data = path.read_bytes()
    for end in [1, 2, 13, 14, 15, *range(40, len(data), 89), len(data) - 1]:
        assert "the file is cut off: download it again" in refusal(path, data[:end]), end
    state["path"] = Path("x")
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert "holds an object of pathlib." in refusal(path, path.read_bytes())


@pytest.mark.torch
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda torch, x: x.to_sparse(), "dense floating-point tensor"),
        (lambda torch, x: x.to("meta"), "dense floating-point tensor"),
        (lambda torch, x: x.to(torch.float8_e4m3fn), "dense floating-point tensor"),
        (lambda torch, x: torch.zeros(1).expand(1 << 20, 1 << 10), "would take"),
        (
            lambda torch, x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
            "quantised weights .1 tensors, first head.weight",
        ),
    ],
    ids=["sparse", "meta", "float8", "expanded", "quantised"],
)
def test_tensors_without_plain_values(change, message, torch, tmp_path):
    state = {name: torch.from_numpy(value) for name, value in small_weights().items()}
    state["head.weight"] = change(torch, state["head.weight"])
    torch.save(state, tmp_path / "x.pth")
    assert re.search(message, refusal(tmp_path / "x.pth", (tmp_path / "x.pth").read_bytes()))
