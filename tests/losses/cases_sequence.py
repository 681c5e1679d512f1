"""Cases of the losses on sequences, on sparse targets, and of their supervised partners."""

import functools
import itertools

import numpy as np
from cases_divergences import chain, log_ratio, log_softmax
from loss_cases import EXAMPLES, SUPPORT, Case, normal, plogpq, softmax

from kdjax import losses

LENGTH, K = 5, 3
TOKENS_SEEN = np.arange(LENGTH) < np.array([5, 4, 0, 3, 1, 2, 5, 2, 3, 4, 5, 1])[:, None]


def picked(values, tokens):
  return np.take_along_axis(values, tokens[..., None], -1)[..., 0]


def tokens(rng, size=7):
  return rng.integers(0, size, (EXAMPLES, LENGTH), dtype=np.int32)


def sequence_oracle(logits, tokens, length_power=0.0, token_where=None):
  token_where = np.ones(tokens.shape, bool) if token_where is None else token_where
  log_p = np.where(token_where, picked(log_softmax(logits), tokens), 0)
  return -log_p.sum(-1) / np.maximum(token_where.sum(-1), 1) ** length_power


def sequence_gradient(logits, tokens, length_power=0.0, token_where=None):
  token_where = np.ones(tokens.shape, bool) if token_where is None else token_where
  size = np.maximum(token_where.sum(-1), 1) ** length_power
  return (softmax(logits) - np.eye(7)[tokens]) * token_where[..., None] / size[:, None, None]


def policy_oracle(student, teacher, tokens, returns, weights=1.0, temperature=1.0, support=None):
  s, t = (softmax(z, temperature, support) for z in (student, teacher))
  log_p = picked(log_softmax(student, temperature, support), tokens)
  return weights * (plogpq(s, t).sum(-1) - np.float64(returns) * log_p)


def policy_gradient(student, teacher, tokens, returns, weights=1.0, temperature=1.0, support=None):
  s, t = (softmax(z, temperature, support) for z in (student, teacher))
  single = chain(s, log_ratio(s, t), 1 / temperature)
  future = np.float64(returns)[..., None] * (s - np.eye(7)[tokens]) / temperature
  return np.broadcast_to(weights, tokens.shape)[..., None] * (single + future)


def policy_args(rng):
  student, teacher, returns = normal((LENGTH, 7), (LENGTH, 7), (LENGTH,))(rng)
  return student, teacher, tokens(rng), returns


def supported_policy_args(rng):
  student, teacher, _, returns = policy_args(rng)
  return student, teacher, np.flatnonzero(SUPPORT)[tokens(rng, 5)], returns


def cached(loss, k):
  """The loss as a function of all of the teacher's logits, of which it sees the best k."""

  @functools.wraps(loss)
  def whole(student, teacher, **options):
    made = {name: options[name] for name in ("temperature", "support") if name in options}
    return loss(student, losses.top_k_targets(teacher, k, **made), **options)

  return whole


def best_first(teacher, support):
  logits = teacher if support is None else np.where(support, teacher, -np.inf)
  return np.argsort(-logits, axis=-1, kind="stable")


def buckets(student, teacher, k, temperature, support):
  """Probabilities over the teacher's best k and over the rest, in float64."""
  s, t = (softmax(z, temperature, support) for z in (student, teacher))
  order = best_first(teacher, support)
  s, t = (np.take_along_axis(p, order, -1) for p in (s, t))
  return (np.concatenate([p[:, :k], p[:, k:].sum(-1, keepdims=True)], -1) for p in (s, t))


def top_k_oracle(student, teacher, temperature=1.0, support=None):
  s, t = buckets(student, teacher, K, temperature, support)
  return temperature**2 * plogpq(t, s).sum(-1)


def top_k_gradient(student, teacher, temperature=1.0, support=None):
  s, t = (softmax(z, temperature, support) for z in (student, teacher))
  inside = np.argsort(best_first(teacher, support), axis=-1) < K
  tails = (np.where(inside, 0, p).sum(-1, keepdims=True) for p in (t, s))
  return temperature * (s - np.where(inside, t, s * np.divide(*tails)))


def top_k_reverse_oracle(student, teacher, temperature=1.0, support=None):
  s, t = buckets(student, teacher, K, temperature, support)
  t[:, -1] = np.maximum(t[:, -1], 2.0**-24)
  return temperature**2 * plogpq(s, t).sum(-1)


def sampled(loss):
  """The loss as a function of plain arrays."""

  @functools.wraps(loss)
  def flat(student, indices, weights, **options):
    return loss(student, losses.SampledTargets(indices, weights), **options)

  return flat


def sampled_args(rng):
  indices = rng.integers(0, 7, (EXAMPLES, 4), dtype=np.int32)
  return (*normal((7,))(rng), indices, rng.random((EXAMPLES, 4)).astype(np.float32))


def sampled_target(indices, weights):
  target = np.zeros((len(indices), 7))
  for row, (index, weight) in enumerate(zip(indices, weights, strict=True)):
    np.add.at(target[row], index, np.float64(weight))
  return target


def sampled_oracle(student, indices, weights, temperature=1.0, support=None):
  log_s = log_softmax(student, temperature, support)
  target = sampled_target(indices, weights)
  return -(temperature**2) * np.where(target > 0, target * log_s, 0).sum(-1)


def sampled_gradient(student, indices, weights, temperature=1.0, support=None):
  target = sampled_target(indices, weights)
  mass = target.sum(-1, keepdims=True)
  return temperature * (mass * softmax(student, temperature, support) - target)


def universal_oracle(student, teacher, temperature=1.0, student_support=None, teacher_support=None):
  s = -np.sort(-softmax(student, temperature, student_support), axis=-1)
  t = -np.sort(-softmax(teacher, temperature, teacher_support), axis=-1)
  size = max(s.shape[-1], t.shape[-1])
  s, t = (np.pad(p, [(0, 0), (0, size - p.shape[-1])]) for p in (s, t))
  return np.abs(s - t).sum(-1)


def contrastive_oracle(features, labels, temperature=0.1):
  units = np.float64(features) / np.linalg.norm(np.float64(features), axis=-1, keepdims=True)
  powers = np.exp(units @ units.T / temperature)
  each = []
  for i in range(len(labels)):
    others = [j for j in range(len(labels)) if j != i]
    positives = [j for j in others if labels[j] == labels[i]]
    total = sum(powers[i, j] for j in others)
    each.append(np.mean([-np.log(powers[i, j] / total) for j in positives]) if positives else 0.0)
  return np.array(each)


FRAMES, CLASSES, LABELS = 4, 3, 2
FRAMES_SEEN = np.arange(FRAMES) < np.array([4, 3, 4, 3, 4, 3, 4, 3, 4, 4, 4, 4])[:, None]
LABELS_SEEN = np.arange(LABELS) < np.array([2, 2, 1, 1, 0, 0, 2, 1, 2, 2, 1, 0])[:, None]


def ctc_oracle(logits, labels, blank=0, frame_where=None, label_where=None):
  """All paths, each collapsed to its labels."""
  each = []
  for i, (log_p, label) in enumerate(zip(log_softmax(logits), labels, strict=True)):
    frames = FRAMES if frame_where is None else frame_where[i].sum()
    count = LABELS if label_where is None else label_where[i].sum()
    scores = []
    for path in itertools.product(range(CLASSES), repeat=int(frames)):
      merged = [c for c, _ in itertools.groupby(path) if c != blank]
      if merged == list(label[:count]):
        scores.append(sum(log_p[t, c] for t, c in enumerate(path)))
    each.append(-np.logaddexp.reduce(scores))
  return np.array(each)


def ctc_args(labels):
  def make(rng):
    return (*normal((FRAMES, CLASSES))(rng), rng.choice(np.int32(labels), (EXAMPLES, LABELS)))

  return make


SOFT_SUPPORTED = {"temperature": 3.0, "support": SUPPORT}
TOP_K = {"teachers": (1,), "edges": (0, 1)}

CASES = [
  Case(
    losses.sequence_loss,
    lambda rng: (*normal((LENGTH, 7))(rng), tokens(rng)),
    sequence_oracle,
    gradient=sequence_gradient,
    edges=(0,),
  ),
  Case(
    losses.sequence_loss,
    lambda rng: (*normal((LENGTH, 7))(rng), tokens(rng)),
    sequence_oracle,
    {"length_power": 0.7, "token_where": TOKENS_SEEN},
    gradient=sequence_gradient,
    edges=(0,),
    name="padded",
  ),
  Case(
    losses.policy_loss,
    policy_args,
    policy_oracle,
    teachers=(1, 3),
    gradient=policy_gradient,
    edges=(0, 1),
  ),
  Case(
    losses.policy_loss,
    supported_policy_args,
    policy_oracle,
    {"weights": np.linspace(0, 2, EXAMPLES * LENGTH, dtype=np.float32).reshape(EXAMPLES, LENGTH)}
    | SOFT_SUPPORTED,
    teachers=(1, 3),
    gradient=policy_gradient,
    edges=(0, 1),
    name="weighted",
  ),
  Case(
    cached(losses.top_k_kl_loss, K),
    normal((7,), (7,)),
    top_k_oracle,
    gradient=top_k_gradient,
    equal=((0, 1),),
    **TOP_K,
  ),
  Case(
    cached(losses.top_k_kl_loss, K),
    normal((7,), (7,)),
    top_k_oracle,
    {"temperature": 1.5, "support": SUPPORT},
    gradient=top_k_gradient,
    equal=((0, 1),),
    name="soft-supported",
    **TOP_K,
  ),
  Case(
    cached(losses.top_k_reverse_kl_loss, K),
    normal((7,), (7,)),
    top_k_reverse_oracle,
    equal=((0, 1),),
    **TOP_K,
  ),
  Case(
    cached(losses.top_k_reverse_kl_loss, K),
    normal((7,), (7,)),
    top_k_reverse_oracle,
    {"temperature": 1.5, "support": SUPPORT},
    equal=((0, 1),),
    name="soft-supported",
    **TOP_K,
  ),
  Case(
    sampled(losses.sampled_cross_entropy_loss),
    sampled_args,
    sampled_oracle,
    {"temperature": 2.0},
    teachers=(2,),
    gradient=sampled_gradient,
    edges=(0,),
  ),
  Case(
    losses.universal_logit_loss,
    normal((7,), (7,)),
    universal_oracle,
    teachers=(1,),
    equal=((0, 1),),
    edges=(0, 1),
  ),
  Case(
    losses.universal_logit_loss,
    normal((5,), (7,)),
    universal_oracle,
    {
      "temperature": 2.0,
      "student_support": np.array([True, True, False, True, True]),
      "teacher_support": SUPPORT,
    },
    teachers=(1,),
    edges=(0, 1),
    name="unequal-vocabularies",
  ),
  Case(
    losses.contrastive_loss,
    lambda rng: (*normal((6,))(rng), rng.integers(0, 4, EXAMPLES, dtype=np.int32)),
    contrastive_oracle,
    {"temperature": 0.5},
    joint=True,
  ),
  Case(losses.ctc_loss, ctc_args([1, 2]), ctc_oracle, edges=(0,)),
  Case(
    losses.ctc_loss,
    ctc_args([0, 1]),
    ctc_oracle,
    {"blank": 2, "frame_where": FRAMES_SEEN, "label_where": LABELS_SEEN},
    edges=(0,),
    name="padded",
  ),
]
