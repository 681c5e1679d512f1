"""Checkpoints of a run: the state with its position in the data, the best and others, by Orbax."""

import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp


class CheckpointError(ValueError):
  """A checkpoint that cannot be read back, by name."""


class Checkpoints:
  """The two checkpoint series of a workdir; `open_checkpoints` opens and closes them.

  A state is written once: as `best` where no earlier one was better, else as `latest`. Saves are
  atomic: a run killed while saving leaves the checkpoint before it.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    keep = ocp.training.preservation_policies.LatestN
    self._series = {
      name: ocp.training.Checkpointer(
        folder / name, preservation_policy=keep(count), cleanup_tmp_directories=True
      )
      for name, count in (("latest", 1), ("best", 2))
    }
    self._writing: Any = None

  def close(self) -> None:
    """Waits for what is being written."""
    try:
      self._finish()
    finally:
      for series in self._series.values():
        series.close()

  def _finish(self) -> None:
    if self._writing is not None:
      writing, self._writing = self._writing, None
      writing.result()

  def save(self, name: str, step: int, tree: Any, position: dict[str, Any]) -> None:
    """Writes `tree` and the JSON-able `position` as the newest of series `name`.

    It is copied to the host, and written while the caller goes on, who may donate it; what goes
    wrong is raised by the next call, or by `close`.
    """
    self._finish()  # One copy at a time; and Orbax leaves out a step while it writes another.
    self._writing = self._series[name].save_async(
      step, tree, custom_metadata=position, overwrite=True, force=True
    )

  def step(self, name: str) -> int | None:
    """The newest step of series `name`, None where there is none."""
    latest = self._series[name].latest
    return None if latest is None else latest.step

  def newest(self) -> str | None:
    """The series that holds the newest step of all, None where there is none."""
    steps = {name: self.step(name) for name in self._series}
    found = {name: step for name, step in steps.items() if step is not None}
    return max(found, key=lambda name: found[name]) if found else None

  def path(self, name: str) -> pathlib.Path | None:
    """Where the newest checkpoint of series `name` lies."""
    step = self.step(name)
    return None if step is None else self.folder / name / str(step)

  def restore(self, name: str, like: Any) -> tuple[Any, dict[str, Any]]:
    """The newest tree of series `name`, placed as `like` is, and its position.

    Raises:
      CheckpointError: if it is corrupt or holds other arrays than `like`.
    """
    self._finish()
    path = self.path(name)
    if path is None:
      raise CheckpointError(f"no checkpoint in {self.folder / name}")
    try:
      tree = self._series[name].load(self.step(name), like)
      position = ocp.metadata(path).custom_metadata
    except Exception as error:  # Orbax raises many types; all of them mean this file is no use.
      raise CheckpointError(
        f"cannot restore checkpoint {path}: {_first_line(error)}. If it was damaged, delete that "
        "folder to resume from the one before; if the model or optimizer flags changed, use a new "
        "--workdir"
      ) from error
    shapes = [jax.tree.map(lambda x: (x.shape, str(x.dtype)), t) for t in (tree, like)]
    if shapes[0] != shapes[1]:
      raise CheckpointError(
        f"checkpoint {path} was written by another configuration: its arrays have other shapes; "
        "use a new --workdir or the flags it was started with"
      )
    return tree, position


def _first_line(error: Exception) -> str:
  text = str(error).strip().splitlines()
  return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


@contextmanager
def open_checkpoints(folder: pathlib.Path) -> Iterator[Checkpoints]:
  """Opens the series below `folder`, creating it, and closes them however the block ends."""
  folder.mkdir(parents=True, exist_ok=True)
  checkpoints = Checkpoints(folder.resolve())
  try:
    yield checkpoints
  finally:
    checkpoints.close()
