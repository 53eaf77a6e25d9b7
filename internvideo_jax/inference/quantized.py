"""A network with products of eight bits, in training and in inference, and its stored kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from internvideo_jax.config import QuantizationConfig, TrainConfig
from internvideo_jax.ops.quantized import MODES, Learning, Stored
from internvideo_jax.protocols import Model, ModelConfig
from internvideo_jax.types import Params, compiled, flatten_paths, matching

FIELD = "config.quantization"
# Parts of the names of devices that multiply float8; TPUs and GPUs multiply int8.
FP8_DEVICES = ("tpu7", "v7x", "h100", "h200", "h800", "gh200", "b100", "b200", "gb200", "l4")


@dataclasses.dataclass(frozen=True)
class QuantizedModel:
    """A model whose products with some kernels are of eight bits.

    Its parameters are those of the model: float kernels are rounded in every product and learn.
    Kernels that `store` has rounded once are taken as they are.

    Attributes:
      model: in float.
      settings: of the products.
      targets: paths of their kernels.
    """

    model: Model
    settings: QuantizationConfig
    targets: frozenset[str]

    @property
    def config(self) -> ModelConfig:
        """What the model was built from."""
        return self.model.config

    @property
    def kernels(self) -> frozenset[str]:
        """Paths of all kernels that may be rounded."""
        return self.model.kernels

    def init(self, key: jax.Array) -> Params:
        """Random parameters, float32."""
        return self.model.init(key)

    def shapes(self) -> Params:
        """Of the float parameters."""
        return self.model.shapes()

    def has(self, method: str) -> bool:
        """Whether the network has a method of that name."""
        return self.model.has(method)

    def apply(self, params: Params, *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        """What a method of the network gives with these parameters, float or stored."""
        mode, backward = self.settings.mode, self.settings.backward

        def learning(kernel: Any) -> Any:
            return kernel if isinstance(kernel, Stored) else Learning(kernel, mode, backward)

        params = _changed(params, self.targets, learning)
        return self.model.apply(params, *args, method=method, **kwargs)

    def store(self, params: Params, shardings: Params) -> Params:
        """The parameters on the devices, kernels rounded; one float kernel at a time is there.

        Args:
          params: float, on the host or on the devices.
          shardings: of all of them, `NamedSharding`.
        """
        places = flatten_paths(shardings)
        kept = _without(params, self.targets)
        kept = jax.tree.map(jax.device_put, kept, _without(shardings, self.targets))
        flat = flatten_paths(params)
        for path in sorted(self.targets):
            kernel = jax.device_put(flat.pop(path), places[path])
            _insert(kept, path, self._stored(kernel, places[path]))
        return kept

    def _stored(self, kernel: jax.Array, place: NamedSharding) -> Stored:
        axes = [*place.spec, *[None] * (kernel.ndim - len(place.spec))]
        axes[-2] = None
        scale = NamedSharding(place.mesh, PartitionSpec(*axes))
        mode = self.settings.mode
        round_once = jax.jit(
            lambda kernel: Stored.of(kernel, mode), out_shardings=Stored(place, scale, mode)
        )
        return jax.block_until_ready(round_once(kernel))

    @property
    def stated(self) -> dict[str, Any]:
        """What a result says of its products."""
        return {
            "mode": self.settings.mode,
            "targets": list(self.settings.targets),
            "kernels": len(self.targets),
        }


def quantized(model: Model, settings: QuantizationConfig) -> Model:
    """The model with products as `settings` say; the model itself for mode none.

    Raises:
      ValueError: a pattern that matches no kernel, or one that cannot be rounded.
    """
    if settings.mode == "none":
        return model
    if not settings.targets:
        raise ValueError(
            f"{FIELD}.mode = {settings.mode!r} and no {FIELD}.targets: nothing is rounded; set the "
            "mode to 'none', or name kernels"
        )
    known, everything = sorted(model.kernels), list(flatten_paths(model.shapes()))
    for pattern in settings.targets:
        expression = compiled(f"{FIELD}.targets", pattern)
        elsewhere = [path for path in everything if expression.search(path)]
        if elsewhere and not any(expression.search(path) for path in known):
            raise ValueError(
                f"{FIELD}.targets pattern {pattern!r} matches {elsewhere[0]}, which is no kernel "
                f"that products can round; those are {_some(known)}"
            )
    return QuantizedModel(model, settings, matching(f"{FIELD}.targets", settings.targets, known))


def network(config: TrainConfig) -> Model:
    """The network of a config, with products as it says; raises as the model and `quantized`."""
    return quantized(config.model.model(), config.quantization)


def stated(model: Model) -> dict[str, Any]:
    """{"quantization": ...} as results say it; {} for a model in float."""
    return {"quantization": model.stated} if isinstance(model, QuantizedModel) else {}


def note(model: Model, mesh: Mesh, *, training: bool = False) -> str:
    """Which products are of eight bits, what their kernels take, and whether the devices have such
    products; empty for a model in float."""
    if not isinstance(model, QuantizedModel):
        return ""
    mode, count = model.settings.mode, len(model.targets)
    shapes = flatten_paths(model.shapes())
    share = sum(shapes[path].size for path in model.targets) / sum(x.size for x in shapes.values())
    parts = [f"{FIELD}.mode = {mode}: {count} kernels, {100 * share:.1f} % of the parameters"]
    if training:
        parts.append("they stay float32 and are rounded in every product")
        parts.append("MFU is of the peak in bfloat16")
    else:
        whole, held = (x / 2**20 for x in stored_bytes(model))
        parts.append(f"all parameters take {held:.2f} MiB instead of {whole:.2f}")
    return "; ".join(filter(None, [*parts, emulated(mode, mesh.devices.flat[0])]))


def stored_bytes(model: QuantizedModel) -> tuple[int, int]:
    """Bytes of all parameters: in float, and with the kernels stored in eight bits."""
    shapes = flatten_paths(model.shapes())
    sizes = {path: leaf.size * leaf.dtype.itemsize for path, leaf in shapes.items()}
    stored = sum(size for path, size in sizes.items() if path not in model.targets)
    for leaf in (shapes[path] for path in model.targets):
        stored += leaf.size + 4 * leaf.size // leaf.shape[-2]
    return sum(sizes.values()), stored


def emulated(mode: str, device: Any) -> str:
    """What to know of a device that has no products of these numbers; empty: it has them."""
    if not MODES[mode].activations:
        return ""
    number = "int8" if MODES[mode].whole else "fp8"
    kind = device.device_kind
    if device.platform != "cpu" and (
        number == "int8" or any(name in kind.lower() for name in FP8_DEVICES)
    ):
        return ""
    return (
        f"{kind} is not known to multiply {number}: without such products wider numbers are "
        f"multiplied, with the results of {number} and without its speed"
    )


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:4]) + (" ..." if len(paths) > 4 else "")


def _changed(params: Params, paths: Iterable[str], change: Callable[[Any], Any]) -> Params:
    """A copy of the nested dicts with the leaves at `paths` changed."""
    changed = dict(params)
    below: dict[str, list[str]] = {}
    for path in paths:
        name, _, rest = path.partition("/")
        if rest:
            below.setdefault(name, []).append(rest)
        else:
            changed[name] = change(params[name])
    for name, rests in below.items():
        changed[name] = _changed(params[name], rests, change)
    return changed


def _without(params: Mapping[str, Any], paths: frozenset[str], above: str = "") -> Params:
    """A copy of the nested dicts without the leaves at `paths`."""
    return {
        name: _without(tree, paths, f"{above}{name}/") if isinstance(tree, dict) else tree
        for name, tree in params.items()
        if f"{above}{name}" not in paths
    }


def _insert(params: Params, path: str, leaf: Any) -> None:
    *parents, last = path.split("/")
    for name in parents:
        params = params.setdefault(name, {})
    params[last] = leaf
