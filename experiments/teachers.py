"""What the student learns from: teachers run live, or what is kept of them beside the rows."""

import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import caches, meshes, stored
from experiments.config import DistillConfig, FitConfig
from experiments.families import make_model
from experiments.stored import SavedModel
from experiments.tasks import Task, predict
from kdjax import serve
from kdjax.models import hub
from kdjax.train import teacher_cache, teacher_queries, teacher_tokens
from kdjax.types import Apply, Params


def join_teachers(
  task: Task,
  fit: FitConfig,
  distill: DistillConfig,
  teachers: Sequence[SavedModel],
  mesh: Mesh | None = None,
) -> tuple[Apply | None, Params, Mapping[str, np.ndarray]]:
  """One `apply` and its params for all teachers, and the rows that it reads.

  What is run once beforehand runs on the mesh, by all processes together; the texts of a search
  each of them reads for itself.
  """
  arrays = dict(task.arrays)
  if distill.teacher_cache:
    if teachers:
      raise ValueError("--teacher_cache stands for the teacher; leave --teacher out")
    coding, _ = teacher_cache.read(distill.teacher_cache)
    return teacher_cache.with_cache(coding), {}, arrays
  applies, params = [], []
  for number, teacher in enumerate(teachers):
    apply = make_model(teacher.family, teacher.sizes, fit.dtype).apply
    own = teacher.params  # On the host: a teacher that runs live may fit on no single device.
    suffix = f"_{number + 1}" if number else ""
    if task.run_teacher is not None:
      name = f"teacher_{number + 1}"
      here = jax.tree.map(jnp.asarray, own)
      kept: dict[str, Any] = {}
      if (folder := said_folder(distill, teacher)) is not None:
        kept["once"] = functools.partial(caches.once, said_path(folder, task, fit, teacher))
      said = task.run_teacher(teacher.family, apply, here, embeddings=distill.cache_queries, **kept)
      arrays |= {f"{name}_{part}": values for part, values in said.items()}
      features = sorted(set(said) - {"scores"})
      apply, own = teacher_queries.with_outputs(name=name, features=features), {}
    elif distill.cache_queries:
      name = teacher_queries.NAME + suffix
      arrays[name] = cache_queries(task, fit, *meshes.placed(apply, own, mesh))
      apply = teacher_queries.with_queries(apply, name=name)
    elif distill.cache_top_k:
      name = teacher_cache.NAME + suffix
      coding, arrays[name] = _cache_top_k(task, fit, distill, *meshes.placed(apply, own, mesh))
      apply, own = teacher_cache.with_cache(coding, name=name), {}
    elif (rows := _own_tokens(task, teacher)) is not None:
      if len(teachers) > 1:
        raise ValueError("--teacher: a teacher of other tokens than the student's must be alone")
      if distill.on_policy:
        raise ValueError(
          "--on_policy: a teacher of other tokens cannot read what the student writes; give one of "
          "the same tokenizer, or leave the flag out"
        )
      arrays |= {f"{teacher_tokens.NAME}_{name}": values for name, values in rows.items()}
      apply = teacher_tokens.with_own_tokens(apply)
    applies.append(apply)
    params.append(own)
  if not teachers:
    return None, None, arrays
  if len(teachers) == 1:
    return applies[0], params[0], arrays

  def all_apply(params, batch, *, key=None):
    return tuple(apply(own, batch, key=key) for apply, own in zip(applies, params, strict=True))

  return all_apply, params, arrays


def said_folder(distill: DistillConfig, teacher: SavedModel) -> pathlib.Path | None:
  """Where to keep what a teacher says of rows; None for nowhere."""
  if not distill.cache_scores:
    return None
  if distill.scores_dir:
    return pathlib.Path(distill.scores_dir)
  return None if hub.is_checkpoint(teacher.folder) else teacher.folder / "said"


def said_path(
  folder: pathlib.Path, task: Task, fit: FitConfig, teacher: SavedModel
) -> pathlib.Path:
  """The file of what a teacher says of these rows.

  Another model, other rows (data, fold, negatives, tokens) or another --dtype has another name.
  """
  rows = caches.fingerprint({name: task.arrays[name] for name in sorted(task.arrays)})
  parts = f"{stored.fingerprint(teacher)} {rows} {fit.dtype}"
  name = hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
  return folder / f"{name}.safetensors"


def _own_tokens(task: Task, teacher: SavedModel) -> dict[str, np.ndarray] | None:
  """The training texts as a teacher of other tokens reads them; None where it has the student's."""
  if task.retokenize is None:
    return None
  return task.retokenize(teacher.folder, teacher.data.max_length)


def _cache_top_k(
  task: Task, fit: FitConfig, distill: DistillConfig, apply: Apply, params: Params
) -> tuple[teacher_cache.Coding, np.ndarray]:
  k, classes = distill.cache_top_k, caches.num_classes(task)
  if k > classes:
    raise ValueError(f"--cache_top_k={k}: there are {classes:,} to choose from")
  coding = teacher_cache.Coding(classes, k, "float32", temperature=distill.temperature)
  caches.describe(task, coding)
  rows = teacher_cache.encode_rows(apply, params, task.arrays, coding, progress=fit.progress)
  return coding, rows


def cache_queries(task: Task, fit: FitConfig, apply: Apply, params: Params) -> np.ndarray:
  """What a teacher says of the training rows: its queries, or its logits of classes."""
  if task.name == "text":
    rows = {name: values for name, values in task.arrays.items() if name != "labels"}
    return serve.encode_texts(apply, params, rows)
  if task.name == "image":
    return predict(apply, params, task.arrays, size=256)
  if task.name != "sequence":
    raise ValueError(
      f"--cache_queries: the {task.name} task has no fixed positions whose query could be kept; "
      "leave the flag out"
    )
  dtype = None if fit.logits_dtype == "same" else fit.logits_dtype
  return teacher_queries.encode_rows(apply, params, task.arrays, dtype=dtype, progress=fit.progress)
