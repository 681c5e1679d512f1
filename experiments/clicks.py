"""The click task: whether an event with these features is a click (mlp, linear without layers)."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl

from experiments import loss_terms, prepared
from experiments.config import DataConfig, DistillConfig, FitConfig
from experiments.loss_view import DenseLogits, View
from experiments.tasks import Judgement, Task, label_loss_of, predict
from kdjax import losses
from kdjax.data.errors import DataError
from kdjax.data.interactions import Dataset
from kdjax.metrics import classification
from kdjax.reduce import totals
from kdjax.train.objective import Term

DAY = 86_400
PARTS = {"train": 0, "valid": 1, "test": 2}
PER_CASE: dict[str, Callable[..., Any]] = {
  "log_loss": classification.binary_log_loss_metric,
  "accuracy": classification.binary_accuracy_metric,
}
SCALARS: dict[str, Callable[..., Any]] = {
  "auc": classification.auc_metric,
  "precision": classification.binary_precision_metric,
  "recall": classification.binary_recall_metric,
  "f1": classification.binary_f1_metric,
}
ATTRIBUTE_VALUES = 1000  # An attribute with more distinct values is text, not a category.


def make_task(dataset: Dataset, config: DataConfig, family: str) -> Task:
  """The click task over a prepared log: dense and categorical features of every event."""

  def make() -> dict[str, np.ndarray]:
    rows, cardinalities = features(dataset)
    if not np.isin(rows["labels"], (0.0, 1.0)).all():
      raise DataError(
        "click labels must be 0 or 1; set --label_threshold to make them from ratings"
      )
    part = dataset.events["part"].to_numpy()
    parts = {f"{p}-{n}": v[part == index] for p, index in PARTS.items() for n, v in rows.items()}
    return {**parts, "cardinalities": np.array(cardinalities)}

  made = prepared.rows(config, "clicks", {}, make)
  parts = {
    part: {n.removeprefix(f"{part}-"): v for n, v in made.items() if n.startswith(f"{part}-")}
    for part in PARTS
  }
  for name in ("valid", "test"):
    if len(np.unique(parts[name]["labels"])) < 2:
      raise DataError(f"the {name} part has clicks of one kind only; use --split=time or ratio")

  def judge(apply, params, part) -> Judgement:
    scores = predict(apply, params, parts[part])
    labels = parts[part]["labels"]
    args = (jnp.asarray(scores), jnp.asarray(labels))
    scalars = {name: float(metric(*args)) for name, metric in SCALARS.items()}
    per_case = {
      name: np.asarray(metric(*args, reduce_fn=None), np.float64)
      for name, metric in PER_CASE.items()
    }
    return Judgement(per_case, scalars, None, lambda cases: jnp.asarray(scores[cases]), None)

  return Task(
    name="click",
    arrays=parts["train"],
    num_examples=len(parts["train"]["labels"]),
    sizes={
      "num_dense": parts["train"]["dense"].shape[1],
      "cardinalities": tuple(made["cardinalities"].tolist()),
    },
    augment=lambda fit: None,
    label_term=lambda fit, weight: Term(
      label_loss_of(fit, "bce", ("bce",), family), label_loss, weight
    ),
    distill_term=distill_term,
    metric="auc",
    judge=judge,
    serve=lambda apply: lambda params, batch: apply(params, batch).logits,
    request=lambda count: {
      name: np.resize(parts["test"][name], (count, *parts["test"][name].shape[1:]))
      for name in ("dense", "categorical")
    },
    flag_terms=lambda distill, fit, **counts: loss_terms.make_terms(
      loss_terms.CLICK, make_view(len(parts["train"]["labels"])), distill, **counts
    ),
  )


def features(dataset: Dataset) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
  """Features of every event, none of which knows its own or a later label.

  Categorical: user, item, and every attribute of the items with few distinct values. Dense: the
  log-frequency of user and item in training, and with timestamps the time of the day (as sine and
  cosine) and the age of the event within training.
  """
  events = dataset.events
  if "label" not in events.columns:
    raise DataError(
      "click models need a label: name a --label_column, or set --label_threshold to make it from "
      "ratings"
    )
  train = events.filter(pl.col("part") == PARTS["train"])
  columns, sizes = [events["user"].to_numpy(), events["item"].to_numpy()], []
  sizes = [dataset.num_users, dataset.num_items]
  if dataset.items is not None:
    for name in dataset.items.columns:
      values = dataset.items[name].cast(pl.String, strict=False)
      if name != "item" and 1 < values.n_unique() <= ATTRIBUTE_VALUES:
        codes = values.fill_null("").rank("dense").to_numpy().astype(np.int64) - 1
        columns.append(codes[events["item"].to_numpy()])
        sizes.append(int(codes.max()) + 1)
  dense = []
  for name, size in (("user", dataset.num_users), ("item", dataset.num_items)):
    counts = np.log1p(np.bincount(train[name].to_numpy(), minlength=size))
    dense.append((counts / max(counts.max(), 1.0))[events[name].to_numpy()])
  if "timestamp" in events.columns:
    seconds = events["timestamp"].to_numpy()
    angle = 2 * np.pi * (seconds % DAY) / DAY
    times = train["timestamp"].to_numpy()
    first, last = int(times.min()), int(times.max())
    age = np.clip((seconds - first) / max(last - first, 1), 0, 1)
    dense += [np.sin(angle), np.cos(angle), age]
  rows = {
    "dense": np.stack(dense, axis=1).astype(np.float32),
    "categorical": np.stack(columns, axis=1).astype(np.int32),
    "labels": events["label"].to_numpy().astype(np.float32),
  }
  return rows, tuple(sizes)


def label_loss(student, teacher, batch):
  """Binary cross-entropy of the click."""
  del teacher
  return losses.binary_cross_entropy_loss(student.logits, batch["labels"], reduce_fn=totals)


def make_view(num_rows: int) -> View:
  """How --distill_losses reads clicks: one position with one class."""
  return View(
    logits=lambda outputs, batch: DenseLogits(outputs.logits[:, None, None]),
    labels=lambda batch: batch["labels"].astype(jnp.int32)[:, None],
    items=lambda batch: jnp.zeros((len(batch["labels"]), 1), jnp.int32),
    where=lambda batch: jnp.ones((len(batch["labels"]), 1), bool),
    real=lambda batch: jnp.ones((len(batch["labels"]), 1), bool),
    num_rows=num_rows,
  )


def distill_term(distill: DistillConfig, fit: FitConfig) -> Term:
  """Softened Bernoulli KL of the click (also for `kl`: one logit has no softmax), or logit MSE."""
  del fit

  def loss(student, teacher, batch):
    del batch
    if distill.distill_loss == "mse":
      args = (student.logits[:, None], teacher.logits[:, None])
      return losses.logit_mse_loss(*args, reduce_fn=totals)
    return losses.bernoulli_kl_loss(
      student.logits, teacher.logits, temperature=distill.temperature, reduce_fn=totals
    )

  name = "mse" if distill.distill_loss == "mse" else "bernoulli_kl"
  return Term(f"distill_{name}", loss, distill.distill_weight)
