"""The best mesh, remat policy and number of microbatches of a recipe on a slice, in few compiles.

Every combination is estimated first: the state on a device exactly, from the shardings; the compute
time from the traced program; the transfers by formula; activations and HBM traffic by a fit to the
programs compiled so far. The most promising one is compiled, the estimates are corrected by what
the compiler says, and so on until nothing better is left or the budget is spent. A program that
does not fit is refused early, and the message holds the bytes it wanted: it teaches as much as one
that does.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipelines.stream.parts.base import row_bytes
from data_pipelines.stream.parts.made import batch_spec, media_of
from internvideo_jax.compile_check.aot import (
    count_flops,
    whole_parameters,
)
from internvideo_jax.compile_check.candidates import Candidate, Place, Sizes, meshes, named, place
from internvideo_jax.compile_check.hardware import GIB, Chip, Slice
from internvideo_jax.config import TrainConfig
from internvideo_jax.inference.quantized import network
from internvideo_jax.parallel.mesh import AXES, SEQUENCE, check_batch
from internvideo_jax.run.build import Run

# Of remat, from the one that keeps most; a model may know some of them.
POLICIES = ("none", "dots", "attention", "full")
MICROBATCHES = (1, 2, 4, 8, 16, 32)
CLIPS = (1, 2, 4, 8, 16, 32, 64, 128)  # per device, where the batch is free
OVERLAP = 0.1  # of the limits that do not bind is added: they hide behind each other imperfectly
RAGGED = 1.05  # a guess at what padded shards cost, until the compiler has said it
UNSEEN = 0.5  # of the HBM traffic of the leanest policy seen is what an unseen one may need
BETTER = 0.99  # what is predicted to be no faster than this is not worth a compile

Facts = dict[str, Any]  # of one compiled program, as `report.row` gives them


@dataclasses.dataclass(frozen=True)
class Tried:
    """A candidate that was compiled."""

    candidate: Candidate
    facts: Facts
    predicted: float  # bytes, before it was compiled
    score: float  # seconds per clip, infinite where it cannot be used


@dataclasses.dataclass
class FoundMeshes:
    """What a search tried and left out."""

    tried: list[Tried]
    rejected: dict[str, int]  # reason -> number of combinations
    skipped: int  # combinations that looked feasible but no better, or came after the budget
    exhausted: bool  # the budget ended the search, not the estimates

    @property
    def best(self) -> Tried | None:
        """The fastest that can be used; None: none can."""
        usable = [item for item in self.tried if item.score < float("inf")]
        return min(usable, key=lambda item: item.score, default=None)


class Search:
    """Estimates that learn from compiled programs; see the head of this file.

    Args:
      run: the recipe on a mesh of one device.
      flops: executed FLOPs of one clip by remat policy, the policies to choose from.
    """

    def __init__(self, run: Run, target: Slice, chip: Chip, flops: dict[str, float]):
        self.run, self.target, self.chip, self.flops = run, target, chip, flops
        self.places: dict[Sizes, Place] = {}
        self.tried: list[Tried] = []
        self.rejected: collections.Counter[str] = collections.Counter()

    def candidates(self, batches: list[int]) -> list[Candidate]:
        """All combinations that could fit; the others are counted by reason."""
        heads = [stack.heads for stack in self.run.config.model.traits.stacks.values()]
        found = []
        for sizes in meshes(len(self.target.devices), heads, self._tokens()):
            try:
                moved, here = place(self.run, sizes)
            except ValueError:
                self.rejected["an axis of the mesh divides no dimension of a parameter"] += 1
                continue
            if whole_parameters(moved):
                self.rejected["a large parameter would be whole on every chip"] += 1
            elif here.state > self.chip.hbm:
                self.rejected["parameters and optimizer alone do not fit"] += 1
            else:
                self.places[sizes] = here
                found += self._on(moved, sizes, batches)
        return found

    def _tokens(self) -> int:
        """Of a clip, all of them counted."""
        features = self.run.config.model.traits.features
        return features.tokens if features else 1

    def _on(self, moved: Run, sizes: Sizes, batches: list[int]) -> list[Candidate]:
        found = []
        counts = MICROBATCHES if len(batches) == 1 else (1,)
        for batch in batches:
            for micro in counts:
                try:
                    check_batch(moved.mesh, batch, "", micro)
                except ValueError:
                    self.rejected["the batch cannot be split evenly"] += 1
                    continue
                axes = named(sizes)
                every = [
                    Candidate(remat=remat, microbatches=micro, batch=batch, **axes)
                    for remat in self.flops
                ]
                if every[0].sequence > 1 and every[0].rows > 1:
                    self.rejected["clips are shared out whole before their tokens are"] += 1
                    continue
                found += every
        return found

    def memory(self, candidate: Candidate) -> float:
        """Predicted peak in bytes; what nobody knows yet of a policy counts as nothing."""
        here = self.places[candidate.mesh]
        fixed, slope = self._activations(candidate)
        sums = here.gradients if candidate.microbatches > 1 else 0
        batch = self._batch_bytes(candidate)
        return here.state + batch + sums + fixed * here.gradients + slope * candidate.rows

    def _batch_bytes(self, candidate: Candidate) -> float:
        data = self.run.config.data
        example = max(
            row_bytes(batch_spec(data, media)) * data.batch_of(media) / data.global_batch
            for media in media_of(data)
        )
        return candidate.rows * candidate.microbatches * example

    def _activations(self, wanted_of: Candidate) -> tuple[float, float]:
        """Temporaries as (multiple of the gradients' bytes, bytes per clip at a time)."""
        points = []
        for item in self.tried:
            if item.candidate.kind != wanted_of.kind:
                continue
            memory = item.facts["memory"]
            wanted = memory["temporaries"] if memory else item.facts["needed"]
            gradients = self.places[item.candidate.mesh].gradients
            extra = gradients if item.candidate.microbatches > 1 else 0
            points.append((gradients, item.candidate.rows, max(wanted - extra, 0.0)))
        if not points:
            return self._at_least(wanted_of)
        if len({rows for _, rows, _ in points}) > 1:
            matrix = np.array([[g, rows] for g, rows, _ in points], float)
            scale = matrix.max(axis=0)
            solved, *_ = np.linalg.lstsq(matrix / scale, np.array([w for *_, w in points]))
            fixed, slope = solved / scale
            if 0 <= fixed <= 4 and slope > 0:
                return float(fixed), float(slope)
        # One point, or points that contradict the model: the gradients once, the rest by clips.
        slope = max(max(wanted - g, 0.0) / rows for g, rows, wanted in points)
        return 1.0, slope

    def _at_least(self, candidate: Candidate) -> tuple[float, float]:
        """For a policy not compiled yet: what those that keep less were seen to need."""
        split = candidate.tensor * candidate.sequence
        if split > 1:
            whole = dataclasses.replace(candidate, tensor=1, sequence=1)
            fixed, slope = self._activations(whole)
            return fixed, slope / split
        leaner = POLICIES[POLICIES.index(candidate.remat) + 1 :]
        known = {remat for remat, *axes in (i.candidate.kind for i in self.tried) if axes == [1, 1]}
        slopes = [
            self._activations(dataclasses.replace(candidate, remat=policy))[1]
            for policy in leaner
            if policy in known
        ]
        return 0.0, max(slopes, default=0.0)

    def limits(self, candidate: Candidate, facts: Facts | None = None) -> dict[str, float]:
        """Seconds of a step by each limit; the compiler's where it gave them."""
        devices = len(self.target.devices)
        executed = self.flops[candidate.remat] * candidate.batch
        found = {
            "compute": executed / devices / self.chip.flops,
            "HBM": self._traffic(candidate) / self.chip.hbm_rate,
        }
        if self.chip.ici_rate:
            found["ICI"] = self._wire(candidate) / self.chip.ici_rate
        return {**found, **(facts or {}).get("seconds", {})}

    def _traffic(self, candidate: Candidate) -> float:
        """HBM bytes: the state five times, and per clip what compiled programs showed."""

        def state(item: Candidate) -> float:
            return 5.0 * self.places[item.mesh].state

        rates = collections.defaultdict(list)
        for item in self.tried:
            moved = item.facts["hbm_bytes"]
            if moved is not None:
                policy, clips = item.candidate.remat, item.candidate.clips
                rates[policy].append(max(moved - state(item.candidate), 0.0) / clips)
        rate = min(rates[candidate.remat], default=0.0)
        if not rates[candidate.remat]:
            # A policy that was not compiled may be much leaner than those that were.
            rate = UNSEEN * min((min(found) for found in rates.values() if found), default=0.0)
        return state(candidate) + rate * candidate.clips

    def _wire(self, candidate: Candidate) -> float:
        """Bytes a device sends: bfloat16 parameters gathered twice and gradients reduced."""
        here, micro = self.places[candidate.mesh], candidate.microbatches
        size = 2.0 * here.parameters
        fsdp, data = candidate.fsdp, candidate.data
        split = 3 * size * (fsdp - 1) / fsdp
        copies = data * candidate.sequence
        summed = 2 * size / fsdp * (copies - 1) / copies
        own = self._tensor_wire(candidate) + self._sequence_wire(candidate)
        return micro * (split + summed) + own

    def _tensor_wire(self, candidate: Candidate) -> float:
        if candidate.tensor == 1:
            return 0.0
        # Two sums of the activations per layer forward, two backward; every token counted.
        share = (candidate.tensor - 1) / candidate.tensor
        return 8.0 * share * 2 * self._values(candidate) / candidate.sequence

    def _sequence_wire(self, candidate: Candidate) -> float:
        """Keys and values go round forward and backward, their float32 gradients once more."""
        passing = (candidate.sequence - 1) / candidate.sequence
        return (4 + 4 + 8) * passing * self._values(candidate) / candidate.tensor

    def _values(self, candidate: Candidate) -> float:
        """Activations of one kind in all layers, of the clips of a group of devices."""
        stacks = self.run.config.model.traits.stacks.values()
        sizes = sum(stack.width * stack.depth for stack in stacks)
        return self._tokens() * sizes * candidate.rows * candidate.microbatches

    def score(self, candidate: Candidate, facts: Facts | None = None) -> float:
        """Seconds per clip, with a part of the limits that do not bind."""
        limits = self.limits(candidate, facts).values()
        bound = max(limits)
        seconds = bound + OVERLAP * (sum(limits) - bound)
        guess = RAGGED if facts is None and self.places[candidate.mesh].ragged else 1.0
        return guess * seconds / candidate.batch

    def add(self, candidate: Candidate, facts: Facts, predicted: float) -> Tried:
        """Scores a compiled candidate and keeps it."""
        usable = facts["fits"] and not facts["whole"] and not facts["gathers_everything"]
        score = self.score(candidate, facts) if usable else float("inf")
        self.tried.append(Tried(candidate, facts, predicted, score))
        return self.tried[-1]


def search(
    run: Run,
    target: Slice,
    compile_one: Callable[[Candidate], Facts],
    *,
    flops: dict[str, float],
    batches: list[int],
    compiles: int = 8,
    told: Callable[[Tried], None] = lambda _: None,
) -> FoundMeshes:
    """Looks for the combination with the least time per clip.

    Args:
      run: the recipe on a mesh of one device.
      compile_one: gives the facts of `report.row`.
      flops: as for `Search`.
      batches: clips per step to choose from; with one of them microbatches are tried.
      compiles: budget.
      told: called after each compile.

    Raises:
      ValueError: the target is no slice of known speed.
    """
    if target.chip is None or not target.compiles:
        raise ValueError(f"--search needs a TPU slice to compile for, found {target.name}")
    state = Search(run, target, target.chip, flops)
    left = state.candidates(batches)
    limit, best = target.chip.hbm, float("inf")
    while left and len(state.tried) < compiles:
        fitting = [item for item in left if state.memory(item) <= limit]
        if not fitting:
            break
        # Small axes and few microbatches first where times are the same.
        chosen = min(
            fitting, key=lambda item: (state.score(item), item.microbatches, item.fsdp, item.tensor)
        )
        if state.score(chosen) >= BETTER * best:
            break
        left.remove(chosen)
        predicted = state.memory(chosen)
        item = state.add(chosen, compile_one(chosen), predicted)
        told(item)
        best = min(best, item.score)
        if item.facts["gathers_everything"]:  # that lies in the model, not in the axis
            state.rejected["another fsdp axis was found to gather all parameters"] += sum(
                other.fsdp > 1 for other in left
            )
            left = [other for other in left if other.fsdp == 1]
    too_large = sum(state.memory(item) > limit for item in left)
    if too_large:
        state.rejected["predicted not to fit, from the programs compiled"] += too_large
    exhausted = len(state.tried) >= compiles and any(
        state.memory(item) <= limit and state.score(item) < BETTER * best for item in left
    )
    return FoundMeshes(state.tried, dict(state.rejected), len(left) - too_large, exhausted)


def policies(run: Run) -> dict[str, float]:
    """Executed FLOPs of one clip by remat policy, for those that the model knows."""
    if run.config.model.traits.remat is None:
        return {"none": count_flops(run).total / run.config.data.global_batch}
    found = {}
    for policy in POLICIES:
        try:
            model = dataclasses.replace(run.config.model, remat=policy)
            config = dataclasses.replace(run.config, model=model)
            counted = count_flops(dataclasses.replace(run, config=config, model=network(config)))
        except ValueError as error:
            if "remat policy" not in str(error):
                raise
            continue
        found[policy] = counted.total / config.data.global_batch
    return found


def single(config: TrainConfig) -> TrainConfig:
    """The recipe on one device, in one piece."""
    mesh = dataclasses.replace(config.mesh, data=1, fsdp=1, tensor=1, sequence=1)
    optim = dataclasses.replace(config.optim, accumulate=1)
    return dataclasses.replace(config, mesh=mesh, optim=optim)


def table(found: FoundMeshes) -> str:
    """All that was compiled, and why the rest was not."""
    spread = any(item.candidate.sequence > 1 for item in found.tried)
    axes = ",".join((*AXES, SEQUENCE) if spread else AXES)
    lines = [
        f"{'mesh ' + axes:<22} {'remat':<9} {'micro':>5} {'batch':>6} {'at a time':>9} "
        f"{'peak GiB':>8} {'(expected)':>10} {'bound ms':>9} {'clips/s':>8}  verdict"
    ]
    best = found.best
    for item in found.tried:
        candidate, facts = item.candidate, item.facts
        mesh = ",".join(map(str, candidate.mesh))
        memory = facts["memory"]
        peak = f"{memory['peak'] / GIB:.2f}" if memory else f">{facts['needed'] / GIB:.1f}"
        bound = facts.get("bound")
        speed = "" if bound is None else f"{bound * 1e3:.1f}"
        clips = "" if bound is None else f"{candidate.batch / bound:.0f}"
        lines.append(
            f"{mesh:<22} {candidate.remat:<9} {candidate.microbatches:>5} {candidate.batch:>6} "
            f"{candidate.rows:>9g} {peak:>8} {item.predicted / GIB:>10.2f} {speed:>9} {clips:>8}  "
            f"{verdict(item, best)}"
        )
    for reason, count in found.rejected.items():
        lines.append(f"not compiled  {count:>5} x {reason}")
    if found.skipped:
        what = "not compiled within the budget" if found.exhausted else "expected to be no faster"
        lines.append(f"not compiled  {found.skipped:>5} x {what}")
    return "\n".join(lines)


def verdict(item: Tried, best: Tried | None) -> str:
    """In words: why it cannot be used, or how far it is behind the best."""
    facts = item.facts
    if not facts["fits"]:
        return "does not fit"
    if facts["whole"]:
        return f"{facts['whole'][0]} is whole on every chip"
    if facts["gathers_everything"]:
        return "gathers all parameters at once"
    if item is best:
        return "best"
    return f"fits, {item.score / best.score:.2f} x the time" if best else "fits"
