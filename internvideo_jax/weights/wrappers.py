"""What is around the tensors of a file: wrappers, prefixes, and tensors that are none of ours.

Nothing here knows torch: tensors are told by a test that is handed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from internvideo_jax.registry import suggest

# Keys under which training scripts wrap the state dict, in the order that the originals try.
WRAPPERS = ("model", "module", "state_dict", "model_state_dict", "model_state")
# Averaged weights, kept beside the others. Never taken unasked.
AVERAGED = ("model_ema", "ema", "ema_state_dict", "state_dict_ema", "ema_model")
# Left by torch.compile, by data-parallel wrappers and by models that hold the network as an
# attribute.
PREFIXES = ("_orig_mod.", "module.", "backbone.", "model.")
# Parts of a training state that hold tensors and no weights.
OTHERS = ("optim", "scaler", "scheduler", "sched", "args", "cfg", "config", "rng")
TOP = "(top)"


def find_tensors(
    content: object, is_tensor: Callable[[Any], bool], path: Path, key: str = ""
) -> tuple[dict[str, Any], str]:
    """The weights in the content of a checkpoint, and where they lay: `model`, `a.b`, `(top)`.

    Dicts are searched to any depth. Of several, one under the names of `WRAPPERS` wins, then the
    only one that holds no averages.

    Args:
      content: what was read.
      key: where the weights lie; empty = find them.

    Raises:
      ValueError: no weights, only the state of an optimizer, or several and no `key`.
    """
    found = dict(_state_dicts(content, is_tensor))
    if key:
        if key not in found:
            raise ValueError(f"{path}: no weights under {key!r}: {suggest(key, found)}")
        return found[key], key
    plain = {place: each for place, each in found.items() if not _averaged(place)}
    if not plain and found:
        plain = found
    if not plain:
        where = (
            f"top level: {', '.join(map(str, list(content)[:6]))}"
            if _is_dict(content)
            else (f"content: {type(content).__name__}")
        )
        if _is_dict(content) and any(_other(name) or name == "state" for name in content):
            raise ValueError(
                f"{path}: the state of an optimizer without the weights of the model ({where}); "
                "take the file that was saved beside it"
            )
        raise ValueError(
            f"{path}: no tensors found, at the top or under {', '.join(WRAPPERS)} ({where})"
        )
    for place in (*WRAPPERS, TOP):
        if place in plain:
            return plain[place], place
    if len(plain) > 1:
        raise ValueError(
            f"{path}: several sets of weights, under {', '.join(plain)}; choose one with --key"
        )
    place = next(iter(plain))
    return plain[place], place


def other_places(content: object, is_tensor: Callable[[Any], bool], place: str) -> list[str]:
    """Where else in the file weights lie: `model_ema` ..."""
    return [other for other, _ in _state_dicts(content, is_tensor) if other != place]


def _state_dicts(
    content: object, is_tensor: Callable[[Any], bool], place: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    if not _is_dict(content):
        return
    tensors = {n: v for n, v in content.items() if isinstance(n, str) and is_tensor(v)}
    if tensors:
        yield ".".join(place) or TOP, tensors
    for name, value in content.items():
        if isinstance(name, str) and not _other(name):
            yield from _state_dicts(value, is_tensor, (*place, name))


def _is_dict(content: object) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(content, Mapping)


def _other(name: object) -> bool:
    return isinstance(name, str) and name.lower().startswith(OTHERS)


def _averaged(place: str) -> bool:
    return any(part in AVERAGED for part in place.split("."))


def strip_prefixes(names: Iterable[str]) -> dict[str, str]:
    """Name -> name without the wrapper prefixes that all names share."""
    short = {name: name for name in names}
    changed = bool(short)
    while changed:
        changed = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in short.values()):
                short = {name: value[len(prefix) :] for name, value in short.items()}
                changed = True
    return short


_LORA = re.compile(r".*\.lora_(A|B|up|down|embedding_[AB])(\.|$).*|.*\.(loha|lokr)_.*")
_QUANTISED = re.compile(
    r".*\.(qweight|qzeros|g_idx|SCB|absmax|quant_map|quant_state\..*|_packed_params.*|weight_scale|"
    r"scale_weight|zero_point)$"
)


def refuse_foreign(path: Path, dtypes: Mapping[str, str]) -> None:
    """Raises ValueError for adapters and quantised weights, which no rule can convert.

    Args:
      dtypes: tensor name -> name of its dtype.
    """
    adapters = [name for name in dtypes if _LORA.fullmatch(name)]
    if adapters:
        raise ValueError(
            f"{path}: a LoRA adapter ({len(adapters)} tensors, first {adapters[0]}); merge it into "
            "its base model where it was trained (in peft: merge_and_unload) and save that"
        )
    whole = ("int8", "uint8", "int4", "uint4", "float8")
    narrow = [
        name
        for name, dtype in dtypes.items()
        if _QUANTISED.fullmatch(name) or (name.endswith("weight") and dtype.startswith(whole))
    ]
    refuse_quantised(path, [f"{name} {dtypes[name]}" for name in narrow])
    state = [name for name in dtypes if re.fullmatch(r".*(exp_avg(_sq)?|momentum_buffer)", name)]
    if state and 2 * len(state) > len(dtypes):
        raise ValueError(
            f"{path}: the state of an optimizer, {state[0]} and {len(state) - 1} more; take the "
            "file with the weights of the model"
        )


def refuse_quantised(path: Path, names: Sequence[str]) -> None:
    """ValueError if there are any names of tensors, maybe with their types."""
    if names:
        raise ValueError(
            f"{path}: quantised weights ({len(names)} tensors, first {names[0]}); take the file "
            "with floating-point weights"
        )
