"""Distillation over sequences: how padding is counted, and losses on whole sequences.

Every loss on logits is a token-level loss on `[batch, length, tokens]` with `where [batch, length]`
for the tokens that count. What is left to choose is the reduction:

- `jnp.mean` weighs every token alike;
- `sequence_mean` averages over each sequence's tokens first, and so weighs every sequence alike;
- `totals` and `sequence_totals` are the same before the division: they merge exactly over
  micro-batches and devices with unequal counts.
"""

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  check_fraction,
  check_labels,
  check_temperature,
  log_probs,
  pick,
  visible,
)
from kdjax.reduce import Mean, ReduceFn, masked, reduce_loss, safe_divide, totals
from kdjax.types import Array


def sequence_totals(values: Array, *, where: Array | None = None) -> Mean:
  r"""The undivided mean over sequences of the mean over each one's tokens: a `reduce_fn`.

  $$\frac{1}{N} \sum_{n} \frac{1}{|T_n|} \sum_{t \in T_n} v_{nt}$$

  over the N sequences that have a token that counts.

  Args:
    values: float `[..., L]`, one loss a token.
    where: bool `[..., L]`, the tokens that count, or None for all.

  Returns:
    Mean of float32 scalars: the sum over sequences, and how many they are.

  Example:
    >>> import jax.numpy as jnp
    >>> values = jnp.array([[1.0, 9.0, 9.0], [3.0, 3.0, 3.0]])
    >>> where = jnp.array([[True, False, False], [True, True, True]])
    >>> mean = sequence_totals(values, where=where)
    >>> float(mean.total), float(mean.count)
    (4.0, 2.0)

  Reference:
    Agarwal et al., On-Policy Distillation of Language Models, 2024, arXiv:2306.13649 (the 1 / L_y
    of their eq. 3).
  """
  seen = jnp.ones(values.shape, bool) if where is None else where
  count = jnp.sum(seen, axis=-1)
  mean = safe_divide(jnp.sum(masked(values, where), axis=-1), count)
  return totals(mean, where=count > 0)


def sequence_mean(values: Array, *, where: Array | None = None) -> Array:
  r"""The mean over sequences of the mean over each one's tokens: a `reduce_fn`.

  Args:
    values: float `[..., L]`, one loss a token.
    where: bool `[..., L]`, the tokens that count, or None for all.

  Returns:
    float32 scalar; 0 where nothing counts.

  Example:
    >>> import jax.numpy as jnp
    >>> values = jnp.array([[1.0, 9.0, 9.0], [3.0, 3.0, 3.0]])
    >>> float(sequence_mean(values, where=jnp.array([[True, False, False], [True, True, True]])))
    2.0

  Reference:
    Agarwal et al., On-Policy Distillation of Language Models, 2024, arXiv:2306.13649.
  """
  return sequence_totals(values, where=where).compute()


def token_log_probs(
  logits: Array,
  tokens: Array,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
) -> Array:
  r"""Log-probability of each token of a sequence.

  $$\log \mathrm{softmax}(z_t / T)_{y_t}$$

  Args:
    logits: float `[..., C]`, that predict the token at their own position (already shifted).
    tokens: int `[...]` in `[0, C)`.
    temperature: T > 0.
    support: bool `[C]` or `[..., C]`, the tokens that exist.
    where: bool `[...]`, the tokens that count; elsewhere the result is 0.

  Returns:
    float32 `[...]`, in nats; differentiable. NaN for a token out of range that counts.

  Raises:
    ValueError: if `tokens` or `where` has not the shape `[...]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> log_p = token_log_probs(jnp.zeros([2, 4]), jnp.array([3, 0]))
    >>> [round(float(p), 4) for p in jnp.exp(log_p)]
    [0.25, 0.25]
  """
  check_labels(tokens, jnp.shape(logits)[:-1])
  check_temperature(temperature)
  log_p = log_probs(visible(logits, where, core_ndim=1), temperature, support)
  tokens = tokens if where is None else jnp.where(where, tokens, 0)
  return masked(pick(log_p, tokens), where)


def sequence_loss(
  student_logits: Array,
  teacher_tokens: Array,
  *,
  length_power: float = 0.0,
  support: Array | None = None,
  token_where: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Sequence-level distillation: minus the log-probability of what the teacher generated.

  $$L = -\frac{1}{|y|^a} \sum_{t=1}^{|y|} \log p^s(y_t \mid y_{<t}, x)$$

  with a the `length_power`: 0 for the probability of the sequence, as in the paper, 1 for the mean
  over its tokens.

  Args:
    student_logits: float `[..., L, C]`, that predict the token at their own position.
    teacher_tokens: int `[..., L]` in `[0, C)`, from the teacher's beam search or sampling.
    length_power: a >= 0.
    support: bool `[C]` or `[..., L, C]`, the tokens that exist.
    token_where: bool `[..., L]`, the tokens that count (no prompt, no padding; with the end).
    where: bool `[...]`, the sequences that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. 0 for a sequence without tokens. A
    token out of range that counts gives NaN.

  Raises:
    ValueError: if `teacher_tokens` or `token_where` has not the shape `[..., L]`, `where` has not
      `[...]`, or the power is negative.

  Example:
    >>> import jax.numpy as jnp
    >>> tokens = jnp.array([[3, 0, -1]])
    >>> loss = sequence_loss(jnp.zeros([1, 3, 4]), tokens, token_where=tokens >= 0)
    >>> round(float(loss), 4)  # 2 log 4.
    2.7726

  Reference:
    Kim, Rush, Sequence-Level Knowledge Distillation, 2016, arXiv:1606.07947; Wu et al., Google's
    Neural Machine Translation System, 2016, arXiv:1609.08144 (powers of the length).
  """
  if isinstance(length_power, int | float) and length_power < 0:
    raise ValueError(f"length_power must not be negative, got {length_power}")
  shape = jnp.shape(student_logits)[:-1]
  check_labels(teacher_tokens, shape)
  seen = combined(token_where, where, shape)
  log_p = token_log_probs(student_logits, teacher_tokens, support=support, where=seen)
  length = jnp.float32(shape[-1]) if seen is None else jnp.sum(seen, axis=-1, dtype=jnp.float32)
  loss = -jnp.sum(log_p, axis=-1) / jnp.maximum(length, 1.0) ** length_power
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def combined(token_where: Array | None, where: Array | None, shape) -> Array | None:
  """Which tokens, of `shape [..., L]`, count by their own mask and by that of their sequence."""
  if token_where is not None and jnp.shape(token_where) != shape:
    raise ValueError(f"the tokens' mask has shape {jnp.shape(token_where)}, expected {shape}")
  if where is None:
    return token_where
  if jnp.shape(where) != shape[:-1]:
    raise ValueError(f"where has shape {jnp.shape(where)} but the unreduced loss has {shape[:-1]}")
  seen = jnp.broadcast_to(jnp.asarray(where)[..., None], shape)
  return seen if token_where is None else seen & token_where


def mix_sequences(key: Array, on_policy, fixed, *, on_policy_fraction: float | Array = 0.5):
  r"""The batch of GKD: each sequence is the student's own with some probability, else the data's.

  $$y \sim \lambda\, p^s(\cdot \mid x) + (1 - \lambda)\, (X, Y)$$

  On the sequences it returns, any token-level loss is a GKD loss: no gradient flows through their
  sampling. With `on_policy_fraction` 0 this is supervised distillation, with 1 fully on-policy.

  Args:
    key: PRNG key.
    on_policy: pytree of arrays `[B, ...]`: the student's samples with their masks.
    fixed: a pytree of the same structure and shapes, from the data set.
    on_policy_fraction: lambda in [0, 1].

  Returns:
    A pytree like either.

  Raises:
    ValueError: if the structures differ, or the fraction is outside [0, 1].

  Example:
    >>> import jax, jax.numpy as jnp
    >>> mine, data = jnp.ones([4, 2]), jnp.zeros([4, 2])
    >>> float(mix_sequences(jax.random.key(0), mine, data, on_policy_fraction=1.0).mean())
    1.0

  Reference:
    Agarwal et al., On-Policy Distillation of Language Models, 2024, arXiv:2306.13649, algorithm 1
    (one draw a batch; a draw for each sequence has the same expectation and less variance).
  """
  check_fraction("on_policy_fraction", on_policy_fraction)
  batch = jax.tree.leaves(fixed)[0].shape[:1]
  chosen = jax.random.bernoulli(key, on_policy_fraction, batch)

  def choose(mine, data):
    return jnp.where(chosen.reshape(batch + (1,) * (mine.ndim - 1)), mine, data)

  return jax.tree.map(choose, on_policy, fixed)


def raise_on_policy_fraction(
  fraction: float,
  loss: float,
  reference_loss: float,
  *,
  step: float = 0.1,
  tolerance: float = 0.1,
) -> tuple[float, float]:
  r"""DistiLLM's adaptive share of on-policy sequences, updated after each validation.

  $$\phi \leftarrow \min(\phi + \delta, 1) \;\text{ and }\; L_0 \leftarrow L
  \quad \text{if } L \ge L_0 + \epsilon$$

  On-policy sequences are noisy early and costly always, so their share grows only when the
  validation loss on the data says that the student has begun to overfit it.

  Args:
    fraction: phi in [0, 1], the share so far; the paper starts at 0.
    loss: L, the validation loss now.
    reference_loss: L_0, at the start or where the share was raised last.
    step: delta, by how much the share is raised.
    tolerance: epsilon, in the units of the loss.

  Returns:
    The new share and the new reference.

  Example:
    >>> raise_on_policy_fraction(0.2, 1.5, 1.0, step=0.25)
    (0.45, 1.5)
    >>> raise_on_policy_fraction(0.2, 1.05, 1.0)
    (0.2, 1.0)

  Reference:
    Ko et al., DistiLLM: Towards Streamlined Distillation for Large Language Models, 2024,
    arXiv:2402.03898, algorithm 1 (delta and epsilon from their code).
  """
  if loss >= reference_loss + tolerance:
    return min(fraction + step, 1.0), loss
  return fraction, reference_loss
