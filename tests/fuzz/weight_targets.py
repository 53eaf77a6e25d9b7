"""Weight files: bytes in, a description or our own error out."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import save

from internvideo_jax.weights import files
from internvideo_jax.weights.__main__ import parser, run
from tests.internvideo_jax.weights.made import small_weights, torch_file, with_parts


def our_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        path.write_bytes(save(small_weights()))
        files.save_ours(path, files.load(path))
        return path.read_bytes()


def legacy_file() -> list[bytes]:
    """As torch before 1.6 wrote it; none without torch."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return []
    out = io.BytesIO()
    state = {name: torch.from_numpy(value) for name, value in small_weights().items()}
    torch.save(state, out, _use_new_zipfile_serialization=False)
    return [out.getvalue()]


def seeds() -> dict[str, list[bytes]]:
    archive, ours = torch_file(), our_file()
    with zipfile.ZipFile(io.BytesIO(archive)) as parts:
        pickled = parts.read("archive/data.pkl")
    header = json.loads(ours[8 : 8 + int.from_bytes(ours[:8], "little")])
    known = header["__metadata__"]
    unchecked = header | {"__metadata__": {k: v for k, v in known.items() if k != "crc32"}}
    names = list(small_weights())
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "a.safetensors")}
    return {
        "torch": [archive, *legacy_file()],
        "pickle": [pickled],
        "safetensors": [save(small_weights(), {"format": "pt"}), ours],
        "header": [json.dumps(each).encode() for each in (header, unchecked)],
        "shards": [json.dumps(index, indent=1).encode()],
    }


def targets(folder: Path) -> dict[str, Callable[[bytes], None]]:
    """The functions under test; `folder` is their scratch space."""
    archive, ours = torch_file(), our_file()
    body = ours[8 + int.from_bytes(ours[:8], "little") :]
    (folder / "a.safetensors").write_bytes(save(small_weights()))

    def inspect(name: str, data: bytes) -> None:
        (folder / name).write_bytes(data)
        with contextlib.redirect_stdout(io.StringIO()):
            run(parser().parse_args(["inspect", str(folder / name)]))

    return {
        "torch": lambda data: inspect("x.pth", data),
        "pickle": lambda data: inspect("x.pth", with_parts(archive, data_pkl=data)),
        "safetensors": lambda data: inspect("x.safetensors", data),
        "header": lambda data: inspect(
            "x.safetensors", len(data).to_bytes(8, "little") + data + body
        ),
        "shards": lambda data: inspect("model.safetensors.index.json", data),
    }
