"""The image task: which class an image belongs to (resnet)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import loss_terms
from experiments.config import DataConfig, DistillConfig, FitConfig
from experiments.loss_view import DenseLogits, View
from experiments.tasks import Judgement, Task, label_loss_of, predict
from kdjax import losses
from kdjax.data.images import ImageDataset, load_images, make_images
from kdjax.reduce import totals
from kdjax.train.objective import Term


@functools.lru_cache(maxsize=2)
def load(config: DataConfig) -> ImageDataset:
  """The images that --dataset names: a folder of idx files, or `synthetic`.

  Raises:
    DataError: naming the file and the mend.
  """
  if config.dataset == "synthetic":
    return make_images(config.synthetic_users, seed=config.data_seed)
  return load_images(config.dataset, valid_fraction=config.valid_fraction)


def describe(dataset: ImageDataset) -> str:
  """One line: how many images of which size in which part."""
  counts = ", ".join(f"{name} {len(part.labels):,}" for name, part in dataset.parts.items())
  size = "x".join(map(str, dataset.parts["train"].images.shape[1:]))
  return f"images {size} | {dataset.num_classes} classes | {counts} | {dataset.note}"


def make_task(dataset: ImageDataset, config: DataConfig, family: str) -> Task:
  """The image task."""
  del config
  train = dataset.parts["train"]

  def judge(apply, params, part) -> Judgement:
    images, labels = dataset.parts[part]
    logits = predict(apply, params, {"image": images}, size=256)
    right = np.argmax(logits, axis=1) == labels
    log_probs = jax.nn.log_softmax(jnp.asarray(logits), axis=-1)
    loss = -np.take_along_axis(np.asarray(log_probs), labels[:, None], axis=1)[:, 0]
    per_case = {"accuracy": right.astype(np.float64), "log_loss": loss.astype(np.float64)}
    return Judgement(per_case, {}, None, lambda cases: jnp.asarray(logits[cases]), None)

  return Task(
    name="image",
    arrays={"image": train.images, "labels": train.labels},
    num_examples=len(train.labels),
    sizes={"num_classes": dataset.num_classes},
    augment=lambda fit: None,
    label_term=lambda fit, weight: Term(
      label_loss_of(fit, "cross_entropy", ("cross_entropy",), family), label_loss, weight
    ),
    distill_term=distill_term,
    metric="accuracy",
    judge=judge,
    serve=lambda apply: lambda params, batch: apply(params, batch).logits,
    request=lambda count: {
      "image": np.resize(dataset.parts["test"].images, (count, *train.images.shape[1:]))
    },
    flag_terms=lambda distill, fit, **counts: loss_terms.make_terms(
      loss_terms.IMAGE, make_view(len(train.labels)), distill, **counts
    ),
  )


def label_loss(student, teacher, batch):
  """Cross-entropy of the class."""
  del teacher
  return losses.cross_entropy_loss(student.logits, batch["labels"], reduce_fn=totals)


def distill_term(distill: DistillConfig, fit: FitConfig) -> Term:
  """Softened KL over the classes, its Bernoulli form, or logit MSE."""
  del fit

  def loss(student, teacher, batch):
    del batch
    if distill.distill_loss == "mse":
      return losses.logit_mse_loss(student.logits, teacher.logits, reduce_fn=totals)
    name = f"{distill.distill_loss}_loss"
    temperature = distill.temperature
    return getattr(losses, name)(
      student.logits, teacher.logits, temperature=temperature, reduce_fn=totals
    )

  return Term(f"distill_{distill.distill_loss}", loss, distill.distill_weight)


def make_view(num_rows: int) -> View:
  """How --distill_losses reads images: one position with as many classes as there are."""
  return View(
    logits=lambda outputs, batch: DenseLogits(outputs.logits[:, None]),
    labels=lambda batch: batch["labels"][:, None],
    items=lambda batch: batch["labels"][:, None],
    where=lambda batch: jnp.ones((len(batch["labels"]), 1), bool),
    real=lambda batch: jnp.ones((len(batch["labels"]), 1), bool),
    num_rows=num_rows,
  )
