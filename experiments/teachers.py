"""What the student learns from: teachers run live, or what is kept of them beside the rows."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import DistillConfig, FitConfig
from experiments.runs import SavedModel, make_model
from experiments.tasks import Task
from kdjax.train import teacher_queries
from kdjax.types import Apply, Params


def join_teachers(
  task: Task, fit: FitConfig, distill: DistillConfig, teachers: Sequence[SavedModel]
) -> tuple[Apply | None, Params, Mapping[str, np.ndarray]]:
  """One `apply` and its params for all teachers, and the rows that it reads."""
  arrays = dict(task.arrays)
  applies = []
  for number, teacher in enumerate(teachers):
    apply = make_model(teacher.family, teacher.sizes, fit.dtype).apply
    if distill.cache_queries:
      name = teacher_queries.NAME + (f"_{number + 1}" if number else "")
      arrays[name] = _cache_queries(task, fit, apply, teacher.params)
      apply = teacher_queries.with_queries(apply, name=name)
    applies.append(apply)
  params = [jax.tree.map(jnp.asarray, teacher.params) for teacher in teachers]
  if not teachers:
    return None, None, arrays
  if len(teachers) == 1:
    return applies[0], params[0], arrays

  def all_apply(params, batch, *, key=None):
    return tuple(apply(own, batch, key=key) for apply, own in zip(applies, params, strict=True))

  return all_apply, params, arrays


def _cache_queries(task: Task, fit: FitConfig, apply: Apply, params: Params) -> np.ndarray:
  if task.name != "sequence":
    raise ValueError(
      f"--cache_queries: the {task.name} task has no fixed positions whose query could be kept; "
      "leave the flag out"
    )
  dtype = None if fit.logits_dtype == "same" else fit.logits_dtype
  return teacher_queries.encode_rows(apply, params, task.arrays, dtype=dtype, progress=fit.progress)
