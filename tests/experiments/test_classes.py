"""Precision, recall and F1 as the tasks of classes report them, beside scikit-learn's."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support

from experiments import classes, problems, texts
from kdjax.types import Outputs

NAMES = ("precision", "recall", "f1")


def expected(found, labels, average):
  return precision_recall_fscore_support(labels, found, average=average, zero_division=0)[:3]


def test_a_case_by_hand():
  # Told 1 four times, right thrice; class 1 is there five times.
  found = np.array([1, 1, 1, 1, 0, 0, 0])
  labels = np.array([1, 1, 1, 0, 1, 1, 0])
  scores = classes.class_scores(np.eye(2)[found], labels, 2)
  assert scores == pytest.approx({"precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3})


@pytest.mark.parametrize("count", [2, 4])
def test_they_are_those_of_scikit_learn(count):
  rng = np.random.default_rng(count)
  labels, logits = rng.integers(0, count, 60), rng.normal(size=(60, count))
  logits[:, -1] -= 9 * (count > 2)  # A class that is never told.
  average = "binary" if count == 2 else "macro"
  scores = classes.class_scores(logits, labels, count)
  np.testing.assert_allclose(
    [scores[name] for name in NAMES], expected(logits.argmax(1), labels, average), rtol=1e-6
  )


def test_the_text_task_reports_them():
  task = problems.make_task(tiny.TEXTS, "static")
  table = np.random.default_rng(0).normal(size=(task.sizes["vocab_size"], 2)).astype(np.float32)

  def apply(params, batch, *, key=None):
    del key
    rows = jnp.where(batch["segments"][..., None] > 0, params[batch["tokens"]], 0.0)
    return Outputs(jnp.sum(rows, axis=1), {})

  part = texts.load(tiny.TEXTS).parts["test"]
  rows = texts.encode_alone(
    texts.tokenizer(tiny.TEXTS), part.texts, max_length=tiny.TEXTS.max_length
  )
  logits = np.where(rows["segments"][..., None] > 0, table[rows["tokens"]], 0.0).sum(axis=1)
  judgement = task.judge(apply, jnp.asarray(table), "test")
  told = logits.argmax(axis=1)
  np.testing.assert_allclose(
    [judgement.scalars[name] for name in NAMES], expected(told, part.labels, "binary"), rtol=1e-6
  )
  accuracy = accuracy_score(part.labels, told)
  assert judgement.per_case["accuracy"].mean() == pytest.approx(accuracy)
  shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  assert judgement.per_case["log_loss"].mean() == pytest.approx(
    log_loss(part.labels, shares), rel=1e-5
  )
