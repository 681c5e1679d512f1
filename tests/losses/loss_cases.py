"""The table every loss goes through: one `Case` a loss, about ten lines each.

An oracle is written from the paper in float64 NumPy and returns one value per example.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


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
    joint: the examples are compared with each other, so parts of a batch do not add up to it.
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
  joint: bool = False
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


SUPPORT = np.array([True, False, True, True, False, True, True])
DISTILL: dict[str, Any] = {"teachers": (1,), "equal": ((0, 1),), "edges": (0, 1)}


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


def mse_oracle(student, teacher, support=None):
  support = np.ones(student.shape[-1], bool) if support is None else support
  return ((np.float64(student) - teacher)[..., support] ** 2).mean(-1)


def mse_gradient(student, teacher, support=None):
  support = np.ones(student.shape[-1], bool) if support is None else support
  return np.where(support, 2 * (np.float64(student) - teacher) / support.sum(), 0)
