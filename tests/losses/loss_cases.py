"""The table every loss goes through: one `Case` a loss, about ten lines each.

An oracle is written from the paper in float64 NumPy and returns one value per example.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kdjax import losses
from kdjax.types import FactoredLogits


class Case(NamedTuple):
  """What the shared tests need to know about one loss.

  Attributes:
    loss: the public function.
    make: `make(rng) -> args`, NumPy arrays (or pytrees of them), 12 examples on the leading axis.
    oracle: `oracle(*args, **options) -> float64 [12, ...]`.
    options: keyword arguments besides where and reduce_fn.
    students: positions of the args that gradients reach.
    teachers: positions of the args that must get exactly zero gradient.
    shared: positions of the args without an example axis (a table, a bias).
    gradient: `gradient(*args, **options)`: of the summed loss in args[0], from the paper; or None.
    equal: pairs of positions (student, teacher) that make the loss 0 when all agree.
    edges: positions of the args that must bear -inf and +-1e4.
    name: distinguishes two cases of one loss.
  """

  loss: Callable[..., Any]
  make: Callable[[np.random.Generator], tuple]
  oracle: Callable[..., np.ndarray]
  options: dict[str, Any] = {}  # noqa: RUF012 - never mutated.
  students: tuple[int, ...] = (0,)
  teachers: tuple[int, ...] = ()
  shared: tuple[int, ...] = ()
  gradient: Callable[..., np.ndarray] | None = None
  equal: tuple[tuple[int, int], ...] = ()
  edges: tuple[int, ...] = ()
  name: str = ""

  @property
  def id(self) -> str:
    return self.loss.__name__ + (f"-{self.name}" if self.name else "")


EXAMPLES = 12


def normal(*shapes, scale=1.5):
  """A `make` of float32 arrays `[12, *shape]`."""
  return lambda rng: tuple(
    rng.normal(scale=scale, size=(EXAMPLES, *s)).astype(np.float32) for s in shapes
  )


def with_labels(num_classes, *shapes):
  """A `make` of float32 arrays, then int32 labels `[12]`."""
  return lambda rng: (
    *normal(*shapes)(rng),
    rng.integers(0, num_classes, EXAMPLES, dtype=np.int32),
  )


def softmax(logits, temperature=1.0, support=None):
  logits = np.asarray(logits, np.float64) / temperature
  if support is not None:
    logits = np.where(support, logits, -np.inf)
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def plogpq(p, q):
  """p log(p / q), 0 where p is 0."""
  return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / np.where(p > 0, q, 1)), 0)


def kl_oracle(student, teacher, temperature=1.0, support=None):
  s, t = (softmax(z, temperature, support) for z in (student, teacher))
  return temperature**2 * plogpq(t, s).sum(-1)


def kl_gradient(student, teacher, temperature=1.0, support=None):
  s, t = (softmax(z, temperature, support) for z in (student, teacher))
  return temperature * (s - t)


def bernoulli_oracle(student, teacher, temperature=1.0):
  s, t = (sigmoid(np.float64(z) / temperature) for z in (student, teacher))
  return temperature**2 * (plogpq(t, s) + plogpq(1 - t, 1 - s))


def bernoulli_gradient(student, teacher, temperature=1.0):
  s, t = (sigmoid(np.float64(z) / temperature) for z in (student, teacher))
  return temperature * (s - t)


def mse_oracle(student, teacher, support=None):
  support = np.ones(student.shape[-1], bool) if support is None else support
  return ((np.float64(student) - teacher)[..., support] ** 2).mean(-1)


def mse_gradient(student, teacher, support=None):
  support = np.ones(student.shape[-1], bool) if support is None else support
  return np.where(support, 2 * (np.float64(student) - teacher) / support.sum(), 0)


def smoothed(logits, labels, label_smoothing, support):
  """The target distribution of smoothed cross-entropy."""
  support = np.ones(logits.shape[-1], bool) if support is None else support
  uniform = support / support.sum()
  return (1 - label_smoothing) * np.eye(logits.shape[-1])[labels] + label_smoothing * uniform


def cross_entropy_oracle(logits, labels, label_smoothing=0.0, support=None):
  q = smoothed(logits, labels, label_smoothing, support)
  p = softmax(logits, support=support)
  return -np.where(q > 0, q * np.log(np.where(q > 0, p, 1)), 0).sum(-1)


def cross_entropy_gradient(logits, labels, label_smoothing=0.0, support=None):
  return softmax(logits, support=support) - smoothed(logits, labels, label_smoothing, support)


def bce_oracle(logits, labels):
  p = sigmoid(logits)
  return -labels * np.log(p) - (1 - labels) * np.log(1 - p)


def bpr_oracle(positive, negative, support=None):
  support = np.ones(negative.shape[-1], bool) if support is None else support
  return -np.log(sigmoid(positive[:, None] - np.float64(negative)))[:, support].mean(-1)


def bpr_gradient(positive, negative, support=None):
  support = np.ones(negative.shape[-1], bool) if support is None else support
  return -sigmoid(np.float64(negative) - positive[:, None])[:, support].mean(-1)


def sampled_softmax_oracle(
  positive, negative, positive_log_q=0.0, negative_log_q=0.0, support=None
):
  support = np.ones(negative.shape[-1], bool) if support is None else support
  up = np.exp(np.float64(positive) - positive_log_q)
  down = np.where(support, np.exp(np.float64(negative) - negative_log_q), 0).sum(-1)
  return -np.log(up / (up + down))


def sampled_softmax_gradient(*args, **options):
  return np.exp(-sampled_softmax_oracle(*args, **options)) - 1


def factored(loss, *, teacher):
  """The loss as a function of plain arrays: query, table, bias (, those of the teacher), rest."""

  @functools.wraps(loss)
  def flat(*args, **options):
    student, rest = FactoredLogits(*args[:3]), args[3:]
    if teacher:
      student, rest = (student, FactoredLogits(*rest[:3])), rest[3:]
      return loss(*student, *rest, **options)
    return loss(student, *rest, **options)

  return flat


def catalog(num_items, width):
  """A `make` of query, table, bias."""

  def make(rng):
    shapes = (EXAMPLES, width), (num_items, width), (num_items,)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)

  return make


def scores_of(query, table, bias):
  return np.float64(query) @ np.float64(table).T + bias


def catalog_ce_oracle(query, table, bias, labels, block=None):
  return cross_entropy_oracle(scores_of(query, table, bias), labels)


def catalog_ce_gradient(query, table, bias, labels, block=None):
  return cross_entropy_gradient(scores_of(query, table, bias), labels) @ np.float64(table)


def catalog_kl_oracle(*args, temperature=1.0, block=None):
  return kl_oracle(scores_of(*args[:3]), scores_of(*args[3:]), temperature)


def catalog_kl_gradient(*args, temperature=1.0, block=None):
  gradient = kl_gradient(scores_of(*args[:3]), scores_of(*args[3:]), temperature)
  return gradient @ np.float64(args[1])


def catalog_distillation_oracle(*args, label_weight, distill_weight, temperature=1.0, block=None):
  label = catalog_ce_oracle(*args[:3], args[6])
  return label_weight * label + distill_weight * catalog_kl_oracle(
    *args[:6], temperature=temperature
  )


def catalog_distillation_gradient(*args, label_weight, distill_weight, temperature=1.0, block=None):
  label = catalog_ce_gradient(*args[:3], args[6])
  soft = catalog_kl_gradient(*args[:6], temperature=temperature)
  return label_weight * label + distill_weight * soft


SUPPORT = np.array([True, False, True, True, False, True, True])
RAGGED = np.arange(EXAMPLES * 7).reshape(EXAMPLES, 7) % 5 != 0
DISTILL = {"teachers": (1,), "equal": ((0, 1),), "edges": (0, 1)}

CASES = [
  Case(losses.kl_loss, normal((7,), (7,)), kl_oracle, gradient=kl_gradient, **DISTILL),
  Case(
    losses.kl_loss,
    normal((7,), (7,)),
    kl_oracle,
    {"temperature": 4.0, "support": SUPPORT},
    gradient=kl_gradient,
    name="soft-supported",
    **DISTILL,
  ),
  Case(
    losses.bernoulli_kl_loss,
    normal((), ()),
    bernoulli_oracle,
    gradient=bernoulli_gradient,
    name="click",
    **DISTILL,
  ),
  Case(
    losses.bernoulli_kl_loss,
    normal((5,), (5,)),
    bernoulli_oracle,
    {"temperature": 3.0},
    gradient=bernoulli_gradient,
    name="multi-label",
    **DISTILL,
  ),
  Case(losses.logit_mse_loss, normal((7,), (7,)), mse_oracle, gradient=mse_gradient, **DISTILL),
  Case(
    losses.logit_mse_loss,
    normal((7,), (7,)),
    mse_oracle,
    {"support": SUPPORT},
    gradient=mse_gradient,
    name="supported",
    **DISTILL,
  ),
  Case(
    losses.cross_entropy_loss,
    with_labels(7, (7,)),
    cross_entropy_oracle,
    gradient=cross_entropy_gradient,
    edges=(0,),
  ),
  Case(
    losses.cross_entropy_loss,
    lambda rng: (*normal((7,))(rng), np.flatnonzero(SUPPORT)[rng.integers(0, 5, EXAMPLES)]),
    cross_entropy_oracle,
    {"label_smoothing": 0.1, "support": SUPPORT},
    gradient=cross_entropy_gradient,
    edges=(0,),
    name="smoothed",
  ),
  Case(
    losses.binary_cross_entropy_loss,
    lambda rng: (*normal(())(rng), rng.integers(0, 2, EXAMPLES).astype(np.float32)),
    bce_oracle,
    gradient=lambda logits, labels: sigmoid(logits) - labels,
    edges=(0,),
  ),
  Case(
    losses.hint_loss,
    normal((3, 8), (3, 8)),
    mse_oracle,
    teachers=(1,),
    equal=((0, 1),),
    gradient=mse_gradient,
  ),
  Case(
    losses.bpr_loss,
    normal((), (4,)),
    bpr_oracle,
    students=(0, 1),
    gradient=bpr_gradient,
    edges=(0, 1),
  ),
  Case(
    losses.bpr_loss,
    normal((), (4,)),
    bpr_oracle,
    {"support": np.array([True, True, False, True])},
    students=(0, 1),
    gradient=bpr_gradient,
    edges=(0, 1),
    name="supported",
  ),
  Case(
    losses.sampled_softmax_loss,
    normal((), (7,)),
    sampled_softmax_oracle,
    students=(0, 1),
    gradient=sampled_softmax_gradient,
    edges=(0, 1),
  ),
  Case(
    losses.sampled_softmax_loss,
    normal((), (7,)),
    sampled_softmax_oracle,
    {"support": SUPPORT, "negative_log_q": np.linspace(-4, -1, 7, dtype=np.float32)}
    | {"positive_log_q": np.linspace(-5, -0.5, EXAMPLES, dtype=np.float32)},
    students=(0, 1),
    gradient=sampled_softmax_gradient,
    edges=(0, 1),
    name="corrected",
  ),
  Case(
    factored(losses.catalog_cross_entropy_loss, teacher=False),
    lambda rng: (*catalog(23, 6)(rng), rng.integers(0, 23, EXAMPLES)),
    catalog_ce_oracle,
    students=(0, 1, 2),
    shared=(1, 2),
    gradient=catalog_ce_gradient,
    edges=(2,),
  ),
  Case(
    factored(losses.catalog_cross_entropy_loss, teacher=False),
    lambda rng: (*catalog(23, 6)(rng), rng.integers(0, 23, EXAMPLES)),
    catalog_ce_oracle,
    {"block": 10},
    students=(0, 1, 2),
    shared=(1, 2),
    gradient=catalog_ce_gradient,
    edges=(2,),
    name="blocks",
  ),
  Case(
    factored(losses.catalog_kl_loss, teacher=True),
    lambda rng: (*catalog(23, 6)(rng), *catalog(23, 6)(rng)),
    catalog_kl_oracle,
    students=(0, 1, 2),
    teachers=(3, 4, 5),
    shared=(1, 2, 4, 5),
    gradient=catalog_kl_gradient,
    equal=((0, 3), (1, 4), (2, 5)),
    edges=(2, 5),
  ),
  Case(
    factored(losses.catalog_kl_loss, teacher=True),
    lambda rng: (*catalog(23, 6)(rng), *catalog(23, 15)(rng)),
    catalog_kl_oracle,
    {"block": 10, "temperature": 2.0},
    students=(0, 1, 2),
    teachers=(3, 4, 5),
    shared=(1, 2, 4, 5),
    gradient=catalog_kl_gradient,
    edges=(2, 5),
    name="blocks-unequal-widths",
  ),
  Case(
    factored(losses.catalog_distillation_loss, teacher=True),
    lambda rng: (*catalog(23, 6)(rng), *catalog(23, 15)(rng), rng.integers(0, 23, EXAMPLES)),
    catalog_distillation_oracle,
    {"label_weight": 0.3, "distill_weight": 1.5},
    students=(0, 1, 2),
    teachers=(3, 4, 5),
    shared=(1, 2, 4, 5),
    gradient=catalog_distillation_gradient,
    edges=(2, 5),
  ),
  Case(
    factored(losses.catalog_distillation_loss, teacher=True),
    lambda rng: (*catalog(23, 6)(rng), *catalog(23, 15)(rng), rng.integers(0, 23, EXAMPLES)),
    catalog_distillation_oracle,
    {"label_weight": 0.3, "distill_weight": 1.5, "temperature": 2.0, "block": 10},
    students=(0, 1, 2),
    teachers=(3, 4, 5),
    shared=(1, 2, 4, 5),
    gradient=catalog_distillation_gradient,
    edges=(2, 5),
    name="blocks-temperature",
  ),
]
