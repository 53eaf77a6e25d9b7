"""Torch files: reading, with every checksum looked at, which torch does not do; and writing.

torch.save writes a zip archive: `data.pkl`, a pickle that names the tensors, and a part `data/N`
for each block of memory. Only reading needs torch.
"""

from __future__ import annotations

import argparse
import io
import itertools
import pickletools
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from internvideo_jax.weights import wrappers
from internvideo_jax.weights.formats import PICKLE, ZIP, cut_off
from internvideo_jax.weights.rules import Tensors

# As the pickle of a file before torch 1.6 begins, which is no zip archive and has no checksums.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
CHUNK = 1 << 20
HEAD = 64 << 20  # of a file before 1.6, whose pickles come first
# Weights do not pack; what grows by more than this while it is read was made to fill the memory.
GROWTH = 100
FOLDER = 0x10  # among the attributes of a part
_READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,  # "is encrypted"; NotImplementedError for a packing that Python does not know
    ValueError,
)


def read(path: Path, key: str) -> tuple[Tensors, str, list[str]]:
    """Tensors of a torch file, where in it they lay, and where else others are.

    Raises:
      ValueError: cut off, damaged, no torch file, other objects than tensors in it, no torch here.
    """
    _check_file(path)
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:  # OSError: a library of its own is missing
        raise ValueError(
            f"{path}: reading torch files needs torch (pip install 'internvideo-jax[torch]'), or "
            f"convert the file to safetensors elsewhere ({error})"
        ) from error
    content = _unpickled(torch, path)

    def is_tensor(value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    try:
        found, place = wrappers.find_tensors(content, is_tensor, path, key)
        elsewhere = wrappers.other_places(content, is_tensor, place)
    except RecursionError as error:
        raise ValueError(f"{path}: dicts in dicts without an end, no weights") from error
    wrappers.refuse_quantised(path, [name for name, value in found.items() if value.is_quantized])
    total = sum(value.numel() * value.element_size() for value in found.values())
    _check_growth(path, total)
    return {name: _to_numpy(torch, path, name, v) for name, v in found.items()}, place, elsewhere


def _to_numpy(torch: Any, path: Path, name: str, value: Any) -> np.ndarray:
    try:
        value = value.detach().cpu()
        if value.dtype == torch.bfloat16:  # unknown to numpy, and so to torch's conversion
            return value.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return value.numpy()
    except Exception as error:  # torch raises no narrower class
        raise ValueError(
            f"{path}: {name} is a tensor of {value.dtype} ({value.layout}, {value.device}), which "
            f"cannot be read; save a dense floating-point tensor ({_line(error)})"
        ) from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _check_file(path: Path) -> None:
    """Everything that needs no torch; ValueError for a file that is cut off or damaged."""
    with path.open("rb") as file:
        head = file.read(len(LEGACY))
        begin = head + file.read(HEAD) if head == LEGACY else b""
    if head.startswith(ZIP):
        stream, pickles = io.BytesIO(_check_archive(path)), 1
    elif head == LEGACY:
        stream, pickles = io.BytesIO(begin), 5  # three are a few numbers; tensors, their order
    elif ZIP.startswith(head) or LEGACY.startswith(head):
        raise cut_off(path, f"only {len(head)} bytes are there")
    elif head.startswith(PICKLE):
        raise ValueError(f"{path}: a pickle, but none that torch wrote; save a state dict with it")
    else:
        raise ValueError(f"{path}: not a readable torch file: begins with {head[:8]!r}")
    try:
        foreign = next(filter(None, (_foreign_object(stream) for _ in range(pickles))), "")
    except (ValueError, IndexError, struct.error, OverflowError) as error:
        if begin:
            raise cut_off(path, f"or damaged: {error}") from error
        raise ValueError(f"{path}: not a readable torch file (data.pkl: {error})") from error
    if foreign:
        raise ValueError(
            f"{path}: holds an object of {foreign}, and unpickling that could run any code. Where "
            "you trust the file, load it with torch and save its state dict alone"
        )


def _check_archive(path: Path) -> bytes:
    """The pickle of a zip archive; ValueError unless all of it is what was written."""
    try:
        archive = zipfile.ZipFile(path)
    except _READ_ERRORS as error:
        if "not a zip file" in str(error):  # its table of contents is at the end
            raise cut_off(path, "the end of the archive is not there") from error
        raise ValueError(f"{path}: damaged, download it again ({error})") from error
    with archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
            raise ValueError(  # as OpenAI publishes CLIP
                f"{path}: a TorchScript archive, which is a program. Where you trust it, load it "
                "with torch.jit.load and save its state_dict() alone"
            )
        if not pickles:
            raise ValueError(
                f"{path}: a zip archive, but none that torch wrote ({', '.join(names[:3])}); if "
                "the weight file is in it, unpack it"
            )
        _check_growth(path, sum(member.file_size for member in members))
        if any(member.CRC for member in members):
            _check_parts(path, archive, members, pickles[0])
        else:  # written after torch.serialization.set_crc32_options(False)
            del archive.getinfo(pickles[0]).CRC  # else zipfile would miss it
        try:
            return archive.read(pickles[0])
        except _READ_ERRORS as error:
            raise ValueError(f"{path}: damaged, download it again ({error})") from error


def _check_parts(
    path: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], pickled: str
) -> None:
    """ValueError where a part has another checksum than it was written with."""
    damaged = {}
    for member in members:
        if member.file_size and (member.filename.endswith("/") or member.external_attr & FOLDER):
            damaged[member.filename] = "marked as a folder"  # torch would give zeros
            continue
        try:
            with archive.open(member) as part:
                while part.read(CHUNK):  # the checksum is compared at the end
                    pass
        except _READ_ERRORS as error:
            damaged[member.filename] = str(error)
    if not damaged:
        return
    names = {} if pickled in damaged else _names_of_parts(archive.read(pickled))
    part, why = next(iter(damaged.items()))
    tensors = names.get(part.rpartition("/")[2], [])
    raise ValueError(
        f"{path}: damaged, download it again: {len(damaged)} of {len(members)} parts are not what "
        f"was written, first {part}{f' ({_some(tensors)})' if tensors else ''}: {why}"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _check_growth(path: Path, total: int) -> None:
    size = path.stat().st_size
    if total > GROWTH * max(size, CHUNK):
        raise ValueError(
            f"{path}: would take {total:,} bytes of memory, the file has {size:,}; weights do not "
            "pack like this"
        )


def _names_of_parts(pickled: bytes) -> dict[str, list[str]]:
    """Name of a block of memory, as `4` -> the tensors in it, as far as the pickle is plain."""
    names: dict[str, list[str]] = {}
    memo: dict[int, str] = {}
    text = key = number = ""  # the last text, the last that may name a tensor, the last number
    argument: Any
    for code, argument, _ in pickletools.genops(pickled):
        name = code.name
        if name in ("BINUNICODE", "BINGET", "LONG_BINGET"):
            text = argument if name == "BINUNICODE" else memo.get(argument, "")
            if text.isdecimal():
                number = text
            elif text not in ("", "storage", "cpu") and not text.startswith("cuda"):
                key = text
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = text
            text = ""  # what follows may memoise another object
        elif name == "BINPERSID":
            names.setdefault(number, []).append(key)
    return names


# What torch unpickles itself without running anything of others, and the class of options that
# training scripts leave in published files.
_ALLOWED = {
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
    "argparse.Namespace",
    *(f"{module}.{n}" for module in ("builtins", "__builtin__") for n in ("set", "bytearray")),
    *(f"{module}.complex" for module in ("builtins", "__builtin__")),
}
_LONGEST = 200  # name of an object; torch takes minutes to complain about a very long one


def _foreign_object(stream: IO[bytes]) -> str:
    """The first object in the next pickle of a stream that is not allowed; empty if there is none.

    torch refuses them as well, but its message advises to unpickle everything. What is no pickle
    raises ValueError, IndexError, struct.error or OverflowError.
    """
    texts: list[str] = []
    for code, argument, _ in pickletools.genops(stream):
        if "UNICODE" in code.name or "STRING" in code.name:
            texts = [*texts[-1:], str(argument)]
        elif code.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            asked = argument.replace(" ", ".") if argument else ".".join(texts)
            if asked not in _ALLOWED and not (asked.startswith("torch.") and len(asked) < _LONGEST):
                return asked[:_LONGEST]
    return ""


def _unpickled(torch: Any, path: Path) -> Any:
    # Published files carry the argparse options of their training script. Nothing else than
    # tensors and this class is unpickled.
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        with warnings.catch_warnings():  # about protocols of pickle, in a second message
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # anything at all, where the content makes no sense
        raise ValueError(f"{path}: {_explained(path, error)}") from error


def _explained(path: Path, error: Exception) -> str:
    """What torch's error means. Its own text advises to unpickle everything, so it is not shown."""
    text = str(error)
    inner = re.search(r"WeightsUnpickler error: (.{1,200})", text)
    reason = inner[1] if inner else _line(error)
    if re.search("weights.only", reason, re.IGNORECASE):
        reason = type(error).__name__
    if not zipfile.is_zipfile(path):
        return f"the file is cut off: download it again (or damaged: {reason})"
    return f"not a readable torch file ({reason})"


# Of the storage classes that stand for the types in a pickle; what numpy calls them.
_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


def write(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict as torch.save does; torch.load reads it, `weights_only=True` included.

    Raises:
      ValueError: a tensor of a type that torch does not have.
    """
    pickled = io.BytesIO()
    pickled.write(b"\x80\x02}(")  # protocol 2, a dict, and its items up to the `u` at the end
    for number, (name, value) in enumerate(tensors.items()):
        if value.dtype.name not in _STORAGES:
            raise ValueError(f"{name} is of {value.dtype.name}, which torch files do not hold")
        pickled.write(_text(name) + _tensor(value, number))
    pickled.write(b"u.")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, data in (
            ("data.pkl", pickled.getvalue()),
            ("byteorder", b"little"),
            *(
                (f"data/{number}", np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
                for number, value in enumerate(tensors.values())
            ),
            ("version", b"3\n"),
        ):
            # Without a date: equal weights give equal files.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


def _tensor(value: np.ndarray, number: int) -> bytes:
    """Opcodes for `_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`."""
    strides = [1, *itertools.accumulate(reversed(value.shape[1:]), lambda a, b: a * b)]
    storage = _STORAGES[value.dtype.name]
    return b"".join(
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _text("storage"),
            f"ctorch\n{storage}\n".encode(),
            _text(str(number)),
            _text("cpu"),
            _int(value.size),
            b"tQ",
            _int(0),
            b"(" + b"".join(map(_int, value.shape)) + b"t",
            b"(" + b"".join(map(_int, reversed(strides[: value.ndim]))) + b"t",
            b"\x89ccollections\nOrderedDict\n)RtR",
        )
    )


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)  # LONG1 of eight bytes
