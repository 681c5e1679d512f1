"""What a recommender knows of its users, for a student in another domain that shares some of them.

python -m experiments.embed_users --workdir=runs/users --model=runs/teacher

Writes `embeddings.npz` (`ids`, as the log has them, and `embeddings`, float32 `[U, D]`): the query
of every user after all training events. `experiments.distill --user_embeddings` learns from it.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments import cli, families, problems, runs, stored, texts
from experiments.embed import EMBEDDINGS_FILE
from kdjax.flags import option


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.embed_users."""

  model: str = option("", "Workdir of a trained recommender.")


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Encodes the training events of every user that has some."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  saved = stored.load_model(config.model, flag="--model")
  task = problems.make_task(saved.data, saved.family)
  apply = families.make_model(saved.family, saved.sizes).apply
  queries = task.judge(apply, saved.params, "valid").queries
  if queries is None:
    raise ValueError(f"--model={config.model}: a {saved.family} has no query of a user alone")
  dataset = problems.load_data(saved.data)
  known = dataset.split.train.lengths > 0
  names = np.array([str(user) for user in dataset.user_ids])[known]
  vectors = np.asarray(queries.query, np.float32)[known]
  texts.write_embeddings(folder / EMBEDDINGS_FILE, names, vectors)
  print(f"{len(names):,} users embedded in {vectors.shape[1]} dimensions", flush=True)
  result = {
    "job": "embed_users",
    "users": len(names),
    "width": int(vectors.shape[1]),
    "file": EMBEDDINGS_FILE,
  }
  runs.write_result(folder, result)
  return result


if __name__ == "__main__":
  cli.main(Config, run, None)
