"""Divergences between the softmaxes of student and teacher besides forward KL.

Forward KL is `kdjax.losses.logits.kl_loss`. Over tokens, `[..., L, C]` logits with `where [..., L]`
give token-level distillation; `kdjax.losses.sequence.sequence_mean` weighs every sequence alike.
"""

import dataclasses

import jax.numpy as jnp

from kdjax.losses.common import check_fraction, log_prob_pair
from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import Array


def reverse_kl_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Temperature-softened reverse KL(student || teacher), times temperature**2.

  $$L = T^2 \sum_c p^s_c (\log p^s_c - \log p^t_c), \quad p = \mathrm{softmax}(z / T)$$

  Seeks the teacher's modes where forward KL covers them. A student that finds likely what the
  teacher calls impossible (-inf) pays a huge but finite amount.

  Args:
    student_logits: float `[..., C]`.
    teacher_logits: float `[..., C]`; receives no gradient.
    temperature: T > 0, shared by both.
    support: bool `[C]` or `[..., C]`, the classes that exist; both softmaxes run over these.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.log(jnp.array([[0.9, 0.1]])), jnp.array([[0.0, 0.0]])
    >>> round(float(reverse_kl_loss(student, teacher)), 4)
    0.3681

  Reference:
    Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2024, arXiv:2306.08543 (the
    single-step term; the whole gradient is in `kdjax.losses.policy`).
  """
  log_s, log_t = log_prob_pair(
    student_logits, teacher_logits, temperature=temperature, support=support, where=where
  )
  kl = jnp.sum(reverse_kl(log_s, log_t)[0], axis=-1)
  return reduce_loss(temperature**2 * kl, where=where, reduce_fn=reduce_fn)


def reverse_kl(log_s: Array, log_t: Array) -> tuple[Array, Array]:
  """What each class adds to KL(student || teacher), `[...]`, from log-probabilities.

  Returns:
    It, and its derivative by `log_s` up to a multiple of p of the student, which does not change
    the gradient by the logits.
  """
  part = jnp.exp(log_s) * (log_s - log_t)
  return part, part


def jensen_shannon_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  teacher_weight: float = 0.5,
  normalized: bool = False,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Generalised Jensen-Shannon divergence, times temperature**2.

  $$L = T^2 \left( \beta\, \mathrm{KL}(p^t \Vert m) + (1 - \beta)\, \mathrm{KL}(p^s \Vert m)
  \right), \quad m = \beta p^t + (1 - \beta) p^s, \quad p = \mathrm{softmax}(z / T)$$

  with $\beta$ the `teacher_weight`. At most $T^2 \log 2$. It falls to 0 at both ends, so that its
  size there is no size to train with; `normalized` divides by $\beta (1 - \beta)$ and so runs
  continuously from the forward KL(teacher || student) at 0 to the reverse KL(student || teacher) at
  1, both ends included, through four times the symmetric divergence at 1/2.

  Args:
    student_logits: float `[..., C]`.
    teacher_logits: float `[..., C]`; receives no gradient.
    teacher_weight: beta in [0, 1], of the teacher's probabilities in the mixture and of its KL.
    normalized: divide by beta (1 - beta), by its limit at the ends.
    temperature: T > 0, shared by both.
    support: bool `[C]` or `[..., C]`, the classes that exist; both softmaxes run over these.
    where: bool `[...]`, the examples (tokens) that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, T <= 0, or the weight is
      outside [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.log(jnp.array([[0.9, 0.1]]))
    >>> round(float(jensen_shannon_loss(student, teacher)), 4)
    0.1017
    >>> loss = jensen_shannon_loss(student, teacher, teacher_weight=0.0, normalized=True)
    >>> round(float(loss), 4)  # Forward KL.
    0.3681

  Reference:
    Agarwal et al., On-Policy Distillation of Language Models, 2024, arXiv:2306.13649, eq. 2 (with P
    the teacher and Q the student; the factor T**2 is ours, as in `kl_loss`). TRL and others return
    the KL itself at beta = 0 and 1 only, a jump from the neighbouring values.
  """
  check_fraction("teacher_weight", teacher_weight)
  log_s, log_t = log_prob_pair(
    student_logits, teacher_logits, temperature=temperature, support=support, where=where
  )
  loss = jnp.sum(JensenShannon(teacher_weight, normalized)(log_s, log_t)[0], axis=-1)
  return reduce_loss(temperature**2 * loss, where=where, reduce_fn=reduce_fn)


def skew_kl_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  teacher_weight: float = 0.1,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Skew forward KL: the teacher against a mixture of both, times temperature**2.

  $$L = T^2\, \mathrm{KL}(p^t \Vert \alpha p^t + (1 - \alpha) p^s), \quad
  p = \mathrm{softmax}(z / T)$$

  with $\alpha$ the `teacher_weight`. A little of the teacher in the second argument bounds the loss
  by $-T^2 \log \alpha$ and its gradient with it. At 0 it is `kl_loss`.

  Args:
    student_logits: float `[..., C]`.
    teacher_logits: float `[..., C]`; receives no gradient.
    teacher_weight: alpha in [0, 1], of the teacher in the mixture.
    temperature: T > 0, shared by both.
    support: bool `[C]` or `[..., C]`, the classes that exist; both softmaxes run over these.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, T <= 0, or the weight is
      outside [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.log(jnp.array([[0.9, 0.1]]))
    >>> round(float(skew_kl_loss(student, teacher)), 4)
    0.3071

  Reference:
    Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models, 2024,
    arXiv:2402.03898 (the factor T**2 is ours, as in `kl_loss`).
  """
  check_fraction("teacher_weight", teacher_weight)
  log_s, log_t = log_prob_pair(
    student_logits, teacher_logits, temperature=temperature, support=support, where=where
  )
  kl = jnp.sum(_mixed_kl(log_t, log_s, 1 - teacher_weight), axis=-1)
  return reduce_loss(temperature**2 * kl, where=where, reduce_fn=reduce_fn)


def skew_reverse_kl_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  student_weight: float = 0.1,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Skew reverse KL: the student against a mixture of both, times temperature**2.

  $$L = T^2\, \mathrm{KL}(p^s \Vert (1 - \alpha) p^t + \alpha p^s), \quad
  p = \mathrm{softmax}(z / T)$$

  with $\alpha$ the `student_weight`. At most $-T^2 \log \alpha$. At 0 it is `reverse_kl_loss`.

  Args:
    student_logits: float `[..., C]`.
    teacher_logits: float `[..., C]`; receives no gradient.
    student_weight: alpha in [0, 1], of the student in the mixture.
    temperature: T > 0, shared by both.
    support: bool `[C]` or `[..., C]`, the classes that exist; both softmaxes run over these.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, T <= 0, or the weight is
      outside [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.log(jnp.array([[0.9, 0.1]])), jnp.array([[0.0, 0.0]])
    >>> round(float(skew_reverse_kl_loss(student, teacher)), 4)
    0.3071

  Reference:
    Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models, 2024,
    arXiv:2402.03898 (the factor T**2 is ours, as in `kl_loss`).
  """
  check_fraction("student_weight", student_weight)
  log_s, log_t = log_prob_pair(
    student_logits, teacher_logits, temperature=temperature, support=support, where=where
  )
  kl = jnp.sum(_mixed_kl(log_s, log_t, 1 - student_weight), axis=-1)
  return reduce_loss(temperature**2 * kl, where=where, reduce_fn=reduce_fn)


def total_variation_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Total variation distance between the two softmaxes.

  $$L = \frac{1}{2} \sum_c |p^t_c - p^s_c|, \quad p = \mathrm{softmax}(z / T)$$

  1 minus the rate at which speculative decoding accepts the student's drafts at temperature T (see
  `kdjax.losses.speculative`), so that minimising it maximises that rate.

  Args:
    student_logits: float `[..., C]`.
    teacher_logits: float `[..., C]`; receives no gradient.
    temperature: T > 0, shared by both.
    support: bool `[C]` or `[..., C]`, the classes that exist; both softmaxes run over these.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32 in [0, 1]: a scalar, or `[...]` for `reduce_fn=None`. No factor T**2: it is a
    probability.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.log(jnp.array([[0.9, 0.1]]))
    >>> round(float(total_variation_loss(student, teacher)), 4)
    0.4

  Reference:
    Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation, 2023,
    arXiv:2307.15190; Zhou et al., DistillSpec, 2024, arXiv:2310.08461 (as the acceptance rate).
  """
  log_s, log_t = log_prob_pair(
    student_logits, teacher_logits, temperature=temperature, support=support, where=where
  )
  distance = 0.5 * jnp.sum(jnp.abs(jnp.exp(log_t) - jnp.exp(log_s)), axis=-1)
  return reduce_loss(distance, where=where, reduce_fn=reduce_fn)


def cosine_probability_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Cosine distance between the two softmaxes.

  $$L = 1 - \frac{p^s \cdot p^t}{\lVert p^s \rVert \lVert p^t \rVert}, \quad
  p = \mathrm{softmax}(z / T)$$

  Args:
    student_logits: float `[..., C]`.
    teacher_logits: float `[..., C]`; receives no gradient.
    temperature: T > 0, shared by both.
    support: bool `[C]` or `[..., C]`, the classes that exist; both softmaxes run over these.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32 in [0, 1]: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.log(jnp.array([[0.9, 0.1]]))
    >>> round(float(cosine_probability_loss(student, teacher)), 4)
    0.2191

  Reference:
    Ham et al., Cosine Similarity Knowledge Distillation for Individual Class Information Transfer,
    2023, arXiv:2311.14307. They compare a class's probabilities over the batch; taken over the
    classes of one example, as here, the value does not depend on the rest of the batch.
  """
  log_s, log_t = log_prob_pair(
    student_logits, teacher_logits, temperature=temperature, support=support, where=where
  )
  # Half the squared distance of unit vectors is 1 - cos, without its cancellation near 0. A
  # softmax has a norm of at least C**-0.5.
  difference = _unit(jnp.exp(log_s)) - _unit(jnp.exp(log_t))
  return reduce_loss(0.5 * jnp.sum(difference**2, axis=-1), where=where, reduce_fn=reduce_fn)


def _unit(probs: Array) -> Array:
  return probs / jnp.sqrt(jnp.sum(probs**2, axis=-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class JensenShannon:
  """What each class adds to `jensen_shannon_loss` at T = 1, and its slope: as `reverse_kl`."""

  teacher_weight: float | Array = 0.5
  normalized: bool = False

  def __call__(self, log_s: Array, log_t: Array) -> tuple[Array, Array]:
    student_weight = 1 - self.teacher_weight
    from_teacher = _mixed_kl(log_t, log_s, student_weight)
    from_student = _mixed_kl(log_s, log_t, self.teacher_weight)
    if not self.normalized:
      slope = student_weight * from_student
      return self.teacher_weight * from_teacher + slope, slope
    # At an end, the sum over classes that is 0 / 0 tends to 0.
    slope = safe_divide(from_student, self.teacher_weight)
    part = safe_divide(from_teacher, student_weight) + slope
    limit = jnp.exp(log_s) - jnp.exp(log_t)
    return part, jnp.where(jnp.equal(self.teacher_weight, 0), limit, slope)


def _mixed_kl(log_p: Array, log_q: Array, weight) -> Array:
  """What each class adds to KL(p || (1 - weight) p + weight q); may be divided by `weight`."""
  return -jnp.exp(log_p) * _mixing_gain(log_q - log_p, weight)


def _mixing_gain(gap: Array, weight) -> Array:
  """log(1 - weight + weight * exp(gap)): what a log-probability gains from mixing in another.

  Probabilities are mixed, not their logarithms. Precise relative to itself at small weights, where
  the naive form has lost it all, and finite for gaps of any size.

  Args:
    gap: float `[...]`, the other log-probability minus this one.
    weight: of the other, in [0, 1].
  """
  if isinstance(weight, int | float):  # Half the work where the weight is known.
    return _heavily(gap, weight) if weight > 0.5 else _lightly(gap, weight)
  little, much = jnp.minimum(weight, 0.5), jnp.maximum(weight, 0.5)
  return jnp.where(weight > 0.5, _heavily(gap, much), _lightly(gap, little))


def _lightly(gap: Array, weight) -> Array:
  """For weights up to 1/2."""
  far = gap > 80.0  # exp(gap) would overflow: what is beyond is added outside the log.
  inner = jnp.log1p(weight * jnp.expm1(jnp.where(far, 80.0, gap)))
  return inner + jnp.where(far & (weight > 0), gap - 80.0, 0.0)


def _heavily(gap: Array, weight) -> Array:
  """For weights from 1/2 on."""
  return jnp.logaddexp(jnp.log1p(-weight), jnp.log(weight) + gap)
