"""Cases of `kdjax.losses.logits`."""

import numpy as np
from loss_cases import (
  DISTILL,
  EXAMPLES,
  SUPPORT,
  Case,
  mse_gradient,
  mse_oracle,
  normal,
  plogpq,
  sigmoid,
  softmax,
  with_labels,
)

from kdjax import losses


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
]
