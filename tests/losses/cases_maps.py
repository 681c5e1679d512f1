"""Cases of the losses on whole maps and on attention: `maps` and `attention`."""

import functools

import numpy as np
from loss_cases import SUPPORT, Case, mse_gradient, mse_oracle, normal, plogpq, softmax

from kdjax import losses

DISTILL = {"teachers": (1,), "equal": ((0, 1),)}
PAIRS = {"students": (0, 1), "teachers": (2, 3), "equal": ((0, 2), (1, 3))}
POSITIONS = np.array([[True, True], [False, True], [True, False]])
CAUSAL = np.tril(np.ones([4, 4], bool))


def flat(features, support=None):
  """`[B, P, C]` of the positions that exist."""
  features = np.float64(features)
  features = features.reshape(len(features), -1, features.shape[-1])
  return features if support is None else features[:, support.reshape(-1)]


def per_example(oracle):
  """The loss of a batch from that of one example's maps `[P, C]`."""

  @functools.wraps(oracle)
  def batch(*args, support=None, **options):
    maps = zip(*(flat(arg, support) for arg in args), strict=True)
    return np.array([oracle(*each, **options) for each in maps])

  return batch


@per_example
def attention_transfer_oracle(student, teacher, power=2.0):
  maps = [(np.abs(x) ** power).sum(-1) for x in (student, teacher)]
  return np.linalg.norm(maps[0] / np.linalg.norm(maps[0]) - maps[1] / np.linalg.norm(maps[1]))


@per_example
def fsp_oracle(s1, s2, t1, t2):
  return ((s1.T @ s2 / len(s1) - t1.T @ t2 / len(t1)) ** 2).sum()


def fsp_gradient(*args):
  s1, s2, t1, t2 = map(flat, args)
  flow = s1.swapaxes(1, 2) @ s2 / s1.shape[1] - t1.swapaxes(1, 2) @ t2 / t1.shape[1]
  return (2 * s2 @ flow.swapaxes(1, 2) / s1.shape[1]).reshape(args[0].shape)


@per_example
def channel_correlation_oracle(student, teacher, unit_rows=False):
  grams = [x.T @ x for x in (student, teacher)]
  if unit_rows:
    grams = [g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams]
  return ((grams[0] - grams[1]) ** 2).sum() / len(grams[0]) ** 2


def channel_correlation_gradient(student, teacher):
  s, t = flat(student), flat(teacher)
  difference = s.swapaxes(1, 2) @ s - t.swapaxes(1, 2) @ t
  return (4 * s @ difference / s.shape[-1] ** 2).reshape(student.shape)


def selectivity_oracle(similarity):
  """The squared MMD, with `similarity(student channels, teacher channels) -> k(x, y)`."""

  @per_example
  def oracle(student, teacher, kernel=None):
    s, t = (x.T / np.linalg.norm(x.T, axis=1, keepdims=True) for x in (student, teacher))
    k = similarity(s, t)

    def mean(xs, ys):
      return np.mean([[k(x, y) for y in ys] for x in xs])

    return mean(s, s) + mean(t, t) - 2 * mean(s, t)

  return oracle


def mean_bandwidth(s, t):
  both = np.concatenate([s, t])
  distances = [((x - y) ** 2).sum() for i, x in enumerate(both) for y in both[:i]]
  return lambda x, y: np.exp(-((x - y) ** 2).sum() / (2 * np.mean(distances)))


def factor_oracle(student, teacher):
  s, t = (np.float64(x).reshape(len(x), -1) for x in (student, teacher))
  s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
  return np.abs(s - t).sum(-1)


def hierarchical_oracle(student, teacher, sizes=(4, 2, 1)):
  difference = np.float64(student) - teacher
  height, width = difference.shape[1:3]
  total, weights = (difference**2).mean((1, 2, 3)), [1.0]
  for n in sizes:
    if n >= min(height, width):
      continue
    pooled = np.zeros([len(difference), n, n, difference.shape[-1]])
    for i in range(n):
      for j in range(n):
        rows = slice(int(np.floor(i * height / n)), int(np.ceil((i + 1) * height / n)))
        columns = slice(int(np.floor(j * width / n)), int(np.ceil((j + 1) * width / n)))
        pooled[:, i, j] = difference[:, rows, columns].mean((1, 2))
    weights.append(weights[-1] / 2)
    total = total + weights[-1] * (pooled**2).mean((1, 2, 3))
  return total / sum(weights)


def relation_oracle(s_queries, s_keys, t_queries, t_keys, num_heads=1, support=None):
  def relations(queries, keys):
    heads = []
    for q, k in zip(
      *(np.split(np.float64(x), num_heads, -1) for x in (queries, keys)), strict=True
    ):
      heads.append(softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), support=support))
    return np.stack(heads)

  teacher, student = relations(t_queries, t_keys), relations(s_queries, s_keys)
  return plogpq(teacher, student).sum(-1).mean(0)


def self_relation_oracle(student, teacher, **options):
  return relation_oracle(student, student, teacher, teacher, **options)


CASES = [
  Case(
    losses.attention_transfer_loss,
    normal((3, 2, 4), (3, 2, 5)),
    attention_transfer_oracle,
    **DISTILL,
  ),
  Case(
    losses.attention_transfer_loss,
    normal((3, 2, 4), (3, 2, 5)),
    attention_transfer_oracle,
    {"power": 1.5, "support": POSITIONS},
    name="supported",
    **DISTILL,
  ),
  Case(
    losses.attention_mse_loss,
    normal((2, 3, 7), (2, 3, 7)),
    mse_oracle,
    {"support": SUPPORT},
    gradient=mse_gradient,
    edges=(0, 1),
    **DISTILL,
  ),
  Case(
    losses.attention_relation_loss,
    normal((4, 6), (4, 6), (4, 4), (4, 4)),
    relation_oracle,
    {"num_heads": 2},
    **PAIRS,
  ),
  Case(
    losses.self_relation_loss,
    normal((4, 6), (4, 4), scale=1.0),
    self_relation_oracle,
    {"num_heads": 2, "support": CAUSAL},
    name="causal",
    **DISTILL,
  ),
  Case(
    losses.fsp_loss,
    normal((3, 2, 4), (3, 2, 5), (2, 2, 4), (2, 2, 5)),
    fsp_oracle,
    gradient=fsp_gradient,
    **PAIRS,
  ),
  Case(
    losses.fsp_loss,
    normal((3, 2, 4), (3, 2, 5), (3, 2, 4), (3, 2, 5)),
    fsp_oracle,
    {"support": POSITIONS},
    name="supported",
    **PAIRS,
  ),
  Case(
    losses.channel_correlation_loss,
    normal((3, 2, 4), (2, 2, 4)),
    channel_correlation_oracle,
    gradient=channel_correlation_gradient,
    **DISTILL,
  ),
  Case(
    losses.channel_correlation_loss,
    normal((3, 2, 4), (3, 2, 4)),
    channel_correlation_oracle,
    {"unit_rows": True, "support": POSITIONS},
    name="unit-rows",
    **DISTILL,
  ),
  Case(
    losses.neuron_selectivity_loss,
    normal((3, 2, 4), (3, 2, 5)),
    selectivity_oracle(lambda s, t: lambda x, y: (x @ y) ** 2),
    {"support": POSITIONS},
    **DISTILL,
  ),
  Case(
    losses.neuron_selectivity_loss,
    normal((3, 2, 4), (3, 2, 5)),
    selectivity_oracle(lambda s, t: lambda x, y: x @ y),
    {"kernel": losses.linear_kernel},
    name="linear",
    **DISTILL,
  ),
  Case(
    losses.neuron_selectivity_loss,
    normal((3, 2, 4), (3, 2, 5)),
    selectivity_oracle(mean_bandwidth),
    {"kernel": losses.gaussian_kernel},
    name="gaussian",
    **DISTILL,
  ),
  Case(losses.factor_transfer_loss, normal((3, 2, 2), (3, 2, 2)), factor_oracle, **DISTILL),
  Case(
    losses.hierarchical_context_loss,
    normal((5, 6, 2), (5, 6, 2)),
    hierarchical_oracle,
    **DISTILL,
  ),
]
