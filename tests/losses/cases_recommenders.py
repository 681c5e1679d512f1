"""Cases of `kdjax.losses.ranking_distillation`, `topology` and `expert_selection`."""

import functools

import numpy as np
from cases_pairwise import log1p_exp
from loss_cases import EXAMPLES, SUPPORT, Case, normal, sigmoid, softmax

from kdjax import losses


def importance_of_position(ranks, scale, support):
  real = (np.asarray(ranks) >= 0) & (True if support is None else support)
  weights = np.where(real, np.exp(-np.float64(ranks) / scale), 0)
  return weights / weights.sum(-1, keepdims=True)


def rd_weights(ranks, student_ranks, position_scale, discrepancy_scale, support):
  weights = importance_of_position(ranks, position_scale, support)
  if student_ranks is None:
    return weights
  gap = np.float64(student_ranks) - ranks
  weights = weights * np.tanh(np.maximum(discrepancy_scale * gap, 0))
  return weights / weights.sum(-1, keepdims=True)


def rd_oracle(
  student, ranks, student_ranks=None, position_scale=1.0, discrepancy_scale=0.1, support=None
):
  weights = rd_weights(ranks, student_ranks, position_scale, discrepancy_scale, support)
  return (weights * log1p_exp(-np.float64(student))).sum(-1)


def rd_gradient(
  student, ranks, student_ranks=None, position_scale=1.0, discrepancy_scale=0.1, support=None
):
  weights = rd_weights(ranks, student_ranks, position_scale, discrepancy_scale, support)
  return -weights * sigmoid(-np.float64(student))


def soft_clicks(teacher, temperature, bias):
  return sigmoid((np.float64(teacher) + bias) / temperature)


def cd_oracle(student, teacher, temperature=1.0, bias=0.0, support=None):
  support = np.ones(student.shape[-1], bool) if support is None else support
  q, x = soft_clicks(teacher, temperature, bias), np.float64(student)
  return (q * log1p_exp(-x) + (1 - q) * log1p_exp(x))[:, support].mean(-1)


def cd_gradient(student, teacher, temperature=1.0, bias=0.0, support=None):
  support = np.ones(student.shape[-1], bool) if support is None else support
  q = soft_clicks(teacher, temperature, bias)
  return np.where(support, (sigmoid(student) - q) / support.sum(), 0)


def importance_weights(ranks, distances, agreed, position_scale=1.0, support=None):
  real = (ranks >= 0) & (True if support is None else support)
  confidence = np.where(real, np.exp(-np.float64(distances)), 0)
  confidence /= confidence.sum(-1, keepdims=True)
  position = importance_of_position(ranks, position_scale, support)
  return 0.3 * position + 0.5 * confidence + 0.1 * (agreed & real)


def importance_oracle(student, *teacher, **options):
  return (importance_weights(*teacher, **options) * log1p_exp(-np.float64(student))).sum(-1)


def importance_gradient(student, *teacher, **options):
  return -importance_weights(*teacher, **options) * sigmoid(-np.float64(student))


def cosine(a, b):
  return a @ b / np.sqrt((a @ a) * (b @ b))


def ftd_oracle(student, teacher):
  s, t = np.float64(student), np.float64(teacher)
  index = range(len(s))
  return np.array(
    [
      np.mean([(cosine(t[i], t[j]) - cosine(s[i], s[j])) ** 2 for j in index if j != i])
      for i in index
    ]
  )


def htd_oracle(
  student,
  teacher,
  groups,
  num_groups=None,
  group_weight=1.0,
  entity_weight=1.0,
  prototypes_only=False,
):
  s, t = np.float64(student), np.float64(teacher)
  names = sorted(set(groups.tolist()))
  centres = [[features[groups == g].mean(0) for g in names] for features in (s, t)]
  losses_of = []
  for i, group in enumerate(groups):
    partners = [j for j in np.flatnonzero(groups == group) if j != i]
    inner = [(cosine(t[i], t[j]) - cosine(s[i], s[j])) ** 2 for j in partners]
    own = names.index(group)
    mine = [centres[0][own], centres[1][own]] if prototypes_only else [s[i], t[i]]
    outer = [
      (cosine(mine[1], centres[1][k]) - cosine(mine[0], centres[0][k])) ** 2
      for k in range(len(names))
    ]
    # In a mean over entities every group shall count once, however large it is.
    share = len(groups) / len(names) / (groups == group).sum() if prototypes_only else 1.0
    losses_of.append(
      entity_weight * (np.mean(inner) if inner else 0.0) + group_weight * share * np.mean(outer)
    )
  return np.array(losses_of)


PARAMS = (
  "hidden_kernel",
  "hidden_bias",
  "kernel",
  "bias",
  "selection_kernel",
  "selection_bias",
)


@functools.wraps(losses.hint_loss)
def through_experts(student, teacher, *params, temperature, where=None, **options):
  helper = losses.experts(4, 6, 3, hidden_dim=5)
  features = helper.apply(
    dict(zip(PARAMS, params, strict=True)), student, teacher, temperature=temperature, where=where
  )
  return losses.hint_loss(features, teacher, where=where, **options)


def experts_oracle(student, teacher, *params, temperature):
  w1, b1, w2, b2, v, c = (np.float64(p) for p in params)
  values = []
  for s, t in zip(np.float64(student), np.float64(teacher), strict=True):
    chosen = softmax(np.log(softmax(t @ v + c)), temperature)
    output = sum(
      chosen[m] * (np.maximum(s @ w1[m] + b1[m], 0) @ w2[m] + b2[m]) for m in range(len(chosen))
    )
    values.append(np.mean((t - output) ** 2))
  return np.array(values)


def expert_args(rng):
  shapes = (3, 4, 5), (3, 5), (3, 5, 6), (3, 6), (6, 3), (3,)
  params = [rng.normal(scale=0.5, size=shape).astype(np.float32) for shape in shapes]
  return (*normal((4,), (6,))(rng), *params)


def ranked(rng):
  """Scores, and ranks of which the first stays."""
  (scores,) = normal((7,))(rng)
  ranks = np.stack([rng.permutation(7) for _ in range(EXAMPLES)])
  unranked = rng.random(ranks.shape) < 0.3
  unranked[:, 0] = False
  return scores, np.where(unranked, losses.UNRANKED, ranks).astype(np.int32)


def important(rng):
  distances = rng.exponential(size=(EXAMPLES, 7)).astype(np.float32)
  return *ranked(rng), distances, rng.random((EXAMPLES, 7)) < 0.4


def grouped(*shapes):
  return lambda rng: (*normal(*shapes)(rng), rng.integers(0, 4, EXAMPLES).astype(np.int32))


# Of which every list has one that the student ranks below all of the teacher's.
STUDENT_RANKS = np.random.default_rng(5).integers(0, 30, (EXAMPLES, 7)).astype(np.int32)
STUDENT_RANKS[:, 0] = 99

CASES = [
  Case(losses.ranking_distillation_loss, ranked, rd_oracle, gradient=rd_gradient, edges=(0,)),
  Case(
    losses.ranking_distillation_loss,
    ranked,
    rd_oracle,
    {"student_ranks": STUDENT_RANKS, "position_scale": 4.0, "support": SUPPORT},
    gradient=rd_gradient,
    edges=(0,),
    name="discrepancy-supported",
  ),
  Case(
    losses.collaborative_loss,
    normal((7,), (7,)),
    cd_oracle,
    teachers=(1,),
    gradient=cd_gradient,
    edges=(0, 1),
  ),
  Case(
    losses.collaborative_loss,
    normal((7,), (7,)),
    cd_oracle,
    {"temperature": 3.0, "bias": -0.5, "support": SUPPORT},
    teachers=(1,),
    gradient=cd_gradient,
    edges=(0, 1),
    name="soft-supported",
  ),
  Case(
    losses.importance_ranking_loss,
    important,
    importance_oracle,
    {"position_scale": 2.0, "support": SUPPORT},
    teachers=(2,),
    gradient=importance_gradient,
    edges=(0,),
  ),
  Case(
    losses.topology_loss,
    normal((6,), (6,)),
    ftd_oracle,
    teachers=(1,),
    equal=((0, 1),),
    joint=True,
  ),
  Case(
    losses.group_topology_loss,
    grouped((6,), (6,)),
    htd_oracle,
    teachers=(1,),
    equal=((0, 1),),
    joint=True,
  ),
  Case(
    losses.group_topology_loss,
    grouped((3,), (6,)),
    htd_oracle,
    {"group_weight": 2.0, "entity_weight": 0.5, "prototypes_only": True},
    teachers=(1,),
    joint=True,
    name="prototypes-unequal-widths",
  ),
  Case(
    losses.group_topology_loss,
    grouped((6,), (6,)),
    htd_oracle,
    {"num_groups": 5},
    teachers=(1,),
    equal=((0, 1),),
    joint=True,
    name="numbered",
  ),
  Case(
    losses.group_topology_loss,
    grouped((3,), (6,)),
    htd_oracle,
    {"num_groups": 5, "prototypes_only": True},
    teachers=(1,),
    joint=True,
    name="numbered-prototypes",
  ),
  Case(
    through_experts,
    expert_args,
    experts_oracle,
    {"temperature": 0.5},
    students=(0, 2, 3, 4, 5, 6, 7),
    teachers=(1,),
    shared=(2, 3, 4, 5, 6, 7),
    name="experts",
  ),
]
