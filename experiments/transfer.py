"""Moves a model to another domain, whose items it knows by their texts or ids; a teacher there.

python -m experiments.transfer --workdir=runs/moved --model=runs/teacher --dataset=path/to/other \
  --item_embeddings=runs/other_titles

What comes out ranks the other log's items as it is (its test figures are printed), and
`experiments.distill --teacher=runs/moved` helps a student of that log.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from experiments import cli, problems, runs, stored, texts
from experiments.config import DataConfig
from kdjax import models, quant
from kdjax.data import ids
from kdjax.flags import group, option

FAMILIES = ("sasrec", "gru4rec")


@dataclasses.dataclass(frozen=True)
class Config:
  """Options of experiments.transfer."""

  model: str = option("", "Workdir of the model that moves: a sasrec or a gru4rec.")
  item_embeddings: tuple[str, ...] = option(
    (),
    "Tables of the other log's items, made as those that the model was trained with and in their "
    "order: workdirs of experiments.embed, or .npz files.",
  )
  shared_items: bool = option(
    False, "Items of one id in both logs are the same item, and keep their embedding."
  )
  data: DataConfig = group(DataConfig)


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Moves the model, judges it on the other log's test part, and leaves it in the workdir."""
  folder = runs.open_workdir(workdir, config)
  if (done := runs.finished(folder)) is not None:
    return done
  saved = stored.load_model(config.model, flag="--model")
  if saved.family not in FAMILIES:
    raise ValueError(f"--model={config.model} is a {saved.family}; use {' or '.join(FAMILIES)}")
  if any(map(quant.is_qtensor, jax.tree.leaves(saved.params, is_leaf=quant.is_qtensor))):
    raise ValueError(f"--model={config.model} is quantised; give what it was made from")
  needed = len(saved.sizes.get("feature_dims", ()))
  if len(config.item_embeddings) != needed:
    raise ValueError(
      f"--item_embeddings: the model was trained with {needed} tables, here are "
      f"{len(config.item_embeddings)}"
    )
  # The model has learned as many positions as it was trained with.
  data = dataclasses.replace(config.data, max_length=saved.data.max_length)
  problems.describe_data(data, saved.family, folder)
  items = [str(item) for item in problems.load_data(data).item_ids]
  rows = np.full(len(items), -1, np.int64)
  if config.shared_items:
    row_of = {str(item): row for row, item in enumerate(ids.load_ids(saved.folder / "ids")[1])}
    rows = np.array([row_of.get(item, -1) for item in items])
  print(f"{(rows >= 0).sum():,} of {len(items):,} items keep their embedding", flush=True)
  params, sizes = models.move_items(
    saved.params,
    saved.sizes,
    rows=rows,
    features=[texts.item_features(path, items) for path in config.item_embeddings],
  )
  return runs.finish(
    "transfer",
    folder,
    saved.family,
    sizes,
    jax.device_get(params),
    data,
    seed=0,
    training={"moved_from": str(saved.folder)},
  )


if __name__ == "__main__":
  cli.main(Config, run, None)
