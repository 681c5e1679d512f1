"""Judging catalogue models: every user against the whole catalogue, seen items removed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks import Judgement
from kdjax.data.interactions import Dataset, Sequences
from kdjax.metrics import catalog, exposure, ranks
from kdjax.metrics import sampled as sampled_ranks
from kdjax.types import Array, FactoredLogits

KS = (1, 5, 10, 20)
COLD = 5  # Training events of an item below which it is called cold.
LIST = 10  # Length of the lists that coverage, popularity and agreement look at.


def histories(dataset: Dataset, part: str) -> Sequences:
  """What a model may know before `part`: training, and validation too before the test."""
  split = dataset.split
  return split.train if part == "valid" else concatenate(split.train, split.valid)


def concatenate(first: Sequences, second: Sequences) -> Sequences:
  """The events of both, user by user."""
  offsets = first.offsets + second.offsets
  items = np.empty(offsets[-1], np.int32)
  for part, shift in ((first, 0), (second, first.lengths)):
    start = np.repeat(offsets[:-1] + shift - part.offsets[:-1], part.lengths)
    items[np.arange(len(part.items)) + start] = part.items
  return Sequences(items, offsets)


def judge_factored(dataset: Dataset, part: str, logits: FactoredLogits) -> Judgement:
  """The judgement of a model with one query a user."""
  seen, targets = histories(dataset, part), getattr(dataset.split, part)
  lists = (seen.items, seen.offsets)
  found = catalog.rank_targets(
    logits.query, logits.table, *lists, targets.items, targets.offsets, bias=logits.bias
  )
  best = None
  if part == "test":
    best = catalog.top_k(logits.query, logits.table, *lists, k=LIST, bias=logits.bias)

  def scores(cases: np.ndarray):
    return logits._replace(query=logits.query[found.users[cases]]).dense()

  return _judgement(dataset, found, best, scores, logits)


def judge_scorer(dataset: Dataset, part: str, scorer: catalog.Scorer, state: Any) -> Judgement:
  """The judgement of a model whose scores do not factor."""
  seen, targets = histories(dataset, part), getattr(dataset.split, part)
  options: dict[str, Any] = {
    "num_items": dataset.num_items,
    "users_per_block": 32,
    "items_per_block": 1024,
  }
  lists = (seen.items, seen.offsets)
  found = catalog.rank_targets_with(
    scorer, state, *lists, targets.items, targets.offsets, **options
  )
  best = catalog.top_k_with(scorer, state, *lists, k=LIST, **options) if part == "test" else None

  def scores(cases: np.ndarray):
    return scorer(state, jnp.asarray(found.users[cases]), jnp.arange(dataset.num_items))

  return _judgement(dataset, found, best, scores, None)


def _judgement(
  dataset: Dataset,
  found: ranks.Ranks,
  best: catalog.TopK | None,
  scores: Callable[[np.ndarray], Array],
  queries: FactoredLogits | None,
) -> Judgement:
  per_case = ranks.per_user(found, ks=KS)
  if best is None:
    return Judgement(per_case, {}, None, scores, queries)
  lists = best.ids[found.users]
  counts = np.bincount(dataset.split.train.items, minlength=dataset.num_items)
  scalars = cold_start(counts, found, per_case) | {
    f"coverage@{LIST}": exposure.coverage(lists, num_items=dataset.num_items),
    f"popularity@{LIST}": exposure.popularity(lists, counts),
    f"gini@{LIST}": exposure.gini(lists, num_items=dataset.num_items),
  }
  return Judgement(per_case, scalars, lists, scores, queries)


def cold_start(
  counts: np.ndarray, found: ranks.Ranks, per_case: dict[str, np.ndarray]
) -> dict[str, float]:
  """NDCG and recall of the users all of whose test items have fewer than COLD training events."""
  cold = np.logical_and.reduceat(counts[found.items] < COLD, found.offsets[:-1])
  if not cold.any():
    return {}
  names = (f"ndcg@{LIST}", "recall@20")
  means = {f"cold_{name}": float(np.mean(per_case[name][cold])) for name in names}
  return means | {"cold_users": float(cold.sum())}


def sampled(
  dataset: Dataset, queries: FactoredLogits, *, num_negatives: int, seed: int
) -> dict[str, float]:
  """Test metrics against sampled negatives, all by names that begin with `sampled`."""
  seen, targets = histories(dataset, "test"), dataset.split.test
  found = sampled_ranks.sampled_rank_targets(
    queries.query,
    queries.table,
    seen.items,
    seen.offsets,
    targets.items,
    targets.offsets,
    key=jax.random.key(seed),
    num_negatives=num_negatives,
    bias=queries.bias,
  )
  return ranks.summarize(found, ks=KS)
