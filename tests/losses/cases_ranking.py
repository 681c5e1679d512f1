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


def nce_oracle(positive, negative, positive_log_q=None, negative_log_q=None, support=None):
  support = np.ones(negative.shape[-1], bool) if support is None else support
  up, down = np.float64(positive), np.float64(negative)[:, support]
  if positive_log_q is not None:
    draws = support.sum()
    up = up - np.log(draws * np.exp(np.float64(positive_log_q)))
    down = down - np.log(draws * np.exp(np.float64(negative_log_q)))[support]
  return np.logaddexp(0, -up) + np.logaddexp(0, down).sum(-1)


def nce_gradient(positive, negative, positive_log_q=None, negative_log_q=None, support=None):
  """Of the positive: the probability that it is taken for noise, with the opposite sign."""
  draws = negative.shape[-1] if support is None else support.sum()
  shift = 0.0 if positive_log_q is None else np.log(draws) + np.float64(positive_log_q)
  return -sigmoid(shift - np.float64(positive))


def margins(student_positive, student_negative, teacher_positive, teacher_negative):
  student = student_positive[:, None] - np.float64(student_negative)
  return student - (teacher_positive[:, None] - np.float64(teacher_negative))


def margin_oracle(*scores, support=None):
  support = np.ones(scores[1].shape[-1], bool) if support is None else support
  return (margins(*scores)[:, support] ** 2).mean(-1)


def margin_gradient(*scores, support=None):
  support = np.ones(scores[1].shape[-1], bool) if support is None else support
  return 2 * margins(*scores)[:, support].mean(-1)


LOG_Q = {
  "negative_log_q": np.linspace(-4, -1, 7, dtype=np.float32),
  "positive_log_q": np.linspace(-5, -0.5, EXAMPLES, dtype=np.float32),
}
MARGIN = {
  "students": (0, 1),
  "teachers": (2, 3),
  "equal": ((0, 2), (1, 3)),
  "edges": (0, 1, 2, 3),
  "gradient": margin_gradient,
}

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
    {"support": SUPPORT, **LOG_Q},
    students=(0, 1),
    gradient=sampled_softmax_gradient,
    edges=(0, 1),
    name="corrected",
  ),
  Case(
    losses.nce_loss,
    normal((), (7,)),
    nce_oracle,
    students=(0, 1),
    gradient=nce_gradient,
    edges=(0, 1),
    name="negative-sampling",
  ),
  Case(
    losses.nce_loss,
    normal((), (7,)),
    nce_oracle,
    {"support": SUPPORT, **LOG_Q},
    students=(0, 1),
    gradient=nce_gradient,
    edges=(0, 1),
  ),
  Case(
    losses.margin_mse_loss,
    normal((), (4,), (), (4,)),
    margin_oracle,
    **MARGIN,
  ),
  Case(
    losses.margin_mse_loss,
    normal((), (7,), (), (7,)),
    margin_oracle,
    {"support": SUPPORT},
    name="supported",
    **MARGIN,
  ),
]
