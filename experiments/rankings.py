"""Rankings made once, by `experiments.rank_titles` or elsewhere, and how a student learns them."""

import pathlib
import zipfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import files, problems
from experiments.candidate_terms import importance
from experiments.config import DataConfig, DistillConfig, FitConfig
from experiments.loss_view import logits_at
from experiments.sequences import catalog_logits
from experiments.tasks import Task
from kdjax.data.errors import DataError
from kdjax.data.interactions import Dataset
from kdjax.reduce import totals
from kdjax.train.objective import Term

FILE = "rankings.npz"


class Rankings(NamedTuple):
  """For some users, items ranked after all training events but the last.

  Attributes:
    users: `[N]`, ids of the log, as text.
    items: `[N, C]`, ids of the log, as text; best first.
    scores: float32 `[N, C]`, log-likelihoods up to a constant a user, falling along a row.
  """

  users: np.ndarray
  items: np.ndarray
  scores: np.ndarray


def write(path: pathlib.Path, rankings: Rankings) -> None:
  """Writes them whole or not at all."""
  with files.whole(path) as part, part.open("wb") as file:
    np.savez_compressed(file, **rankings._asdict())


def read(path: str | pathlib.Path) -> Rankings:
  """Reads rankings; a folder stands for the file in it.

  Raises:
    DataError: naming the file, if it is missing or holds none.
  """
  file = pathlib.Path(path)
  file = file / FILE if file.is_dir() else file
  try:
    with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
      made = Rankings(
        found["users"].astype(str),
        found["items"].astype(str),
        found["scores"].astype(np.float32),
      )
  except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
    raise DataError(
      f"--cached_rankings: {file}: no users, items and scores in it: {error}"
    ) from error
  if made.items.ndim != 2 or made.items.shape != made.scores.shape:
    raise DataError(f"{file}: items {made.items.shape} for scores {made.scores.shape}")
  if made.users.shape != made.items.shape[:1] or (np.diff(made.scores) > 0).any():
    raise DataError(f"{file}: {made.users.shape} users; a row of scores a user, best first")
  return made


def rows_of(rankings: Rankings, dataset: Dataset, task: Task) -> dict[str, np.ndarray]:
  """The rankings beside the training rows: where they belong, and what they say.

  Returns:
    `ranked_places` int32 `[R, S]`, the position of a row that each belongs to, -1 for none;
    `ranked_ids` int32 `[R, S, C]`; `ranked_scores` float32 `[R, S, C]`.

  Raises:
    ValueError: if they fit none of the log's users, or name an item that it has not.
  """
  assert task.ends is not None
  row_of_user = {name: row for row, name in enumerate(rankings.users.tolist())}
  item_of = {str(item): index for index, item in enumerate(dataset.item_ids)}
  # The newest window of a user comes first, and ends where the last label is the last event.
  users, newest = np.unique(task.ends[:, 0], return_index=True)
  chosen = np.array([row_of_user.get(str(dataset.user_ids[int(user)]), -1) for user in users])
  if (chosen < 0).all():
    raise ValueError(f"--cached_rankings: none of its users is one of the log's {len(users):,}")
  try:
    ids = np.array([item_of[item] for item in rankings.items.reshape(-1).tolist()], np.int32)
  except KeyError as error:
    raise ValueError(f"--cached_rankings: the log has no item {error}") from error
  ids = ids.reshape(rankings.items.shape)
  places, known = task.ends[newest, 1][chosen >= 0], chosen[chosen >= 0]
  num_rows, length = np.shape(task.arrays["items"])
  order = np.argsort(places, kind="stable")
  places, known = places[order], known[order]
  row, column = np.divmod(places, length)
  nth = np.arange(len(row)) - np.searchsorted(row, row)
  most, count = int(nth.max()) + 1, rankings.items.shape[1]
  out = {
    "ranked_places": np.full((num_rows, most), -1, np.int32),
    "ranked_ids": np.zeros((num_rows, most, count), np.int32),
    "ranked_scores": np.zeros((num_rows, most, count), np.float32),
  }
  out["ranked_places"][row, nth] = column
  out["ranked_ids"][row, nth] = ids[known]
  out["ranked_scores"][row, nth] = rankings.scores[known]
  return out


def added(
  task: Task, distill: DistillConfig, fit: FitConfig, data: DataConfig
) -> tuple[Task, list[Term]]:
  """The task with --cached_rankings beside its rows, and the term that learns from them."""
  if not distill.cached_rankings:
    return task, []
  if task.ends is None:
    raise ValueError(f"--cached_rankings fit causal sequence models, not the {task.name} task")
  if not distill.ranking_weight:
    raise ValueError("--ranking_weight=0 learns nothing from --cached_rankings")
  rows = rows_of(read(distill.cached_rankings), problems.load_data(data), task)
  task = task._replace(arrays={**task.arrays, **rows})
  return task, [_term(distill, fit)]


def _term(distill: DistillConfig, fit: FitConfig) -> Term:
  """Importance-aware ranking distillation from rankings that are beside the rows.

  What the teacher generated is not at hand: minus the log of an item's share of the list tells how
  far it lies from that.
  """

  def loss(student: Any, teacher: Any, batch: Any):
    del teacher
    places, ids, scores = (batch[f"ranked_{name}"] for name in ("places", "ids", "scores"))
    own = logits_at(jnp.maximum(places, 0), catalog_logits(student.logits, fit))
    count = ids.shape[-1]
    distances = -jax.nn.log_softmax(scores.reshape(-1, count), axis=-1)
    done = {"where": places.reshape(-1) >= 0, "reduce_fn": totals}
    return importance(own, ids.reshape(-1, count), distances, done)

  return Term("cached_ranking", loss, distill.ranking_weight)
