"""Reverse KL over whole sequences by policy gradient: MiniLLM.

The student (or a mixture of student and teacher) writes, the teacher judges. A step is:

- sample tokens from `sampling_logits(student, teacher)`; nothing of it is differentiated;
- `token_log_probs` of student and teacher on them, then `policy_returns` and `importance_weights`;
- differentiate `policy_loss` once, or several times while the weights are refreshed.
"""

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  check_fraction,
  check_labels,
  constant,
  kl_divergence,
  log_mixture,
  log_prob_pair,
  pick,
  visible,
)
from kdjax.reduce import ReduceFn, masked, reduce_loss, safe_divide
from kdjax.types import Array


def sampling_logits(
  student_logits: Array,
  teacher_logits: Array,
  *,
  teacher_weight: float = 0.2,
  temperature: float = 1.0,
  support: Array | None = None,
) -> Array:
  r"""The distribution that writes: a mixture of teacher and student, token by token.

  $$\tilde p = \alpha p^t + (1 - \alpha) p^s$$

  with $\alpha$ the `teacher_weight`. A degenerate student that only repeats itself would else be
  rewarded for it. The probabilities are mixed, not the logits or log-probabilities.

  Args:
    student_logits: float `[..., C]`; receives no gradient either.
    teacher_logits: float `[..., C]`.
    teacher_weight: alpha in [0, 1].
    temperature: T > 0, of both.
    support: bool `[C]` or `[..., C]`, the tokens that exist.

  Returns:
    float32 `[..., C]`, log-probabilities: sample with `jax.random.categorical`.

  Raises:
    ValueError: if the shapes differ, T <= 0, or the weight is outside [0, 1].

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> [round(float(p), 4) for p in jnp.exp(sampling_logits(student, teacher))]
    [0.58, 0.42]

  Reference:
    Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2024, arXiv:2306.08543.
  """
  check_fraction("teacher_weight", teacher_weight)
  log_s, log_t = log_prob_pair(
    student_logits, teacher_logits, temperature=temperature, support=support, where=None
  )
  return constant(log_mixture(log_s, log_t, teacher_weight))


def importance_weights(
  student_log_probs: Array, sampling_log_probs: Array, *, max_weight: float | Array = jnp.inf
) -> Array:
  r"""What a token counts for that another distribution than the student's has written.

  $$w_t = \min\left( \frac{p^s(y_t)}{\tilde p(y_t)}, w_{\max} \right)$$

  The ratio of this token alone, not of all before it: biased, but of bounded variance. With a share
  alpha of the teacher in the sampling it cannot exceed 1 / (1 - alpha).

  Args:
    student_log_probs: float `[...]`, of the tokens; receives no gradient.
    sampling_log_probs: float `[...]`, under the distribution they were drawn from, when they were.
    max_weight: bound on the weights, for samples of an older student.

  Returns:
    float32 `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> mine, sampling = jnp.log(jnp.array([0.5, 0.2])), jnp.log(jnp.array([0.25, 0.4]))
    >>> [round(float(w), 4) for w in importance_weights(mine, sampling)]
    [2.0, 0.5]

  Reference:
    Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2024, arXiv:2306.08543,
    section 2.2.
  """
  ratio = jnp.asarray(student_log_probs, jnp.float32) - sampling_log_probs
  return constant(jnp.minimum(jnp.exp(jnp.minimum(ratio, 80.0)), max_weight))


def policy_returns(
  student_log_probs: Array,
  teacher_log_probs: Array,
  *,
  normalized: bool = True,
  where: Array | None = None,
) -> Array:
  r"""The return of each token: how much likelier the teacher finds what follows it.

  $$R_{t+1} = \frac{1}{n_t} \sum_{t' > t} \log \frac{p^t(y_{t'})}{p^s(y_{t'})}$$

  with $n_t$ the number of terms, or 1 if not `normalized`. Without the division, the sum favours
  short sequences.

  Args:
    student_log_probs: float `[..., L]`, of the tokens of each sequence; receives no gradient.
    teacher_log_probs: float `[..., L]`, of the same tokens.
    normalized: divide by how many tokens follow.
    where: bool `[..., L]`, the tokens that count.

  Returns:
    float32 `[..., L]`, in nats; 0 for a last token.

  Example:
    >>> import jax.numpy as jnp
    >>> policy_returns(jnp.array([0.0, -1.0, -3.0]), jnp.array([0.0, -2.0, -1.0])).tolist()
    [0.5, 2.0, 0.0]

  Reference:
    Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2024, arXiv:2306.08543.
    They print 1 / (T - t - 1) before a sum of T - t terms, which is infinite for the last but one
    token; the mean is meant. Their code also counts the reward of token t itself, which the
    single-step term already holds in expectation, and whitens the returns over the batch.
  """
  reward = visible(constant(teacher_log_probs), where) - visible(constant(student_log_probs), where)
  seen = jnp.ones(reward.shape, bool) if where is None else where
  future = _after(masked(reward, where))
  return safe_divide(future, _after(seen.astype(jnp.float32))) if normalized else future


def _after(values: Array) -> Array:
  """The sum of what follows each position of the last axis."""
  # Shifting, not subtracting the position itself: a huge reward would swallow the rest.
  sums = jax.lax.cumsum(values, axis=values.ndim - 1, reverse=True)
  return jnp.concatenate([sums[..., 1:], jnp.zeros_like(sums[..., :1])], axis=-1)


def policy_loss(
  student_logits: Array,
  teacher_logits: Array,
  tokens: Array,
  returns: Array,
  *,
  weights: Array | None = None,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""A loss whose gradient is MiniLLM's policy gradient of the sequence-level reverse KL.

  $$L_t = w_t \left( \mathrm{KL}(p^s(\cdot \mid y_{<t}) \Vert p^t(\cdot \mid y_{<t})) -
  R_{t+1} \log p^s(y_t \mid y_{<t}) \right)$$

  The reward of the token itself is summed over the vocabulary (the single-step term), which takes
  away most of the variance; only the future is left to the sampled return. With unweighted,
  unnormalised returns of the student's own samples, summed over tokens and averaged over
  sequences, its gradient is that of KL(student || teacher) over sequences, without bias. The value
  has no meaning of its own.

  Args:
    student_logits: float `[..., C]`, that predict the token at their own position.
    teacher_logits: float `[..., C]`; receives no gradient.
    tokens: int `[...]` in `[0, C)`, the tokens sampled.
    returns: float `[...]`, from `policy_returns`; receives no gradient.
    weights: float `[...]`, from `importance_weights`; None for the student's own samples.
    temperature: T > 0, of the sampling.
    support: bool `[C]` or `[..., C]`, the tokens that exist.
    where: bool `[...]`, the tokens that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats, without a factor T**2: a scalar, or `[...]` for `reduce_fn=None`. A token out
    of range that counts gives NaN.

  Raises:
    ValueError: if the shapes of the logits differ, another array has not the shape `[...]`, or
      T <= 0.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> tokens, returns = jnp.array([0]), jnp.array([2.0])  # A good future: more of this token.
    >>> jax.grad(policy_loss)(jnp.zeros([1, 2]), jnp.zeros([1, 2]), tokens, returns).tolist()
    [[-1.0, 1.0]]

  Reference:
    Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, 2024, arXiv:2306.08543
    (their final gradient; their code leaves the single-step term unweighted and adds the clipping
    of PPO).
  """
  shape = jnp.shape(student_logits)[:-1]
  check_labels(tokens, shape)
  for name, values in (("returns", returns), ("weights", weights)):
    if values is not None and jnp.shape(values) != shape:
      raise ValueError(f"{name} have shape {jnp.shape(values)}, expected {shape}")
  log_s, log_t = log_prob_pair(
    student_logits, teacher_logits, temperature=temperature, support=support, where=where
  )
  tokens = tokens if where is None else jnp.where(where, tokens, 0)
  single = kl_divergence(log_s, log_t)
  loss = single - visible(constant(returns), where) * pick(log_s, tokens)
  if weights is not None:
    loss = visible(constant(weights), where) * loss
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)
