"""What a family of models learns from, and how it is judged: sequences, classes, search, speech.

A `Task` is everything that the binaries need to know of a task, as plain functions, so that each
binary is written once for all of them.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.config import DistillConfig, FitConfig
from kdjax.models.decoder import Cached
from kdjax.models.linen import Sizes
from kdjax.train.objective import Term
from kdjax.train.step import ReadRows, Sample
from kdjax.tree import to_host
from kdjax.types import Apply, Array, Batch, FactoredLogits, Params

SEQUENCE_FAMILIES = ("sasrec", "gru4rec", "two_tower", "bert4rec")
PAIR_FAMILIES = ("mf", "ncf")
CLICK_FAMILIES = ("mlp",)
IMAGE_FAMILIES = ("resnet",)
SPEECH_FAMILIES = ("speech_gru",)
TEXT_FAMILIES = ("bert", "text_gru", "text_cnn", "static")
LANGUAGE_FAMILIES = ("decoder",)
SEARCH_FAMILIES = ("bi_encoder", "cross_encoder")


class Judgement(NamedTuple):
  """How a model does on one part of the data.

  Attributes:
    per_case: float `[N]` by metric name, one value a user (ranking) or event (clicks); what
      intervals and paired tests are made from.
    scalars: metrics that are no mean of cases (AUC, F1, coverage, popularity bias).
    top_k: int32 `[N, k]`, the items recommended in each case (ranking, test part only).
    scores: `(cases int [n]) -> float [n, V]` over the catalogue, or `[n]` for clicks, or of all
      frames of recordings `[t, C]`: what agreement with a teacher compares.
    queries: one query a user with its table, where scores factor; None elsewhere.
    heads: what the heads of a model with several say of all users and items.
  """

  per_case: dict[str, np.ndarray]
  scalars: dict[str, float]
  top_k: np.ndarray | None
  scores: Callable[[np.ndarray], Array]
  queries: FactoredLogits | None
  heads: Mapping[str, Array] = {}


class Task(NamedTuple):
  """A task, bound to a dataset and a model family.

  Attributes:
    name: `sequence`, `masked`, `pair`, `click`, `image`, `speech`, `text`, `language`,
      `masked_language` or `search`; a student learns from a teacher of its own task.
    arrays: training rows, `[R, ...]` by name.
    num_examples: histories, pairs or clicks among the rows.
    sizes: the sizes that the data decides, such as `num_items`.
    augment: `(fit) -> (batch, key) -> batch`, or None where nothing is drawn.
    label_term: `(fit, weight) -> Term`.
    distill_term: `(distill, fit) -> Term`.
    metric: the validation metric that decides, the greater the better.
    judge: `(apply, params, part) -> Judgement` with part `valid` or `test`.
    serve: `(apply) -> (params, request) -> answer`, what is timed.
    request: `(count) -> request`, `count` requests of the longest kind.
    flag_terms: `(distill, fit, *, num_teachers, num_steps) -> [Term]` of --distill_losses.
    joint_term: `(distill, fit) -> Term` that does the work of both terms in one, or None where
      these flags have none.
    ends: int64 `[W, 2]` of sequences, the history of every window of the rows and the flat position
      of its last event, the newest window of a history first; None elsewhere.
    sampler: `(distill, cached) -> Sample`, of a student that writes some of its texts itself, or
      None where a task has no texts to write.
    retokenize: `(folder, max_length) -> rows or None`: the training texts in the tokens of the
      model of that folder, beside `arrays`; None where they are the same. None for other tasks.
    run_teacher: `(family, apply, params, *, embeddings, once) -> {name: [R, ...]}`, what a teacher
      says of the training rows, `scores` and perhaps features, where it always runs over them once;
      `once(make)` gives what `make()` does, which may be kept from before. None where it runs live.
    valid: validation rows as `arrays`, where losses can be taken on them.
    read_rows: `(fit) -> (batch) -> {path: ids}`, which rows of which params a batch reads, for
      --lazy_tables; None where a model has no table of users or items.
    lengths: int `[R]`, of how many positions a row makes use, for --group_by_length; None where
      rows are full, or are no texts.
    cut: names of the arrays `[R, ..., L]` of those positions.
  """

  name: str
  arrays: Mapping[str, np.ndarray]
  num_examples: int
  sizes: Sizes
  augment: Callable[[FitConfig], Callable[[Batch, Array], Batch] | None]
  label_term: Callable[[FitConfig, float], Term]
  distill_term: Callable[[DistillConfig, FitConfig], Term]
  metric: str
  judge: Callable[[Apply, Params, str], Judgement]
  serve: Callable[[Apply], Callable[[Params, Any], Any]]
  request: Callable[[int], Any]
  flag_terms: Callable[..., list[Term]]
  joint_term: Callable[[DistillConfig, FitConfig], Term | None] = lambda distill, fit: None
  ends: np.ndarray | None = None
  sampler: Callable[[DistillConfig, Cached], Sample] | None = None
  retokenize: Callable[[pathlib.Path, int], dict[str, np.ndarray] | None] | None = None
  run_teacher: Callable[..., dict[str, np.ndarray]] | None = None
  valid: Mapping[str, np.ndarray] | None = None
  read_rows: Callable[[FitConfig], ReadRows] | None = None
  lengths: np.ndarray | None = None
  cut: tuple[str, ...] = ()

  def rows_per_step(self, batch_size: int, *, multiple: int = 1) -> int:
    """How many rows hold `batch_size` examples on average: a multiple of `multiple`."""
    rows = len(next(iter(self.arrays.values())))
    return multiple * max(1, round(batch_size * rows / self.num_examples / multiple))


def label_loss_of(fit: FitConfig, default: str, allowed: tuple[str, ...], family: str) -> str:
  """The label loss that the flags ask for.

  Raises:
    ValueError: naming the flag, if this family cannot be trained with it.
  """
  name = default if fit.label_loss == "auto" else fit.label_loss
  if name not in allowed:
    raise ValueError(f"--label_loss={name} does not fit --model={family}; use {', '.join(allowed)}")
  return name


@functools.partial(jax.jit, static_argnums=0)
def logits_of(apply: Apply, params: Params, batch: Batch) -> Any:
  """What a model says of a batch, compiled once a model."""
  return apply(params, batch).logits


def predict(
  apply: Apply, params: Params, rows: Mapping[str, np.ndarray], *, size: int = 8192
) -> np.ndarray:
  """Logits of all cases, float32 `[N, ...]`, in blocks of one shape."""
  found, count = [], len(next(iter(rows.values())))
  for first in range(0, count, size):
    index = np.minimum(np.arange(first, first + size), count - 1)
    batch = {name: values[index] for name, values in rows.items()}
    found.append(to_host(logits_of(apply, params, batch))[: count - first])
  return np.concatenate(found)
