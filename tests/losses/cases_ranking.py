"""Cases of `kdjax.losses.ranking`."""

import numpy as np
from loss_cases import EXAMPLES, SUPPORT, Case, normal, sigmoid

from kdjax import losses


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


CASES = [
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
]
