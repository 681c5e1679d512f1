"""Tasks of one label a case, images and texts: which of a few classes it is."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import logit_terms, loss_terms
from experiments.loss_view import DenseLogits, Maker, View
from experiments.tasks import Judgement, Task, label_loss_of, predict
from kdjax import losses, serve
from kdjax.layers import segment_mask
from kdjax.metrics import classification
from kdjax.models.linen import Sizes
from kdjax.reduce import totals
from kdjax.train.objective import Term


def make_task(
  name: str,
  inputs: Mapping[str, Mapping[str, np.ndarray]],
  labels: Mapping[str, np.ndarray],
  family: str,
  sizes: Sizes,
  *,
  count: str,
  request: Callable[[int], Any],
  block: int = 256,
  makers: Mapping[str, Maker] = loss_terms.IMAGE,
) -> Task:
  """The task of telling classes apart.

  Args:
    name: of the task.
    inputs: of each part `train`, `valid` and `test`: what a model reads, `[N, ...]` by name.
    labels: of each part, int32 `[N]`.
    family: of models.
    sizes: that the data decides.
    count: which of them is the number of classes.
    request: of `Task`.
    block: cases judged at once; texts by their tokens.
    makers: the losses of --distill_losses.
  """
  train, num_classes = labels["train"], sizes[count]

  def judge(apply, params, part) -> Judgement:
    texts = "segments" in inputs[part]  # Short ones cost what they hold.
    predicted = serve.encode_texts if texts else functools.partial(predict, size=block)
    logits, truth = predicted(apply, params, inputs[part]), labels[part]
    right = np.argmax(logits, axis=1) == truth
    log_probs = jax.nn.log_softmax(jnp.asarray(logits), axis=-1)
    loss = -np.take_along_axis(np.asarray(log_probs), truth[:, None], axis=1)[:, 0]
    per_case = {"accuracy": right.astype(np.float64), "log_loss": loss.astype(np.float64)}
    scalars = class_scores(logits, truth, num_classes)
    return Judgement(per_case, scalars, None, lambda cases: jnp.asarray(logits[cases]), None)

  return Task(
    name=name,
    arrays={**inputs["train"], "labels": train},
    num_examples=len(train),
    sizes=sizes,
    augment=lambda fit: None,
    label_term=lambda fit, weight: Term(
      label_loss_of(fit, "cross_entropy", ("cross_entropy",), family), label_loss, weight
    ),
    distill_term=lambda distill, fit: logit_terms.make_term(
      distill, lambda batch: jnp.ones(len(batch["labels"]), bool)
    ),
    metric="accuracy",
    judge=judge,
    serve=lambda apply: lambda params, batch: apply(params, batch).logits,
    request=request,
    flag_terms=lambda distill, fit, **counts: loss_terms.make_terms(
      makers, make_view(len(train)), distill, **counts
    ),
    valid={**inputs["valid"], "labels": labels["valid"]},
  )


def class_scores(logits: np.ndarray, labels: np.ndarray, num_classes: int) -> dict[str, float]:
  """Precision, recall and F1: of class 1 where there are two, else the mean over the classes."""
  found = np.argmax(logits, axis=1)
  of = [1] if num_classes == 2 else range(num_classes)
  metrics = {
    "precision": classification.binary_precision_metric,
    "recall": classification.binary_recall_metric,
    "f1": classification.binary_f1_metric,
  }
  return {
    name: float(
      np.mean([metric(jnp.where(found == c, 1.0, -1.0), jnp.asarray(labels == c)) for c in of])
    )
    for name, metric in metrics.items()
  }


def label_loss(student, teacher, batch):
  """Cross-entropy of the class."""
  del teacher
  return losses.cross_entropy_loss(student.logits, batch["labels"], reduce_fn=totals)


def make_view(num_rows: int) -> View:
  """How --distill_losses reads them: one position with as many classes as there are.

  Features of texts have positions of their own, of which those with a token count.
  """

  def real(batch):
    return (
      batch["segments"] > 0 if "segments" in batch else jnp.ones((len(batch["labels"]), 1), bool)
    )

  def attends(batch):
    return segment_mask(batch["segments"], causal=False) if "segments" in batch else None

  return View(
    logits=lambda outputs, batch: DenseLogits(outputs.logits[:, None]),
    labels=lambda batch: batch["labels"][:, None],
    items=lambda batch: batch["labels"][:, None],
    where=lambda batch: jnp.ones((len(batch["labels"]), 1), bool),
    real=real,
    num_rows=num_rows,
    attends=attends,
  )
