"""Tables updated by rows (--lazy_tables): the rows that a batch reads, and what does not fit."""

from collections.abc import Mapping

import jax.numpy as jnp

from experiments.config import DistillConfig, FitConfig
from experiments.tasks import Task
from kdjax import tree
from kdjax.models import split_heads
from kdjax.models.linen import Sizes
from kdjax.train.step import ReadRows
from kdjax.types import Apply, Array, Batch, Outputs, Params, Path, Select

OPTIMIZERS = ("adam", "adamw")


def make_reads(
  task: Task,
  family: str,
  fit: FitConfig,
  sizes: Sizes,
  distill: DistillConfig,
  *,
  taught: bool,
  pruned: bool,
) -> ReadRows | None:
  """Which rows of a model's tables a batch reads; None where tables are updated whole.

  Raises:
    ValueError: naming the flag that does not go with --lazy_tables.
  """
  if not fit.lazy_tables:
    return None
  if task.read_rows is None:
    raise ValueError(
      f"--lazy_tables: a {family} has no tables of users or items; leave it out, or use mf, ncf or "
      "a sequence model"
    )
  wrong = {
    f"--optimizer={fit.optimizer}: use {' or '.join(OPTIMIZERS)}": fit.optimizer not in OPTIMIZERS,
    "--parallel=pmap, whose devices each read other rows: use jit": fit.parallel == "pmap",
    "--train_bits, which rounds tables whole": bool(fit.train_bits),
    "--lora_rank, whose tables are frozen": bool(fit.lora_rank),
    "pruning, whose masks and scores are of tables whole": pruned,
    "--item_embeddings, which are adapted for all items": bool(sizes.get("feature_dims")),
    "--embedding, whose tables are small": bool(sizes.get("composition")),
    "heads, which read all items": bool(split_heads(sizes)[1]),
    f"a teacher of a {family}, which is compared over the whole catalogue without --sampled_rest": (
      taught and task.name != "pair" and not distill.sampled_rest
    ),
    "--cached_rankings, whose items are not the batch's": bool(distill.cached_rankings),
  }
  for flag, found in wrong.items():
    if found:
      raise ValueError(f"--lazy_tables does not go with {flag}; leave one of the two out")
  return task.read_rows(fit)


def with_targets(
  read_rows: ReadRows, teacher: Apply, teacher_params: Params, num_items: int
) -> ReadRows:
  """The rows that a batch and the best items of its cached teachers read (--sampled_rest)."""

  def read(batch: Batch) -> Mapping[Path, Array]:
    said = teacher(teacher_params, batch)
    each = [said] if isinstance(said, Outputs) else list(said)
    # Where nothing was kept, losses look the first or the last item up, and leave it out.
    ids = [one.logits.indices.reshape(-1) for one in each] + [jnp.array([0, num_items - 1])]
    return {
      path: jnp.concatenate([own.reshape(-1), *ids]) for path, own in read_rows(batch).items()
    }

  return read


def existing(read_rows: ReadRows, params: Params) -> ReadRows:
  """Those of the tables that a model of these sizes has."""
  paths = {path for path, _ in tree.leaves_with_path(params)}

  def read(batch: Batch) -> Mapping[Path, Array]:
    return {path: ids for path, ids in read_rows(batch).items() if path in paths}

  return read


def tables_of(read_rows: ReadRows, batch: Batch) -> Select:
  """Which leaves of what is trained are updated by rows."""
  paths = set(read_rows(batch))
  return tree.under("student", select=lambda path, leaf: path in paths)
