"""Every loss as one would write it on a whiteboard, and inputs to race it on.

No masking, no care for infinities or NaN gradients: `kdjax.losses` is compared with this for speed
and memory, not for trust. Sizes make up [4096, 1000] float32 wherever a textbook version fits into
memory; losses over all pairs or triples of candidates get [64, 1000].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from kdjax import losses
from kdjax.types import FactoredLogits

ROWS, FEW, CLASSES, T = 4096, 64, 1000, 2.0
GROUPS, KEPT, LIST, NEGATIVES, WIDTH = 8, 50, 40, 256, 64
log_softmax, softmax, sigmoid = jax.nn.log_softmax, jax.nn.softmax, jax.nn.sigmoid
log_sigmoid, mean, total = jax.nn.log_sigmoid, jnp.mean, jnp.sum


class Race(NamedTuple):
  """A loss, both ways.

  Attributes:
    inputs: `(key) -> arguments`; the gradient is taken by the first.
    textbook: of these arguments.
    ours: likewise; None for the function of `kdjax.losses` itself.
  """

  inputs: Callable[[Any], tuple[Any, ...]]
  textbook: Callable[..., Any]
  ours: Callable[..., Any] | None = None


def normal(*shapes):
  """Arrays of these shapes."""
  return lambda key: tuple(
    jax.random.normal(k, shape)
    for k, shape in zip(jax.random.split(key, len(shapes)), shapes, strict=True)
  )


TWO = normal((ROWS, CLASSES), (ROWS, CLASSES))
TWO_FEW = normal((FEW, CLASSES), (FEW, CLASSES))
TOKENS = normal((16, ROWS // 16, CLASSES), (16, ROWS // 16, CLASSES))
MAPS = normal((8, ROWS // 8, CLASSES), (8, ROWS // 8, CLASSES))


def labelled(inputs, high=CLASSES):
  """The inputs, and an integer for each of their rows."""

  def more(key):
    args = inputs(key)
    return (*args, jax.random.randint(key, args[0].shape[:-1], 0, high))

  return more


def dot(a, b):
  """Along the last axis."""
  return total(a * b, -1)


def unit(x):
  """Rows of length 1."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def kl(p, q):
  """KL of rows of probabilities, as printed."""
  return mean(dot(p, jnp.log(p) - jnp.log(q)))


def zscore(z):
  """Logits in units of their deviation."""
  return (z - mean(z, -1, keepdims=True)) / jnp.std(z, -1, keepdims=True)


def pearson(a, b):
  """Correlation along the last axis."""
  a, b = (x - mean(x, axis=-1, keepdims=True) for x in (a, b))
  return dot(a, b) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


def at(values, ids):
  """One value a row."""
  return jnp.take_along_axis(values, ids[..., None], axis=-1)[..., 0]


def jensen_shannon(s, t):
  """With equal weights."""
  p, q = softmax(t), softmax(s)
  return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def decoupled(s, t, y):
  """DKD by masking the target out."""
  target = jax.nn.one_hot(y, s.shape[-1])
  pt, qt = dot(softmax(t), target), dot(softmax(s), target)
  binary = pt * jnp.log(pt / qt) + (1 - pt) * jnp.log((1 - pt) / (1 - qt))
  log_p, log_q = log_softmax(t - 1000.0 * target), log_softmax(s - 1000.0 * target)
  return mean(binary + 8.0 * dot(jnp.exp(log_p), log_p - log_q))


def normalized_decoupled(s, t, y):
  """NKD in the same way."""
  target = jax.nn.one_hot(y, s.shape[-1])
  soft = -dot(softmax(t), target) * dot(log_softmax(s), target)
  others = -dot(softmax(t - 1000.0 * target), log_softmax(s - 1000.0 * target))
  return mean(soft + 1.5 * others)


def bernoulli_kl(s, t):
  """Of every logit."""
  p, q = sigmoid(t), sigmoid(s)
  return mean(p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q)))


def binary_cross_entropy(z, y):
  """Of every logit."""
  return -mean(y * log_sigmoid(z) + (1 - y) * log_sigmoid(-z))


def factored(key):
  """Queries and tables of student and teacher, and labels: ROWS x CLASSES logits."""
  q, e, tq, te = normal((ROWS, WIDTH), (CLASSES, WIDTH), (ROWS, WIDTH), (CLASSES, WIDTH))(key)
  y = jax.random.randint(key, (ROWS,), 0, CLASSES)
  return q / 8, e, tq / 8, te, y


def ours_factored(loss):
  """A catalogue loss on these."""
  return lambda q, e, tq, te, y: loss(FactoredLogits(q, e), FactoredLogits(tq, te), y)


def in_part(targets):
  """Query and table of the student, and what `targets` keep of the teacher's logits."""

  def inputs(key):
    q, e, tq, te, _ = factored(key)
    return q, e, targets(key, tq @ te.T)

  return inputs


def best(key, t):
  """The largest logits of the teacher."""
  return losses.top_k_targets(t, KEPT)


def ours_in_part(loss):
  """A catalogue loss on these."""
  return lambda q, e, *targets: loss(FactoredLogits(q, e), *targets)


def cross_entropy(z, y):
  """Of labels."""
  return -mean(at(log_softmax(z), y))


def top_k(key):
  """Logits and the teacher's best."""
  s, t = TWO(key)
  return s, losses.top_k_targets(t, KEPT)


def buckets(s, teacher):
  """Probabilities of the kept classes and of the rest together."""
  p = jnp.exp(teacher.values - teacher.log_normalizer[..., None])
  q = jnp.take_along_axis(softmax(s), teacher.indices, axis=-1)
  return tuple(jnp.concatenate([x, 1 - total(x, -1, keepdims=True)], -1) for x in (p, q))


def sampled(key):
  """Logits and draws of the teacher."""
  s, t = TWO(key)
  return s, losses.sample_targets(key, t, KEPT)


def sampled_cross_entropy(s, x):
  """With the weights of the draws."""
  return -mean(dot(x.weights, jnp.take_along_axis(log_softmax(s), x.indices, axis=-1)))


def written(key):
  """Logits of tokens, the tokens, and what follows them is worth."""
  s, t, y = labelled(TOKENS)(key)
  return s, t, y, jax.random.normal(key, y.shape)


def policy(s, t, y, returns):
  """Reverse KL, and the policy gradient."""
  log_q = log_softmax(s)
  each = dot(jnp.exp(log_q), log_q - log_softmax(t))
  return mean(each - returns * at(log_q, y))


def universal(s, t):
  """Sorted probabilities."""
  return mean(total(jnp.abs(jnp.sort(softmax(s)) - jnp.sort(softmax(t))), -1))


def speech(key):
  """Frames and a short text."""
  (z,) = normal((16, ROWS // 16, CLASSES))(key)
  return z, jax.random.randint(key, (16, 32), 1, CLASSES)


def ctc(z, y):
  """By optax."""
  return mean(optax.ctc_loss(z, jnp.zeros(z.shape[:2]), y, jnp.zeros(y.shape)))


def order_likelihood(s):
  """Plackett-Luce likelihood of scores in their order: a softmax for each place."""
  rest = jnp.log(jnp.cumsum(jnp.exp(s)[..., ::-1], axis=-1)[..., ::-1])
  return mean(total(rest - s, -1))


def listmle(s, t):
  """In the teacher's order."""
  return order_likelihood(jnp.take_along_axis(s, jnp.argsort(-t, axis=-1), axis=-1))


def drawn_orders(key):
  """Scores and two orders drawn from the teacher."""
  s, t = TWO(key)
  return s, losses.sample_rankings(key, t, draws=2)


def plackett_luce(s, ranks):
  """In the drawn orders."""
  s = jnp.broadcast_to(s[..., None, :], ranks.shape)
  return order_likelihood(jnp.take_along_axis(s, jnp.argsort(ranks, axis=-1), axis=-1))


def relaxed_inputs(key):
  """Scores of LIST interesting items and of uninteresting ones."""
  (s,) = normal((ROWS, CLASSES))(key)
  ranks = jnp.where(jnp.arange(CLASSES) < LIST, jnp.arange(CLASSES), losses.UNRANKED)
  return s, jnp.broadcast_to(ranks, s.shape)


def relaxed(s, ranks):
  """The interesting stand first."""
  del ranks
  below = jnp.cumsum(jnp.exp(s[:, :LIST])[:, ::-1], axis=-1)[:, ::-1]
  below = below + total(jnp.exp(s[:, LIST:]), -1, keepdims=True)
  return mean(total(jnp.log(below) - s[:, :LIST], -1))


def pairs(x):
  """Differences of all pairs."""
  return x[:, :, None] - x[:, None, :]


def ranknet(s, t):
  """Cross-entropy of every ordered pair, the diagonal left out."""
  p, n, z = sigmoid(pairs(t)), s.shape[-1], pairs(s)
  each = -(p * log_sigmoid(z) + (1 - p) * log_sigmoid(-z))
  return mean(total(each * (1 - jnp.eye(n)[None]), (1, 2)) / (n * (n - 1)))


def hinge(s, t):
  """Mean over the pairs that the teacher orders."""
  ordered = (pairs(t) > 0).astype(jnp.float32)
  return mean(total(ordered * jax.nn.relu(1 - pairs(s)), (1, 2)) / total(ordered, (1, 2)))


def lambdas(s, gains):
  """What swapping two places would change of NDCG, on every pair."""
  ranks = 1 + jnp.argsort(jnp.argsort(-jax.lax.stop_gradient(s), axis=-1), axis=-1)
  places = jnp.arange(1, s.shape[-1] + 1)
  best = total(-jnp.sort(-gains, axis=-1) / jnp.log2(1 + places), -1)[:, None, None]
  swap = jnp.abs(pairs(1 / jnp.log2(1.0 + ranks)))
  gap = jax.nn.relu(pairs(gains))
  return mean(total(swap * gap / best * jnp.logaddexp(0.0, -pairs(s)), (1, 2)))


def gained(key):
  """Scores and gains."""
  s, t = TWO_FEW(key)
  return s, softmax(t)


def ranked(key):
  """Scores of the teacher's list in its order."""
  (s,) = normal((ROWS, CLASSES))(key)
  return s, jnp.broadcast_to(jnp.arange(CLASSES), s.shape)


def falling(ranks):
  """Weights by place."""
  return softmax(-ranks.astype(jnp.float32))


def recommended(key):
  """The same, with the teacher's doubts and who agrees."""
  s, ranks = ranked(key)
  return s, ranks, jax.random.uniform(key, s.shape), jax.random.bernoulli(key, 0.5, s.shape)


def importance(s, ranks, distances, agreed):
  """Three weights."""
  weights = 0.3 * falling(ranks) + 0.5 * softmax(-distances) + 0.1 * agreed
  return -mean(dot(weights, log_sigmoid(s)))


def variances(key):
  """A mean, a variance a channel, and the teacher."""
  s, t = TWO(key)
  return s, jnp.linspace(0.5, 2.0, CLASSES), t


def relations(q, k):
  """What attends to what, with one head."""
  return softmax(jnp.einsum("bid,bjd->bij", q, k) / q.shape[-1] ** 0.5)


def activity(h):
  """Where a map is active."""
  return unit(total(h**2, -1))


def gram(h):
  """Channels against channels."""
  return jnp.einsum("bpi,bpj->bij", h, h)


def fsp(s1, s2, t1, t2):
  """Flows of both."""
  flow = lambda a, b: jnp.einsum("bpi,bpj->bij", a, b) / a.shape[1]  # noqa: E731
  return mean(total((flow(s1, s2) - flow(t1, t2)) ** 2, (1, 2)))


def selectivity(s, t):
  """MMD with the kernel (x . y)^2."""
  s, t = (unit(jnp.swapaxes(x, 1, 2)) for x in (s, t))
  square = lambda a, b: mean(jnp.einsum("bip,bjp->bij", a, b) ** 2, (1, 2))  # noqa: E731
  return mean(square(s, s) + square(t, t) - 2 * square(s, t))


def boundary(s, t):
  """On or off."""
  on = jax.nn.relu(1 - s) ** 2
  return mean(jnp.where(t > 0, on, jax.nn.relu(1 + s) ** 2))


def overhaul(s, t):
  """After a margin ReLU."""
  target = jnp.maximum(t, -0.7978845608)
  return mean(jnp.where((s <= target) & (target <= 0), 0.0, (target - s) ** 2))


def contexts(s, t):
  """Ever coarser averages."""
  loss, weight = mean((s - t) ** 2), 1.0
  for level, n in enumerate((4, 2, 1), start=1):
    pool = lambda h, n=n: mean(h.reshape(h.shape[0], n, -1, h.shape[-1]), 2)  # noqa: E731
    loss, weight = loss + mean((pool(s) - pool(t)) ** 2) / 2**level, weight + 1 / 2**level
  return loss / weight


def cka(s, t):
  """From the matrices of examples."""
  s, t = (x - mean(x, 0, keepdims=True) for x in (s, t))
  ks, kt = s @ s.T, t @ t.T
  return 1 - total(ks * kt) / (jnp.linalg.norm(ks) * jnp.linalg.norm(kt))


def huber(x):
  """Smooth absolute value."""
  return jnp.where(jnp.abs(x) < 1, x**2 / 2, jnp.abs(x) - 0.5)


def distances(h):
  """All of them in units of their mean."""
  square = total(h**2, -1)
  d = jnp.sqrt(jnp.maximum(square[:, None] + square[None] - 2 * h @ h.T, 1e-12))
  d = d * (1 - jnp.eye(len(h)))
  return d / (total(d) / (len(h) * (len(h) - 1)))


def rkd_distance(s, t):
  """Off the diagonal."""
  return total(huber(distances(s) - distances(t))) / (len(s) * (len(s) - 1))


def angles(h):
  """Cosines at j between i and k."""
  d = h[:, None] - h[None]
  e = d / jnp.sqrt(total(d**2, -1, keepdims=True) + 1e-12)
  return jnp.einsum("ijd,kjd->jik", e, e)


def rkd_angle(s, t):
  """Of three different examples."""
  n = len(s)
  off = 1 - jnp.eye(n)
  differ = off[None] * off[:, :, None] * off[:, None, :]
  return total(differ * huber(angles(s) - angles(t))) / (n * (n - 1) * (n - 2))


def similarity(s, t):
  """Rows of the Gram matrix, of length 1."""
  return mean(total((unit(s @ s.T) - unit(t @ t.T)) ** 2, -1)) / len(s)


def congruence(s, t):
  """A kernel in powers of the cosine."""

  def k(h):
    cos = unit(h) @ unit(h).T
    return jnp.exp(-0.8) * (1 + 0.8 * cos + 0.32 * cos**2)

  return mean((k(s) - k(t)) ** 2)


def neighbours(h):
  """Probabilities of picking each other example."""
  k = (1 + unit(h) @ unit(h).T) / 2 * (1 - jnp.eye(len(h)))
  return k / total(k, -1, keepdims=True)


def transfer(s, t):
  """KL of these."""
  p, q = neighbours(t), neighbours(s)
  return mean(total(p * jnp.log((p + 1e-12) / (q + 1e-12)), -1))


def cosines(a, b):
  """All with all."""
  return unit(a) @ unit(b).T


def topology(s, t):
  """Off the diagonal."""
  n = len(s)
  return total((cosines(s, s) - cosines(t, t)) ** 2 * (1 - jnp.eye(n))) / (n * (n - 1))


def group_topology(s, t, groups):
  """Prototypes by a one-hot matrix."""
  member = jax.nn.one_hot(groups, GROUPS)
  sizes = total(member, 0)[:, None]
  between = cosines(s, member.T @ s / sizes) - cosines(t, member.T @ t / sizes)
  same = member @ member.T * (1 - jnp.eye(len(s)))
  within = (cosines(s, s) - cosines(t, t)) ** 2 * same
  return mean(mean(between**2, -1) + total(within, -1) / total(same, -1))


def info_nce(s, t):
  """In the batch."""
  return -mean(jnp.diag(log_softmax(cosines(s, t) / 0.07)))


def remembered(key):
  """Embeddings, a memory, and which rows of it are compared."""
  s, memory = normal((FEW, CLASSES), (ROWS, CLASSES))(key)
  ids = losses.contrast_ids(key, jnp.arange(FEW), num_examples=ROWS, num_negatives=NEGATIVES)
  return s, unit(memory), ids


def crd(s, memory, ids):
  """NCE with temperature 1/2 (at 0.07 the textbook version overflows on some inputs)."""
  powers = jnp.exp(jnp.einsum("bd,bkd->bk", unit(s), memory[ids]) / 0.5)
  h = powers / (powers + NEGATIVES / len(memory))
  return -mean(jnp.log(h[:, 0]) + total(jnp.log(1 - h[:, 1:]), -1))


def contrast(h, labels):
  """Examples come by twos."""
  z = cosines(h, h) / 0.1 - 1e9 * jnp.eye(len(h))
  same = (labels[:, None] == labels[None]) * (1 - jnp.eye(len(h)))
  return -mean(total(log_softmax(z) * same, -1) / total(same, -1))


def twins(key):
  """Embeddings whose labels occur twice."""
  (h,) = normal((ROWS, CLASSES))(key)
  return h, jnp.arange(ROWS) // 2


def split(loss):
  """A loss of a positive and its negatives on rows that begin with the positive."""
  return lambda *scores: loss(*(x for s in scores for x in (s[:, 0], s[:, 1:])))


ONE = normal((ROWS, CLASSES))

RACES: dict[str, Race] = {
  "kl": Race(
    TWO,
    lambda s, t: T**2 * kl(softmax(t / T), softmax(s / T)),
    lambda s, t: losses.kl_loss(s, t, temperature=T),
  ),
  "reverse_kl": Race(TWO, lambda s, t: kl(softmax(s), softmax(t))),
  "jensen_shannon": Race(TWO, jensen_shannon),
  "skew_kl": Race(TWO, lambda s, t: kl(softmax(t), 0.1 * softmax(t) + 0.9 * softmax(s))),
  "skew_reverse_kl": Race(TWO, lambda s, t: kl(softmax(s), 0.1 * softmax(s) + 0.9 * softmax(t))),
  "total_variation": Race(TWO, lambda s, t: mean(total(jnp.abs(softmax(s) - softmax(t)), -1)) / 2),
  "cosine_probability": Race(TWO, lambda s, t: mean(1 - dot(unit(softmax(s)), unit(softmax(t))))),
  "logit_mse": Race(TWO, lambda s, t: mean((s - t) ** 2)),
  "standardized_kl": Race(
    TWO, lambda s, t: T**2 * kl(softmax(zscore(t) / T), softmax(zscore(s) / T))
  ),
  "dist": Race(
    TWO,
    lambda s, t: (
      mean(1 - pearson(softmax(s), softmax(t))) + mean(1 - pearson(softmax(s).T, softmax(t).T))
    ),
  ),
  "decoupled": Race(
    labelled(TWO), decoupled, lambda s, t, y: losses.decoupled_loss(s, t, y, temperature=1.0)
  ),
  "normalized_decoupled": Race(labelled(TWO), normalized_decoupled),
  "bernoulli_kl": Race(TWO, bernoulli_kl),
  "catalog_cross_entropy": Race(
    factored,
    lambda q, e, tq, te, y: cross_entropy(q @ e.T, y),
    ours_factored(lambda s, t, y: losses.catalog_cross_entropy_loss(s, y)),
  ),
  "catalog_kl": Race(
    factored,
    lambda q, e, tq, te, y: kl(softmax(tq @ te.T), softmax(q @ e.T)),
    ours_factored(lambda s, t, y: losses.catalog_kl_loss(s, t)),
  ),
  "catalog_distillation": Race(
    factored,
    lambda q, e, tq, te, y: (
      cross_entropy(q @ e.T, y) / 2 + kl(softmax(tq @ te.T), softmax(q @ e.T)) / 2
    ),
    ours_factored(losses.catalog_distillation_loss),
  ),
  "catalog_cached_distillation": Race(
    lambda key: (*in_part(best)(key), factored(key)[-1]),
    lambda q, e, teacher, y: cross_entropy(q @ e.T, y) / 2 + kl(*buckets(q @ e.T, teacher)) / 2,
    ours_in_part(losses.catalog_cached_distillation_loss),
  ),
  "catalog_reverse_kl": Race(
    factored,
    lambda q, e, tq, te, y: kl(softmax(q @ e.T), softmax(tq @ te.T)),
    ours_factored(lambda s, t, y: losses.catalog_reverse_kl_loss(s, t)),
  ),
  "catalog_jensen_shannon": Race(
    factored,
    lambda q, e, tq, te, y: jensen_shannon(q @ e.T, tq @ te.T),
    ours_factored(lambda s, t, y: losses.catalog_jensen_shannon_loss(s, t)),
  ),
  "catalog_top_k_kl": Race(
    in_part(best),
    lambda q, e, teacher: kl(*buckets(q @ e.T, teacher)),
    ours_in_part(losses.catalog_top_k_kl_loss),
  ),
  "catalog_top_k_reverse_kl": Race(
    in_part(best),
    lambda q, e, teacher: kl(*buckets(q @ e.T, teacher)[::-1]),
    ours_in_part(losses.catalog_top_k_reverse_kl_loss),
  ),
  "catalog_sampled_cross_entropy": Race(
    in_part(lambda key, t: losses.sample_targets(key, t, KEPT)),
    lambda q, e, x: sampled_cross_entropy(q @ e.T, x),
    ours_in_part(losses.catalog_sampled_cross_entropy_loss),
  ),
  "top_k_kl": Race(top_k, lambda s, teacher: kl(*buckets(s, teacher))),
  "top_k_reverse_kl": Race(top_k, lambda s, teacher: kl(*buckets(s, teacher)[::-1])),
  "sampled_cross_entropy": Race(sampled, sampled_cross_entropy),
  "sequence": Race(
    lambda key: labelled(TOKENS)(key)[::2],
    lambda s, y: -mean(total(at(log_softmax(s), y), -1)),
  ),
  "policy": Race(written, policy),
  "universal_logit": Race(TWO, universal),
  "ctc": Race(speech, ctc),
  "listnet": Race(TWO, lambda s, t: -mean(dot(softmax(t), log_softmax(s)))),
  "listmle": Race(TWO, listmle),
  "plackett_luce": Race(drawn_orders, plackett_luce),
  "relaxed_ranking": Race(
    relaxed_inputs, relaxed, lambda s, r: losses.relaxed_ranking_loss(s, r, k=LIST)
  ),
  "ranknet": Race(TWO_FEW, ranknet),
  "pairwise_hinge": Race(TWO_FEW, hinge),
  "lambda": Race(gained, lambdas),
  "margin_mse": Race(
    TWO,
    lambda s, t: mean(((s[:, :1] - s[:, 1:]) - (t[:, :1] - t[:, 1:])) ** 2),
    split(losses.margin_mse_loss),
  ),
  "ranking_distillation": Race(ranked, lambda s, r: -mean(dot(falling(r), log_sigmoid(s)))),
  "collaborative": Race(TWO, lambda s, t: binary_cross_entropy(s, sigmoid(t))),
  "stratified_pair": Race(TWO, lambda s, t: -mean(log_sigmoid(s - t))),
  "importance_ranking": Race(recommended, importance),
  "hint": Race(TWO, lambda s, t: mean((s - t) ** 2)),
  "cosine_feature": Race(TWO, lambda s, t: mean(1 - dot(unit(s), unit(t)))),
  "patient": Race(TWO, lambda s, t: mean(total((unit(s) - unit(t)) ** 2, -1))),
  "variational": Race(variances, lambda m, v, t: mean(jnp.log(v) / 2 + (t - m) ** 2 / (2 * v))),
  "attention_mse": Race(TWO, lambda s, t: mean((s - t) ** 2)),
  "attention_relation": Race(
    lambda key: (*TOKENS(key), *TOKENS(jax.random.fold_in(key, 1))),
    lambda sq, sk, tq, tk: kl(relations(tq, tk), relations(sq, sk)),
  ),
  "self_relation": Race(TOKENS, lambda s, t: kl(relations(t, t), relations(s, s))),
  "attention_transfer": Race(
    MAPS, lambda s, t: mean(jnp.linalg.norm(activity(s) - activity(t), axis=-1))
  ),
  "fsp": Race(lambda key: (*MAPS(key), *MAPS(jax.random.fold_in(key, 1))), fsp),
  "channel_correlation": Race(MAPS, lambda s, t: mean((gram(s) - gram(t)) ** 2)),
  "neuron_selectivity": Race(MAPS, selectivity),
  "factor_transfer": Race(TWO, lambda s, t: mean(total(jnp.abs(unit(s) - unit(t)), -1))),
  "activation_boundary": Race(TWO, boundary),
  "overhaul": Race(TWO, overhaul),
  "hierarchical_context": Race(MAPS, contexts),
  "cka": Race(TWO, cka),
  "rkd_distance": Race(TWO, rkd_distance),
  "rkd_angle": Race(TWO_FEW, rkd_angle),
  "similarity_preserving": Race(TWO, similarity),
  "correlation_congruence": Race(TWO, congruence),
  "probabilistic_transfer": Race(TWO, transfer),
  "topology": Race(TWO, topology),
  "group_topology": Race(
    labelled(TWO, GROUPS),
    group_topology,
    lambda s, t, g: losses.group_topology_loss(s, t, g, num_groups=GROUPS),
  ),
  "info_nce": Race(TWO, info_nce),
  "crd": Race(remembered, crd, lambda s, m, ids: losses.crd_loss(s, m, ids, temperature=0.5)),
  "cross_entropy": Race(labelled(ONE), cross_entropy),
  "soft_cross_entropy": Race(
    lambda key: (TWO(key)[0], softmax(TWO(key)[1])), lambda s, p: -mean(dot(p, log_softmax(s)))
  ),
  "binary_cross_entropy": Race(
    lambda key: (TWO(key)[0], sigmoid(TWO(key)[1])), binary_cross_entropy
  ),
  "sampled_softmax": Race(
    ONE, lambda s: -mean(log_softmax(s)[:, 0]), split(losses.sampled_softmax_loss)
  ),
  "nce": Race(
    ONE,
    lambda s: -mean(log_sigmoid(s[:, 0]) + total(log_sigmoid(-s[:, 1:]), -1)),
    split(losses.nce_loss),
  ),
  "bpr": Race(ONE, lambda s: -mean(log_sigmoid(s[:, :1] - s[:, 1:])), split(losses.bpr_loss)),
  "contrastive": Race(twins, contrast),
}
