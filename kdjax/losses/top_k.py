"""Distillation from a teacher of whom only the best k logits were kept.

The mass outside of the k is known exactly, through the log-normaliser, and is compared as one
bucket: a student's mass there is held against the teacher's. Renormalising both inside the k, as
many toolkits do, leaves it free.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  FLOOR,
  check_temperature,
  constant,
  floored,
  gather,
  kl_divergence,
  visible,
)
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array


class TopK(NamedTuple):
  """The best k logits of a teacher, and what makes probabilities of them.

  Attributes:
    values: float `[..., k]`, over the temperature; -inf for none. Log-probabilities with a
      normaliser of 0 do as well. Keep them in float32: the tail is a difference to 1.
    indices: int `[..., k]`, which classes they are, each at most once.
    log_normalizer: float `[...]`, the log-sum-exp of all of the teacher's logits.
  """

  values: Array
  indices: Array
  log_normalizer: Array


def top_k_targets(
  teacher_logits: Array, k: int, *, temperature: float = 1.0, support: Array | None = None
) -> TopK:
  r"""What to cache of a teacher.

  $$z_{(1)} / T \ge \dots \ge z_{(k)} / T, \quad \log Z = \log \sum_c e^{z_c / T}$$

  Args:
    teacher_logits: float `[..., C]`.
    k: how many to keep, in [1, C].
    temperature: T > 0; the loss must be given the same, as Z cannot be changed to another later.
    support: bool `[C]` or `[..., C]`, the classes that exist.

  Returns:
    TopK, float32, without gradient, shifted such that the best logit is 0.

  Raises:
    ValueError: if k is not in [1, C] or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> targets = top_k_targets(jnp.log(jnp.array([0.1, 0.5, 0.2, 0.2])), 1)
    >>> probs = jnp.exp(targets.values - targets.log_normalizer[..., None])
    >>> targets.indices.tolist(), [round(float(p), 4) for p in probs]
    ([1], [0.5])
  """
  num_classes = jnp.shape(teacher_logits)[-1]
  if not 1 <= k <= num_classes:
    raise ValueError(f"k must lie in [1, {num_classes}], got {k}")
  check_temperature(temperature)
  logits = floored(constant(jnp.asarray(teacher_logits, jnp.float32)), support)
  # Relative to the best, so that large logits do not cost the digits of the tail.
  best = jnp.max(logits, axis=-1, keepdims=True)
  shifted = jnp.where(logits == FLOOR, FLOOR, (logits - best) / temperature)
  values, indices = jax.lax.top_k(shifted, k)
  return TopK(values, indices, jax.nn.logsumexp(shifted, axis=-1))


def top_k_kl_loss(
  student_logits: Array,
  teacher: TopK,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Forward KL(teacher || student) from the teacher's best k and the mass of its tail.

  $$L = T^2 \left( \sum_{c \in K} p^t_c \log \frac{p^t_c}{p^s_c} +
  \bar p^t \log \frac{\bar p^t}{\bar p^s} \right), \quad \bar p = 1 - \sum_{c \in K} p_c, \quad
  p = \mathrm{softmax}(z / T)$$

  A lower bound of `kl_loss`, and equal to it where K holds all classes that exist.

  Args:
    student_logits: float `[..., C]`.
    teacher: TopK of arrays `[..., k]` and `[...]`, from `top_k_targets`; receives no gradient.
    temperature: T > 0, of the student; the one that the targets were made with.
    support: bool `[C]` or `[..., C]`, the classes that exist.
    where: bool `[...]`, the examples (tokens) that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`. An index out of range
    that counts gives NaN.

  Raises:
    ValueError: if the leading axes differ, `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> teacher = top_k_targets(jnp.log(jnp.array([[0.9, 0.05, 0.05]])), 1)
    >>> round(float(top_k_kl_loss(jnp.zeros([1, 3]), teacher)), 4)
    0.7042

  Reference:
    Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531, on
    the partition into K and the rest (Cover, Thomas, Elements of Information Theory, 2006: the
    log-sum inequality makes it a lower bound).
  """
  log_s, log_t = _buckets(student_logits, teacher, temperature, support, where)
  return reduce_loss(temperature**2 * kl_divergence(log_t, log_s), where=where, reduce_fn=reduce_fn)


def top_k_reverse_kl_loss(
  student_logits: Array,
  teacher: TopK,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Reverse KL(student || teacher) from the teacher's best k and the mass of its tail.

  $$L = T^2 \left( \sum_{c \in K} p^s_c \log \frac{p^s_c}{p^t_c} +
  \bar p^s \log \frac{\bar p^s}{\bar p^t} \right), \quad \bar p = 1 - \sum_{c \in K} p_c, \quad
  p = \mathrm{softmax}(z / T)$$

  A lower bound of `reverse_kl_loss`, and equal to it where K holds all classes that exist.

  Args:
    student_logits: float `[..., C]`.
    teacher: TopK of arrays `[..., k]` and `[...]`, from `top_k_targets`; receives no gradient.
    temperature: T > 0, of the student; the one that the targets were made with.
    support: bool `[C]` or `[..., C]`, the classes that exist.
    where: bool `[...]`, the examples (tokens) that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`. A teacher's tail below
    2**-24, which float32 cannot tell from nothing, counts as 2**-24. An index out of range that
    counts gives NaN.

  Raises:
    ValueError: if the leading axes differ, `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> teacher = top_k_targets(jnp.log(jnp.array([[0.9, 0.05, 0.05]])), 1)
    >>> round(float(top_k_reverse_kl_loss(jnp.zeros([1, 3]), teacher)), 4)
    0.9337

  Reference:
    Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2024, arXiv:2306.08543, on
    the partition into K and the rest.
  """
  log_s, log_t = _buckets(student_logits, teacher, temperature, support, where)
  loss = kl_divergence(log_s, with_some_tail(log_t))
  return reduce_loss(temperature**2 * loss, where=where, reduce_fn=reduce_fn)


def _buckets(student_logits, teacher: TopK, temperature, support, where) -> tuple[Array, Array]:
  """log p of student and teacher over K and, last, over the rest as one: `[..., k + 1]`."""
  check_temperature(temperature)
  shape = jnp.shape(student_logits)
  values, indices, log_z = constant(tuple(teacher))
  leading = {jnp.shape(values)[:-1], jnp.shape(indices)[:-1], jnp.shape(log_z), shape[:-1]}
  if len(leading) > 1 or jnp.shape(values) != jnp.shape(indices):
    raise ValueError(f"student logits of shape {shape} and targets of {jnp.shape(values)}")
  logits = floored(visible(student_logits, where, core_ndim=1), support)
  log_s = jax.nn.log_softmax(logits / temperature, axis=-1)
  indices = indices if where is None else jnp.where(jnp.asarray(where)[..., None], indices, 0)
  values = floored(visible(values, where, core_ndim=1))
  kept = values != FLOOR  # NaN stays in, and so stays visible.
  inside = _scatter(kept, indices, shape)
  rest_s = jax.nn.logsumexp(jnp.where(inside, FLOOR, log_s), axis=-1)
  left = jnp.any(~inside & (logits != FLOOR), axis=-1)
  log_s = jnp.where(kept, gather(log_s, indices), FLOOR)
  log_t = teacher_buckets(values, visible(log_z, where), left)
  return jnp.concatenate([log_s, rest_s[..., None]], axis=-1), log_t


def teacher_buckets(values: Array, log_normalizer: Array, left: Array) -> Array:
  """log p of the teacher over its best k and, last, over the rest as one: `[..., k + 1]`.

  Args:
    values: float32 `[..., k]`, `FLOOR` for none.
    log_normalizer: float32 `[...]`.
    left: bool `[...]`, whether any class is left for a tail.
  """
  log_t = jnp.where(values != FLOOR, values - log_normalizer[..., None], FLOOR)
  rest = 1.0 - jnp.sum(jnp.exp(log_t), axis=-1)
  # Where no class is left, what the teacher seems to have there is rounding.
  nothing = (rest <= 0.0) | (~left & (rest < 1e-6))
  rest = jnp.where(nothing, FLOOR, jnp.log(jnp.where(nothing, 1.0, rest)))
  return jnp.concatenate([log_t, rest[..., None]], axis=-1)


def with_some_tail(log_t: Array) -> Array:
  """The teacher's buckets with a tail of 2**-24 at least, for what divides by it."""
  tail = jnp.maximum(log_t[..., -1:], -24 * jnp.log(2.0))
  return jnp.concatenate([log_t[..., :-1], tail], axis=-1)


def _scatter(kept: Array, indices: Array, shape) -> Array:
  """Bool of `shape [..., C]`: which classes are among the kept `indices [..., k]`."""
  flat = indices.reshape(-1, indices.shape[-1])
  rows = jnp.broadcast_to(jnp.arange(flat.shape[0])[:, None], flat.shape)
  inside = jnp.zeros((flat.shape[0], shape[-1]), bool)
  return inside.at[rows, flat].max(kept.reshape(flat.shape), mode="drop").reshape(shape)
