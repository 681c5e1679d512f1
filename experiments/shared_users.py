"""--user_embeddings: what a teacher of another domain knows of the users that both domains have."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import problems, texts
from experiments.config import DataConfig, DistillConfig
from experiments.tasks import Task
from kdjax import losses
from kdjax.reduce import totals
from kdjax.train.objective import Term


def added(task: Task, distill: DistillConfig, data: DataConfig) -> tuple[Task, list[Term]]:
  """The task with the users of --user_embeddings beside its rows, and the term that learns.

  Raises:
    ValueError: naming the flag, if it does not fit the task or knows none of the users.
  """
  if not distill.user_embeddings:
    return task, []
  if task.ends is None:
    raise ValueError(f"--user_embeddings fit causal sequence models, not the {task.name} task")
  if not distill.user_weight:
    raise ValueError("--user_weight=0 learns nothing from --user_embeddings")
  ids, vectors = texts.read_embeddings(distill.user_embeddings, flag="--user_embeddings")
  row_of = {name: row for row, name in enumerate(ids.tolist())}
  rows = np.array(
    [row_of.get(str(user), -1) for user in problems.load_data(data).user_ids], np.int32
  )
  print(f"--user_embeddings: {(rows >= 0).sum():,} of {len(rows):,} users are shared", flush=True)
  if (rows < 0).all():
    raise ValueError(f"--user_embeddings={distill.user_embeddings} knows none of the log's users")
  task = task._replace(arrays={**task.arrays, "shared_user": users_of(task, rows)})
  return task, [_term(distill, vectors)]


def users_of(task: Task, rows: np.ndarray) -> np.ndarray:
  """For every position of the training rows, `rows` of its user: int32 `[R, L]`, -1 for none."""
  assert task.ends is not None
  segments = np.asarray(task.arrays["segments"])
  row, column = np.divmod(task.ends[:, 1], segments.shape[1])
  user_of = np.full((len(segments), segments.max() + 1), -1, np.int32)
  user_of[row, segments[row, column]] = rows[task.ends[:, 0]]
  return np.take_along_axis(user_of, segments, axis=1)


def _term(distill: DistillConfig, vectors: np.ndarray) -> Term:
  """The cosine between a student's query, mapped, and what is known of its user.

  The map from one domain's users to another's is learned beside, as in T. Man et al., Cross-Domain
  Recommendation: An Embedding and Mapping Approach, IJCAI 2017.
  """
  width = vectors.shape[1]

  def init(key, student, teacher) -> Any:
    del teacher
    return losses.projector(student.features["query"].shape[-1], width).init(key)

  def loss(params, student, teacher, batch) -> Any:
    del teacher
    own, user = student.features["query"], batch["shared_user"]
    mapped = losses.projector(own.shape[-1], width).apply(params, own)
    known = jnp.asarray(vectors)[jnp.maximum(user, 0)]
    return losses.cosine_feature_loss(mapped, known, where=user >= 0, reduce_fn=totals)

  return Term("shared_users", loss, distill.user_weight, init=init)
