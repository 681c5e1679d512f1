"""Cases of the divergences between softmaxes, decoupled, standardised and correlated."""

import numpy as np
from cases_logits import kl_oracle
from loss_cases import DISTILL, EXAMPLES, SUPPORT, Case, normal, plogpq, softmax, with_labels

from kdjax import losses


def chain(s, g, scale):
  """The gradient by the logits of sum_c f(p_c), with g = f'(p), times `scale`."""
  return scale * s * (g - (s * g).sum(-1, keepdims=True))


def log_ratio(p, q):
  return np.where(p > 0, np.log(np.where(p > 0, p, 1) / np.where(p > 0, q, 1)), 0)


def log_softmax(logits, temperature=1.0, support=None):
  logits = np.float64(logits) / temperature
  logits = logits if support is None else np.where(support, logits, -np.inf)
  top = logits.max(-1, keepdims=True)
  return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def both(student, teacher, temperature, support):
  return (softmax(z, temperature, support) for z in (student, teacher))


def reverse_kl_oracle(student, teacher, temperature=1.0, support=None):
  s, t = both(student, teacher, temperature, support)
  return temperature**2 * plogpq(s, t).sum(-1)


def reverse_kl_gradient(student, teacher, temperature=1.0, support=None):
  s, t = both(student, teacher, temperature, support)
  return chain(s, log_ratio(s, t), temperature)


def jsd_oracle(
  student, teacher, teacher_weight=0.5, normalized=False, temperature=1.0, support=None
):
  s, t = both(student, teacher, temperature, support)
  if normalized and teacher_weight in (0, 1):
    return temperature**2 * plogpq(*((t, s) if teacher_weight == 0 else (s, t))).sum(-1)
  m = teacher_weight * t + (1 - teacher_weight) * s
  jsd = teacher_weight * plogpq(t, m).sum(-1) + (1 - teacher_weight) * plogpq(s, m).sum(-1)
  return temperature**2 * jsd / (teacher_weight * (1 - teacher_weight) if normalized else 1)


def jsd_gradient(
  student, teacher, teacher_weight=0.5, normalized=False, temperature=1.0, support=None
):
  s, t = both(student, teacher, temperature, support)
  if normalized and teacher_weight == 0:
    return temperature * (s - t)
  m = teacher_weight * t + (1 - teacher_weight) * s
  size = 1 / teacher_weight if normalized else 1 - teacher_weight
  return chain(s, size * log_ratio(s, m), temperature)


def skew_oracle(student, teacher, teacher_weight=0.1, temperature=1.0, support=None):
  s, t = both(student, teacher, temperature, support)
  return temperature**2 * plogpq(t, teacher_weight * t + (1 - teacher_weight) * s).sum(-1)


def skew_gradient(student, teacher, teacher_weight=0.1, temperature=1.0, support=None):
  s, t = both(student, teacher, temperature, support)
  m = teacher_weight * t + (1 - teacher_weight) * s
  ratio = np.where(m > 0, t / np.where(m > 0, m, 1), 0)
  return chain(s, -(1 - teacher_weight) * ratio, temperature)


def skew_reverse_oracle(student, teacher, student_weight=0.1, temperature=1.0, support=None):
  s, t = both(student, teacher, temperature, support)
  return temperature**2 * plogpq(s, (1 - student_weight) * t + student_weight * s).sum(-1)


def skew_reverse_gradient(student, teacher, student_weight=0.1, temperature=1.0, support=None):
  s, t = both(student, teacher, temperature, support)
  m = (1 - student_weight) * t + student_weight * s
  ratio = np.where(m > 0, s / np.where(m > 0, m, 1), 0)
  return chain(s, log_ratio(s, m) - student_weight * ratio, temperature)


def total_variation_oracle(student, teacher, temperature=1.0, support=None):
  s, t = both(student, teacher, temperature, support)
  return np.abs(s - t).sum(-1) / 2


def total_variation_gradient(student, teacher, temperature=1.0, support=None):
  s, t = both(student, teacher, temperature, support)
  return chain(s, np.sign(s - t) / 2, 1 / temperature)


def cosine_oracle(student, teacher, temperature=1.0, support=None):
  s, t = both(student, teacher, temperature, support)
  return 1 - (s * t).sum(-1) / np.sqrt((s**2).sum(-1) * (t**2).sum(-1))


def cosine_gradient(student, teacher, temperature=1.0, support=None):
  s, t = both(student, teacher, temperature, support)
  size_s, size_t = (np.sqrt((p**2).sum(-1, keepdims=True)) for p in (s, t))
  cosine = (s * t).sum(-1, keepdims=True) / (size_s * size_t)
  return chain(s, -(t / size_t - cosine * s / size_s) / size_s, 1 / temperature)


def standardized(logits, support):
  real = np.isfinite(logits) & (True if support is None else support)
  rows = []
  for z, r in zip(np.float64(logits), real, strict=True):
    deviation = np.sqrt(np.mean((z[r] - z[r].mean()) ** 2))
    rows.append(np.where(r, (z - z[r].mean()) / deviation, -np.inf))
  return np.array(rows)


def standardized_oracle(student, teacher, temperature=2.0, support=None):
  return kl_oracle(standardized(student, support), standardized(teacher, support), temperature)


def decoupled_parts(logits, labels, temperature, support):
  """p_y, 1 - p_y, and the softmax over the other classes."""
  p = softmax(logits, temperature, support)
  is_label = np.eye(p.shape[-1], dtype=bool)[labels]
  others = ~is_label if support is None else ~is_label & support
  target = p[is_label][:, None]
  rest = np.where(is_label, 0, p).sum(-1, keepdims=True)
  return target, rest, softmax(logits, temperature, others), is_label


def decoupled_oracle(
  student, teacher, labels, target_weight=1.0, other_weight=8.0, temperature=4.0, support=None
):
  s, rest_s, other_s, _ = decoupled_parts(student, labels, temperature, support)
  t, rest_t, other_t, _ = decoupled_parts(teacher, labels, temperature, support)
  target = (plogpq(t, s) + plogpq(rest_t, rest_s))[:, 0]
  other = plogpq(other_t, other_s).sum(-1)
  return temperature**2 * (target_weight * target + other_weight * other)


def decoupled_gradient(
  student, teacher, labels, target_weight=1.0, other_weight=8.0, temperature=4.0, support=None
):
  s, _, other_s, is_label = decoupled_parts(student, labels, temperature, support)
  t, _, other_t, _ = decoupled_parts(teacher, labels, temperature, support)
  target = (s - t) * np.where(is_label, 1, -other_s)
  return temperature * (target_weight * target + other_weight * (other_s - other_t))


def normalized_decoupled_oracle(
  student, teacher, labels, target_weight=1.0, other_weight=1.5, temperature=1.0, support=None
):
  s, *_ = decoupled_parts(student, labels, 1.0, support)
  t, *_ = decoupled_parts(teacher, labels, 1.0, support)
  _, _, other_s, _ = decoupled_parts(student, labels, temperature, support)
  _, _, other_t, _ = decoupled_parts(teacher, labels, temperature, support)
  other = -np.where(other_t > 0, other_t * np.log(np.where(other_t > 0, other_s, 1)), 0).sum(-1)
  target = -np.where(t > 0, t * np.log(np.where(t > 0, s, 1)), 0)[:, 0]
  return target_weight * target + other_weight * temperature**2 * other


def normalized_decoupled_gradient(
  student, teacher, labels, target_weight=1.0, other_weight=1.5, temperature=1.0, support=None
):
  t, _, _, is_label = decoupled_parts(teacher, labels, 1.0, support)
  _, _, other_s, _ = decoupled_parts(student, labels, temperature, support)
  _, _, other_t, _ = decoupled_parts(teacher, labels, temperature, support)
  target = t * (softmax(student, support=support) - is_label)
  return target_weight * target + other_weight * temperature * (other_s - other_t)


def pearson(log_u, log_v):
  """Of the exponentials, which are scaled first: a correlation does not notice."""
  u, v = (np.exp(x - x.max()) for x in (log_u, log_v))
  u, v = u - u.mean(), v - v.mean()
  return (u @ v) / np.sqrt((u @ u) * (v @ v))


def dist_oracle(
  student, teacher, inter_weight=1.0, intra_weight=1.0, temperature=1.0, support=None
):
  support = np.ones(student.shape[-1], bool) if support is None else support
  s, t = (log_softmax(z[:, support], temperature) for z in (student, teacher))
  inter = np.array([1 - pearson(a, b) for a, b in zip(s, t, strict=True)])
  intra = np.mean([1 - pearson(a, b) for a, b in zip(s.T, t.T, strict=True)])
  return inter_weight * inter + intra_weight * intra


def soft_cross_entropy_oracle(logits, probs, support=None):
  probs = np.float64(probs) * (True if support is None else support)
  p = softmax(logits, support=support)
  return -np.where(probs > 0, probs * np.log(np.where(probs > 0, p, 1)), 0).sum(-1)


def soft_cross_entropy_gradient(logits, probs, support=None):
  probs = np.float64(probs) * (True if support is None else support)
  return probs.sum(-1, keepdims=True) * softmax(logits, support=support) - probs


def with_probs(rng):
  logits, targets = normal((7,), (7,))(rng)
  return logits, softmax(targets).astype(np.float32)


def with_supported_labels(rng):
  return (*normal((7,), (7,))(rng), np.flatnonzero(SUPPORT)[rng.integers(0, 5, EXAMPLES)])


def soft(loss, oracle, gradient=None, *, name="", **options):
  """A case of a divergence between two softmaxes."""
  args = loss, normal((7,), (7,)), oracle, options
  return Case(*args, gradient=gradient, name=name, **DISTILL)


LABELLED = {"teachers": (1,), "edges": (0, 1)}
SOFT_SUPPORTED = {"temperature": 3.0, "support": SUPPORT, "name": "soft-supported"}

CASES = [
  soft(losses.reverse_kl_loss, reverse_kl_oracle, reverse_kl_gradient),
  soft(losses.reverse_kl_loss, reverse_kl_oracle, reverse_kl_gradient, **SOFT_SUPPORTED),
  soft(losses.jensen_shannon_loss, jsd_oracle, jsd_gradient),
  soft(
    losses.jensen_shannon_loss,
    jsd_oracle,
    jsd_gradient,
    teacher_weight=0.1,
    normalized=True,
    **SOFT_SUPPORTED,
  ),
  soft(
    losses.jensen_shannon_loss,
    jsd_oracle,
    jsd_gradient,
    teacher_weight=0.9,
    name="mostly-teacher",
  ),
  soft(
    losses.jensen_shannon_loss,
    jsd_oracle,
    jsd_gradient,
    teacher_weight=0,
    normalized=True,
    name="forward",
  ),
  soft(
    losses.jensen_shannon_loss,
    jsd_oracle,
    jsd_gradient,
    teacher_weight=1.0,
    normalized=True,
    name="reverse",
  ),
  soft(losses.skew_kl_loss, skew_oracle, skew_gradient),
  soft(losses.skew_kl_loss, skew_oracle, skew_gradient, teacher_weight=0.7, **SOFT_SUPPORTED),
  soft(losses.skew_reverse_kl_loss, skew_reverse_oracle, skew_reverse_gradient),
  soft(
    losses.skew_reverse_kl_loss,
    skew_reverse_oracle,
    skew_reverse_gradient,
    student_weight=0.7,
    **SOFT_SUPPORTED,
  ),
  soft(losses.total_variation_loss, total_variation_oracle, total_variation_gradient),
  soft(
    losses.total_variation_loss,
    total_variation_oracle,
    total_variation_gradient,
    **SOFT_SUPPORTED,
  ),
  soft(losses.cosine_probability_loss, cosine_oracle, cosine_gradient),
  soft(losses.cosine_probability_loss, cosine_oracle, cosine_gradient, **SOFT_SUPPORTED),
  soft(losses.standardized_kl_loss, standardized_oracle),
  soft(
    losses.standardized_kl_loss,
    standardized_oracle,
    temperature=1.5,
    support=SUPPORT,
    name="supported",
  ),
  Case(
    losses.decoupled_loss,
    with_labels(7, (7,), (7,)),
    decoupled_oracle,
    gradient=decoupled_gradient,
    equal=((0, 1),),
    **LABELLED,
  ),
  Case(
    losses.decoupled_loss,
    with_supported_labels,
    decoupled_oracle,
    {"target_weight": 0.5, "other_weight": 2.0, "temperature": 1.0, "support": SUPPORT},
    gradient=decoupled_gradient,
    equal=((0, 1),),
    name="supported",
    **LABELLED,
  ),
  Case(
    losses.normalized_decoupled_loss,
    with_labels(7, (7,), (7,)),
    normalized_decoupled_oracle,
    gradient=normalized_decoupled_gradient,
    **LABELLED,
  ),
  Case(
    losses.normalized_decoupled_loss,
    with_supported_labels,
    normalized_decoupled_oracle,
    {"target_weight": 0.5, "other_weight": 2.0, "temperature": 3.0, "support": SUPPORT},
    gradient=normalized_decoupled_gradient,
    name="soft-supported",
    **LABELLED,
  ),
  Case(losses.dist_loss, normal((7,), (7,)), dist_oracle, joint=True, **DISTILL),
  Case(
    losses.dist_loss,
    normal((7,), (7,)),
    dist_oracle,
    {"inter_weight": 0.5, "intra_weight": 2.0, "temperature": 4.0, "support": SUPPORT},
    joint=True,
    name="soft-supported",
    **DISTILL,
  ),
  Case(
    losses.soft_cross_entropy_loss,
    with_probs,
    soft_cross_entropy_oracle,
    teachers=(1,),
    gradient=soft_cross_entropy_gradient,
    edges=(0,),
  ),
  Case(
    losses.soft_cross_entropy_loss,
    with_probs,
    soft_cross_entropy_oracle,
    {"support": SUPPORT},
    teachers=(1,),
    gradient=soft_cross_entropy_gradient,
    edges=(0,),
    name="supported",
  ),
]
