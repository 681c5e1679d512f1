"""Teachers that were run once, in memory or on disk: what they say of a task's rows."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.config import DataConfig, DistillConfig, FitConfig
from experiments.tasks import Task
from kdjax import store
from kdjax.data.errors import DataError
from kdjax.train import teacher_cache
from kdjax.types import Apply, Params

TASKS = ("sequence", "language")  # Those whose rows have positions that never change.


def num_classes(task: Task) -> int:
  """Items or tokens."""
  return task.sizes["vocab_size" if task.name == "language" else "num_items"]


def describe(task: Task, coding: teacher_cache.Coding) -> int:
  """Says what will be kept; its bytes."""
  rows, length = task.arrays["segments"].shape
  size = rows * coding.row_bytes(length)
  print(
    f"the teacher's best {coding.k} of {rows:,} x {length} positions: {size / 1e6:,.1f} MB",
    flush=True,
  )
  return size


def feature_shapes(
  apply: Apply, params: Params, task: Task, names: tuple[str, ...]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
  """The shape of each named feature, of a row.

  Raises:
    ValueError: naming those that the teacher has.
  """
  if not names:
    return ()
  batch = {name: np.asarray(values[:1]) for name, values in task.arrays.items()}
  outputs = jax.eval_shape(apply, params, batch)
  if unknown := [name for name in names if name not in outputs.features]:
    known = ", ".join(sorted(outputs.features))
    raise ValueError(f"--features: the teacher has no {', '.join(unknown)}; it has {known}")
  return tuple((name, tuple(outputs.features[name].shape[1:])) for name in names)


def about(task: Task, data: DataConfig, family: str) -> dict[str, Any]:
  """What an index says of the rows: flags to read, and a fingerprint to compare."""
  return {
    "family": family,
    "data": dataclasses.asdict(data),
    "rows": fingerprint({n: task.arrays[n] for n in sorted(task.arrays)}),
  }


def fingerprint(arrays: dict[str, np.ndarray]) -> str:
  """Of the names, shapes and values of arrays."""
  found = hashlib.blake2b(digest_size=16)
  for name, values in arrays.items():
    found.update(f"{name} {values.dtype} {values.shape}".encode())
    found.update(np.ascontiguousarray(values).tobytes())
  return found.hexdigest()


def added(task: Task, distill: DistillConfig, fit: FitConfig, data: DataConfig) -> Task:
  """The task with the rows of --teacher_cache beside its own; streamed from disk by --stream.

  Raises:
    DataError: if they cannot be read, or are of other rows or another temperature; naming flags.
  """
  folder = distill.teacher_cache
  if not folder:
    return task
  if task.name not in TASKS:
    raise DataError(f"--teacher_cache: no fixed positions in the {task.name} task; leave it out")
  try:
    coding, rows = teacher_cache.read(folder)
  except DataError as error:
    raise DataError(f"--teacher_cache: {error}") from error
  now = about(task, data, "")
  if rows.about.get("rows") != now["rows"]:
    before = rows.about.get("data", {})
    changed = [
      f"--{n} was {before[n]!r}, is {v!r}"
      for n, v in now["data"].items()
      if n in before and before[n] != (list(v) if isinstance(v, tuple) else v)
    ]
    raise DataError(
      f"--teacher_cache={folder} is of other training rows: "
      f"{', '.join(changed) or 'the data have changed'}; run experiments.cache_teacher again"
    )
  if coding.temperature != distill.temperature:
    raise DataError(
      f"--teacher_cache={folder} was made for --temperature={coding.temperature:g}, here it is "
      f"{distill.temperature:g}"
    )
  kept: Any = rows if fit.stream else np.asarray(rows)
  return task._replace(arrays={**task.arrays, teacher_cache.NAME: kept})


def once(path: pathlib.Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """The arrays that `make` gives: read from a file, which is written where there is none.

  Raises:
    DataError: if the file is damaged, or its folder cannot be written; saying what to do.
  """
  if path.exists():
    try:
      found = {name: np.asarray(values) for name, values in store.load_params(path)[0].items()}
    except store.StoreError as error:
      raise DataError(f"{error}; delete the file, and the teacher runs again") from error
    print(f"what the teacher says is read from {path}", flush=True)
    return found
  mend = (
    f"{path.parent} cannot be written; --cache_scores=false keeps what a teacher says in memory"
  )
  try:
    path.parent.mkdir(exist_ok=True)
    if not os.access(path.parent, os.W_OK):  # Before the teacher runs for nothing.
      raise DataError(mend)
    found = make()
    store.save_params(path, found)
  except OSError as error:
    raise DataError(f"{mend}: {error}") from error
  return found
