"""What a checkpoint is: model, size, classes, which published one it may be, how to use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from internvideo_jax.weights import zoo
from internvideo_jax.weights.entry import Entry
from internvideo_jax.weights.family import Facts, Kind, families, family_of, kinds


@dataclasses.dataclass(frozen=True)
class Identity:
    """What is known about a checkpoint.

    `named` are published checkpoints of the same file name and shapes, `alike` those that only have
    its shapes. `commands` are ready to run but for the names in capitals.
    """

    kind: str
    facts: Facts
    known: Kind | None = None  # None: nothing is said of such files
    size: str = ""  # of `of_size`; empty: the size of no published model
    named: tuple[Entry, ...] = ()
    alike: tuple[Entry, ...] = ()
    commands: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def text(self) -> str:
        """Lines about it."""
        if self.known is None:
            return f"  {self.kind}, not among the published checkpoints listed here"
        lines = [f"  {self.known.title}", f"  {self._shape(self.known)}"]
        lines += [f"  note: {remark}" for remark in self.remarks]
        entries = self.named or self.alike
        if entries:
            by = "name and shapes" if self.named else "shapes alone"
            lines.append(f"  published checkpoints that fit, by {by}:")
            lines += [f"    {_entry_line(entry)}" for entry in entries[:6]]
            if len(entries) > 6:
                lines.append(f"    and {len(entries) - 6} more")
        elif self.kind in {entry.kind for entry in zoo.entries()}:
            lines.append("  no published checkpoint has these shapes")
        for command in self.commands:
            lines += ["", command]
        return "\n".join(lines)

    def _shape(self, known: Kind) -> str:
        facts = self.facts
        parts = [
            f"size {self.size}" if self.size else "no published size",
            f"width {facts.get('width')}, {facts.get('depth')} layers, patch {facts.get('patch')}",
        ]
        if "tubelet" in facts:
            parts.append(f"tubelet {facts['tubelet']}")
        if "classes" in facts:
            parts.append(f"{facts['classes']} classes")
        if "decoder_width" in facts:
            parts.append(f"decoder {facts['decoder_width']} x {facts['decoder_depth']}")
        return ", ".join([*parts, *known.shape(facts)])


def identify(
    kind: str, params: Mapping[str, Any], geometry: Mapping[str, int], path: str
) -> Identity:
    """Says what the parameters are.

    Args:
      kind: of the weights, as `files.load` says.
      params: path -> anything with a `shape`.
      geometry: patch size, and tubelet where there is one.
      path: of the file, or of the run; its name counts and it goes into the commands.
    """
    known = kinds().get(kind)
    if known is None or not known.title:
        return Identity(kind, {"kind": kind, **geometry})
    facts = known.facts_of_params(params, geometry)
    size = known.size_of(facts)
    found = zoo.match(path, facts)
    named = tuple(entry for entry in found if zoo.is_named(entry, path))
    return Identity(
        kind,
        facts,
        known,
        size,
        named,
        () if named else found,
        _commands(known, facts, size, found, path),
        (*_contradictions(facts, named, path), *_cut_off(facts, size), *known.remarks(facts)),
    )


def _contradictions(facts: Facts, named: tuple[Entry, ...], path: str) -> list[str]:
    """Of published checkpoints that have the file's name and other shapes."""
    remarks = []
    for entry in () if named else (entry for entry in zoo.entries() if zoo.is_named(entry, path)):
        other = zoo.facts_of_entry(entry)
        name, value = next((n, v) for n, v in other.items() if facts.get(n, v) != v)
        remarks.append(
            f"named like {entry.name}, but that has {name} = {value} and this {facts[name]}"
        )
    return remarks


def _cut_off(facts: Facts, size: str) -> list[str]:
    """Of a file with the width of a published model and fewer layers."""
    for known in () if size else zoo.entries():
        theirs = zoo.facts_of_entry(known)
        same = all(theirs[each] == facts.get(each) for each in ("kind", "width", "hidden", "patch"))
        if same and theirs["depth"] > facts["depth"]:
            return [
                f"{facts['depth']} layers of the {theirs['depth']} that {known.size} has: "
                "the file may be cut off"
            ]
    return []


def _commands(
    known: Kind, facts: Facts, size: str, found: tuple[Entry, ...], path: str
) -> tuple[str, ...]:
    """Command lines to evaluate and to fine-tune; none where no recipe has this size."""
    first = found[0] if found else None
    config = _config(known, facts, size, first)
    if not config:
        return ()
    settings = first.settings if first is not None and not first.pretrained else ()
    settings = (*settings, *known.settings(facts))
    start = (
        f"ivj train --config={config} "
        f"--config.init_from={path} --workdir=runs/finetune --config.data.train=SHARDS"
    )
    if not known.can_be_evaluated(facts):
        return (" ".join((start, *settings)),)
    test = (
        f"ivj evaluate --config={config} "
        f"--checkpoint={path} --out=results.json --config.data.eval=SHARDS"
    )
    return (" ".join((test, *settings)), " ".join((start, *settings)))


def _config(known: Kind, facts: Facts, size: str, first: Entry | None) -> str:
    """The recipe of the published checkpoint, else of a family that starts from it, else its own.

    Others come first: what they say of another's weights is the more particular.
    """
    if first is not None:
        return first.finetune if first.pretrained else first.config
    own = family_of(known.name)
    others = [family for family in families() if family is not own]
    asked = [*others, own] if own is not None else others
    return next((recipe for family in asked if (recipe := family.recipe(facts, size))), "")


def _entry_line(entry: Entry) -> str:
    parts = [entry.name, entry.data, f"{entry.frames} x {entry.pixels} pixels"]
    if entry.protocol:
        parts.append(f"test {entry.protocol.clips} x {entry.protocol.crops}")
    if entry.reported:
        parts.append(f"reported {entry.reported}")
    return ", ".join(parts)
