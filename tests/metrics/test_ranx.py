"""Whole-catalogue metrics against ranx, on tiny inputs, without its minute of compilation."""

import warnings

import numpy as np
import pytest

from kdjax import metrics


@pytest.fixture(scope="module")
def ranx():
  # It and its friends warn; none of it is ours.
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return pytest.importorskip("ranx")


def test_metrics_agree_with_ranx(ranx):
  rng = np.random.default_rng(0)
  users, items, k = 6, 15, 4
  queries = rng.normal(size=(users, 3)).astype(np.float32)
  table = rng.normal(size=(items, 3)).astype(np.float32)
  picks = [rng.permutation(items)[:5] for _ in range(users)]
  seen, targets = np.array([p[:3] for p in picks]), np.array([p[3:] for p in picks])
  ranks = metrics.rank_targets(
    queries,
    table,
    seen.reshape(-1),
    np.arange(users + 1) * 3,
    targets.reshape(-1),
    np.arange(users + 1) * 2,
  )
  got = metrics.per_user(ranks, ks=[k])

  scores = queries @ table.T
  qrels = {str(u): {str(i): 1 for i in targets[u]} for u in range(users)}
  run = {
    str(u): {str(i): float(scores[u, i]) for i in range(items) if i not in seen[u]}
    for u in range(users)
  }
  names = {
    "hr": "hit_rate",
    "recall": "recall",
    "precision": "precision",
    "ndcg": "ndcg",
    "mrr": "mrr",
    "map": "map",
  }
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    qrels, run = ranx.Qrels(qrels), ranx.Run(run)
    expected = ranx.evaluate(
      qrels, run, [f"{name}@{k}" for name in names.values()], return_mean=False
    )
  for ours, theirs in names.items():
    np.testing.assert_allclose(
      got[f"{ours}@{k}"], expected[f"{theirs}@{k}"], atol=1e-9, err_msg=ours
    )


def test_graded_lists_agree_with_ranx(ranx):
  rng = np.random.default_rng(1)
  users, items, listed, k = 5, 20, 12, 6
  scores = rng.normal(size=(users, listed))
  ids = np.stack([rng.permutation(items)[:listed] for _ in range(users)])
  targets = np.stack([np.sort(rng.permutation(items)[:4]) for _ in range(users)])
  gains = rng.integers(1, 5, (users, 4))
  found = metrics.rank_lists(scores, ids, targets.reshape(-1), np.arange(users + 1) * 4)
  got = metrics.per_user(found, ks=[k], gains=gains.reshape(-1))
  names = [str(i) for i in range(users)]
  qrels = {n: {str(i): int(g) for i, g in zip(*row, strict=True)}
           for n, *row in zip(names, targets, gains, strict=True)}  # fmt: skip
  run = {n: {str(i): float(s) for i, s in zip(*row, strict=True)}
         for n, *row in zip(names, ids, scores, strict=True)}  # fmt: skip
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    of = [f"{name}@{k}" for name in ("ndcg", "mrr", "recall")]
    expected = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), of, return_mean=False)
  for name in of:
    np.testing.assert_allclose(got[name], expected[name], atol=1e-9, err_msg=name)
