"""Distillation from a few sampled classes of a teacher, without bias."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.common import check_temperature, constant, gather, log_probs, visible
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array


class SampledTargets(NamedTuple):
  """A sparse target distribution.

  Attributes:
    indices: int `[..., N]`, classes; one may be named several times, its weights add up.
    weights: float `[..., N]`, >= 0, how much of the target each carries.
  """

  indices: Array
  weights: Array


def sample_targets(
  key: Array,
  teacher_logits: Array,
  num_samples: int,
  *,
  temperature: float = 1.0,
  proposal_power: float = 1.0,
  support: Array | None = None,
) -> SampledTargets:
  r"""Draws classes from a teacher such that the expected target is its distribution.

  $$c_n \sim q_c \propto p_c^a, \quad w_n = \frac{1}{N} \frac{p_{c_n}}{q_{c_n}}, \quad
  E \left[ \sum_n w_n e_{c_n} \right] = p = \mathrm{softmax}(z / T)$$

  with a the `proposal_power`. Unlike the teacher's best k, every class has its chance, so that the
  gradient of the cross-entropy is that of forward KL in expectation.

  Args:
    key: PRNG key.
    teacher_logits: float `[..., C]`.
    num_samples: N > 0, drawn with replacement.
    temperature: T > 0; the loss must be given the same.
    proposal_power: a >= 0: 1 draws from the teacher itself, 0 from all classes alike.
    support: bool `[C]` or `[..., C]`, the classes that exist.

  Returns:
    SampledTargets of int32 and float32 `[..., N]`, without gradient.

  Raises:
    ValueError: if `num_samples` < 1, T <= 0 or the power is negative.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> targets = sample_targets(jax.random.key(0), jnp.array([0.0, -jnp.inf]), 4)
    >>> targets.indices.tolist(), targets.weights.tolist()
    ([0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25])

  Reference:
    Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs, 2025,
    arXiv:2503.16870. For powers other than 1 the weights are not renormalised to sum to 1, which
    would bring a bias back.
  """
  if num_samples < 1:
    raise ValueError(f"num_samples must be positive, got {num_samples}")
  if isinstance(proposal_power, int | float) and proposal_power < 0:
    raise ValueError(f"proposal_power must not be negative, got {proposal_power}")
  check_temperature(temperature)
  logits = constant(jnp.asarray(teacher_logits, jnp.float32))
  log_p = log_probs(logits, temperature, support)
  possible = log_p > -1e20
  log_q = log_probs(jnp.where(possible, proposal_power * log_p, -jnp.inf))
  # One draw after another: the noise of all at once is [N, ..., C].
  keys = jax.random.split(key, num_samples)
  draws = jax.lax.map(lambda one: jax.random.categorical(one, log_q), keys)
  indices = jnp.moveaxis(draws, 0, -1).astype(jnp.int32)
  return SampledTargets(indices, jnp.exp(gather(log_p - log_q, indices)) / num_samples)


def sampled_cross_entropy_loss(
  student_logits: Array,
  teacher: SampledTargets,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Cross-entropy with a sparse target, times temperature**2.

  $$L = -T^2 \sum_n w_n \log p^s_{c_n}, \quad p = \mathrm{softmax}(z / T)$$

  On `sample_targets` its expectation is `kl_loss` plus the teacher's entropy (times T**2), and its
  gradient that of `kl_loss`, $T (p^s - p^t)$, in expectation.

  Args:
    student_logits: float `[..., C]`.
    teacher: SampledTargets of arrays `[..., N]`; receives no gradient.
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
    >>> targets = SampledTargets(jnp.array([[2, 2, 0]]), jnp.full([1, 3], 1 / 3))
    >>> round(float(sampled_cross_entropy_loss(jnp.zeros([1, 4]), targets)), 4)
    1.3863

  Reference:
    Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs, 2025,
    arXiv:2503.16870 (the factor T**2 is ours, as in `kl_loss`).
  """
  check_temperature(temperature)
  shape = jnp.shape(student_logits)
  indices, weights = constant(tuple(teacher))
  if jnp.shape(indices) != jnp.shape(weights) or jnp.shape(indices)[:-1] != shape[:-1]:
    raise ValueError(
      f"student logits of shape {shape}, indices {jnp.shape(indices)}, weights {jnp.shape(weights)}"
    )
  log_s = log_probs(visible(student_logits, where, core_ndim=1), temperature, support)
  indices = indices if where is None else jnp.where(jnp.asarray(where)[..., None], indices, 0)
  weights = visible(weights, where, core_ndim=1)
  loss = -jnp.sum(weights * gather(log_s, indices), axis=-1)
  return reduce_loss(temperature**2 * loss, where=where, reduce_fn=reduce_fn)
