"""Which steps of a run are on disk, without opening them."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.records import storage

FOLDER = "checkpoints"


def complete_steps(folder: str | Path) -> list[int]:
    """Numbers of the complete steps below a checkpoint folder, ascending.

    A step gets its plain number as a name only when all of it is written, on an object store the
    file that makes it complete.
    """
    if storage.is_remote(folder):
        from internvideo_jax.weights.remote import committed_steps  # late: the launcher starts fast

        return committed_steps(str(folder))
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def shown(path: Path) -> str:
    """A path as one would type it: from the working directory where it lies below."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def newest_step(workdir: str | Path) -> int | None:
    """The step from which a run would continue."""
    return next(iter(reversed(complete_steps(storage.join(workdir, FOLDER)))), None)


def safe_text(workdir: str | Path) -> str:
    """`the newest complete checkpoint is step 40 in runs/x/checkpoints`, for messages."""
    folder = storage.join(workdir, FOLDER)
    try:
        step = newest_step(workdir)
    except (storage.StorageError, OSError, ImportError) as error:
        return f"the checkpoints in {folder} cannot be listed ({error})"
    if step is None:
        return f"there is no checkpoint in {folder} yet"
    return f"the newest complete checkpoint is step {step} in {folder}"
