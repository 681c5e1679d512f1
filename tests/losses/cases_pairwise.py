"""Cases of `kdjax.losses.pairwise`."""

import itertools

import numpy as np
from cases_listwise import by_list
from loss_cases import EXAMPLES, SUPPORT, Case, normal, sigmoid

from kdjax import losses


def pairs_of(size, support=None):
  """All ordered pairs (i, j) of different candidates that exist."""
  real = range(size) if support is None else np.flatnonzero(support)
  return list(itertools.permutations(real, 2))


def log1p_exp(x):
  return np.logaddexp(0, x)


def ranknet(student, teacher, temperature=1.0, support=None):
  costs = []
  for i, j in pairs_of(len(student), support):
    target = sigmoid((np.float64(teacher[i]) - teacher[j]) / temperature)
    gap = (student[i] - student[j]) / temperature
    costs.append(target * log1p_exp(-gap) + (1 - target) * log1p_exp(gap))
  return temperature**2 * np.mean(costs)


def ranknet_gradient(student, teacher, temperature=1.0, support=None):
  gradient, pairs = np.zeros(len(student)), pairs_of(len(student), support)
  for i, j in pairs:
    target = sigmoid((np.float64(teacher[i]) - teacher[j]) / temperature)
    pull = temperature * (sigmoid((student[i] - student[j]) / temperature) - target)
    gradient[i] += pull / len(pairs)
    gradient[j] -= pull / len(pairs)
  return gradient


def hinge(student, teacher, margin=1.0, support=None):
  pairs = [(i, j) for i, j in pairs_of(len(student), support) if teacher[i] > teacher[j]]
  return np.mean([max(0.0, margin - (student[i] - student[j])) for i, j in pairs])


def hinge_gradient(student, teacher, margin=1.0, support=None):
  gradient = np.zeros(len(student))
  pairs = [(i, j) for i, j in pairs_of(len(student), support) if teacher[i] > teacher[j]]
  for i, j in pairs:
    if student[i] - student[j] < margin:
      gradient[i] -= 1 / len(pairs)
      gradient[j] += 1 / len(pairs)
  return gradient


def discount(rank, k=None):
  return 1 / np.log2(1 + rank) if k is None or rank <= k else 0.0


def lambda_weights(student, gains, swap_weight=1.0, gap_weight=0.0, k=None, support=None):
  """What each pair (better, worse) weighs."""
  real = list(range(len(student))) if support is None else list(np.flatnonzero(support))
  by_score = sorted(real, key=lambda i: -student[i])
  rank = {item: place + 1 for place, item in enumerate(by_score)}
  best = sorted((np.float64(gains[i]) for i in real), reverse=True)
  max_dcg = sum(gain * discount(place + 1, k) for place, gain in enumerate(best))
  weights = {}
  for i, j in itertools.permutations(real, 2):
    if gains[i] > gains[j]:
      gap = abs(rank[i] - rank[j])
      weight = swap_weight * abs(discount(rank[i], k) - discount(rank[j], k))
      weight += gap_weight * abs(discount(gap) - discount(gap + 1))
      weights[i, j] = weight * (np.float64(gains[i]) - gains[j]) / max_dcg
  return weights


def lambda_oracle(student, gains, **options):
  weights = lambda_weights(student, gains, **options)
  return sum(w * log1p_exp(-(student[i] - student[j])) for (i, j), w in weights.items())


def lambda_gradient(student, gains, **options):
  gradient = np.zeros(len(student))
  for (i, j), weight in lambda_weights(student, gains, **options).items():
    pull = weight * sigmoid(-(student[i] - student[j]))
    gradient[i] -= pull
    gradient[j] += pull
  return gradient


def stratified_oracle(upper, lower, support=None):
  support = np.ones(upper.shape[-1], bool) if support is None else support
  return log1p_exp(np.float64(lower) - upper)[:, support].mean(-1)


def stratified_gradient(upper, lower, support=None):
  support = np.ones(upper.shape[-1], bool) if support is None else support
  return np.where(support, -sigmoid(np.float64(lower) - upper) / support.sum(), 0)


def with_gains(rng):
  (scores,) = normal((7,))(rng)
  gains = 2.0 ** rng.integers(0, 4, (EXAMPLES, 7)) - 1
  gains[:, 0] = 15.0  # A list without a gain has no NDCG.
  return scores, gains.astype(np.float32)


DISTILL = {"teachers": (1,), "edges": (0, 1)}
LAMBDA = {"teachers": (1,), "edges": (0,), "gradient": by_list(lambda_gradient)}

CASES = [
  Case(
    losses.ranknet_loss,
    normal((5,), (5,)),
    by_list(ranknet),
    gradient=by_list(ranknet_gradient),
    **DISTILL,
  ),
  Case(
    losses.ranknet_loss,
    normal((7,), (7,)),
    by_list(ranknet),
    {"temperature": 2.0, "support": SUPPORT},
    gradient=by_list(ranknet_gradient),
    name="soft-supported",
    **DISTILL,
  ),
  Case(
    losses.pairwise_hinge_loss,
    normal((7,), (7,)),
    by_list(hinge),
    {"margin": 0.5, "support": SUPPORT},
    gradient=by_list(hinge_gradient),
    **DISTILL,
  ),
  Case(losses.lambda_loss, with_gains, by_list(lambda_oracle), **LAMBDA),
  Case(
    losses.lambda_loss,
    with_gains,
    by_list(lambda_oracle),
    {"k": 3, "support": SUPPORT},
    name="top-supported",
    **LAMBDA,
  ),
  Case(
    losses.lambda_loss,
    with_gains,
    by_list(lambda_oracle),
    {"swap_weight": 1.0, "gap_weight": 10.0},
    name="ndcg-loss-2-plus-plus",
    **LAMBDA,
  ),
  Case(
    losses.stratified_pair_loss,
    normal((7,), (7,)),
    stratified_oracle,
    {"support": SUPPORT},
    students=(0, 1),
    gradient=stratified_gradient,
    edges=(0, 1),
  ),
]
