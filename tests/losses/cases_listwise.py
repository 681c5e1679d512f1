"""Cases of `kdjax.losses.listwise`."""

import numpy as np
from loss_cases import EXAMPLES, SUPPORT, Case, normal, softmax

from kdjax import losses


def order_of(ranks, support=None):
  """(candidates with a rank, from the best to the worst; the candidates without one)."""
  support = np.ones(len(ranks), bool) if support is None else support
  ranked = [i for i in np.argsort(ranks, kind="stable") if ranks[i] >= 0 and support[i]]
  return ranked, [i for i in range(len(ranks)) if ranks[i] < 0 and support[i]]


def plackett_luce(scores, ranked, rest, k=None):
  """-log of the probability of choosing `ranked` one by one, each from all that are left."""
  total = 0.0
  for step in range(len(ranked) if k is None else min(k, len(ranked))):
    left = scores[ranked[step:] + rest]
    total += np.logaddexp.reduce(left) - scores[ranked[step]]
  return total


def plackett_luce_gradient(scores, ranked, rest, k=None):
  gradient = np.zeros(len(scores))
  for step in range(len(ranked) if k is None else min(k, len(ranked))):
    left = ranked[step:] + rest
    gradient[left] += softmax(scores[left])
    gradient[ranked[step]] -= 1
  return gradient


def by_list(one):
  """Applies `one(student, teacher, ...)` list by list, in float64."""
  return lambda student, teacher, **options: np.array(
    [one(np.float64(s), t, **options) for s, t in zip(student, teacher, strict=True)]
  )


def listnet_oracle(student, teacher, temperature=1.0, support=None):
  support = np.ones(student.shape[-1], bool) if support is None else support
  s, t = (np.float64(x)[:, support] / temperature for x in (student, teacher))
  log_s = s - np.logaddexp.reduce(s, axis=-1, keepdims=True)
  return -(temperature**2) * (softmax(t) * log_s).sum(-1)


def listnet_gradient(student, teacher, temperature=1.0, support=None):
  s, t = (softmax(x, temperature, support) for x in (student, teacher))
  return temperature * (s - t)


def ranks_of(teacher):
  return np.argsort(np.argsort(-np.float64(teacher), kind="stable"), kind="stable")


def listmle(of):
  def one(student, teacher, k=None, support=None):
    return of(student, *order_of(ranks_of(teacher), support), k)

  return by_list(one)


def relaxed(of):
  def one(student, ranks, k=None, support=None):
    return of(student, *order_of(ranks, support), k)

  return by_list(one)


def drawn(of):
  def one(student, rankings, k=None, support=None):
    return np.mean([of(student, *order_of(ranks, support), k) for ranks in rankings], axis=0)

  return by_list(one)


def relaxed_lists(rng):
  """Scores, and the teacher's ranks with gaps: about half of the candidates have one."""
  (scores,) = normal((7,))(rng)
  ranks = np.stack([rng.permutation(40)[:7] for _ in range(EXAMPLES)])
  return scores, np.where(rng.random(ranks.shape) < 0.5, ranks, losses.UNRANKED).astype(np.int32)


def rankings(rng):
  (scores,) = normal((7,))(rng)
  orders = [[rng.permutation(7) for _ in range(3)] for _ in range(EXAMPLES)]
  return scores, np.array(orders, np.int32)


CASES = [
  Case(
    losses.listnet_loss,
    normal((7,), (7,)),
    listnet_oracle,
    teachers=(1,),
    edges=(0, 1),
    gradient=listnet_gradient,
  ),
  Case(
    losses.listnet_loss,
    normal((7,), (7,)),
    listnet_oracle,
    {"temperature": 3.0, "support": SUPPORT},
    teachers=(1,),
    edges=(0, 1),
    gradient=listnet_gradient,
    name="soft-supported",
  ),
  Case(
    losses.listmle_loss,
    normal((7,), (7,)),
    listmle(plackett_luce),
    teachers=(1,),
    edges=(0, 1),
    gradient=listmle(plackett_luce_gradient),
  ),
  Case(
    losses.listmle_loss,
    normal((7,), (7,)),
    listmle(plackett_luce),
    {"k": 2, "support": SUPPORT},
    teachers=(1,),
    edges=(0, 1),
    gradient=listmle(plackett_luce_gradient),
    name="top-supported",
  ),
  Case(
    losses.relaxed_ranking_loss,
    relaxed_lists,
    relaxed(plackett_luce),
    edges=(0,),
    gradient=relaxed(plackett_luce_gradient),
  ),
  Case(
    losses.relaxed_ranking_loss,
    relaxed_lists,
    relaxed(plackett_luce),
    {"support": SUPPORT},
    edges=(0,),
    gradient=relaxed(plackett_luce_gradient),
    name="supported",
  ),
  Case(
    losses.relaxed_ranking_loss,
    relaxed_lists,
    relaxed(plackett_luce),
    {"k": 3, "support": SUPPORT},
    edges=(0,),
    gradient=relaxed(plackett_luce_gradient),
    name="few-ranked",
  ),
  Case(
    losses.plackett_luce_loss,
    rankings,
    drawn(plackett_luce),
    edges=(0,),
    gradient=drawn(plackett_luce_gradient),
  ),
  Case(
    losses.plackett_luce_loss,
    rankings,
    drawn(plackett_luce),
    {"k": 2, "support": SUPPORT},
    edges=(0,),
    gradient=drawn(plackett_luce_gradient),
    name="top-supported",
  ),
]
