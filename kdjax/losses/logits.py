"""Losses on logits over classes, tokens or items, and their supervised partners."""

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  FLOOR,
  check_labels,
  check_same_shape,
  check_temperature,
  constant,
  floored,
  kl_divergence,
  log_prob_pair,
  log_probs,
  pick,
  visible,
)
from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import Array


def kl_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Temperature-softened forward KL(teacher || student), times temperature**2.

  $$L = T^2 \sum_c p^t_c (\log p^t_c - \log p^s_c), \quad p = \mathrm{softmax}(z / T)$$

  The factor T**2 keeps the size of the gradient, $T (p^s - p^t)$, comparable across temperatures,
  as in the paper. A logit of -inf means impossible and adds nothing where the teacher says so; the
  student calling impossible what the teacher expects costs a huge but finite amount.

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
    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.log(jnp.array([[0.9, 0.1]]))
    >>> round(float(kl_loss(student, teacher)), 4)
    0.3681

  Reference:
    Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531
    (which prints the cross-entropy; KL has the same gradient and is 0 at equality).
  """
  log_s, log_t = log_prob_pair(
    student_logits, teacher_logits, temperature=temperature, support=support, where=where
  )
  kl = kl_divergence(log_t, log_s)
  return reduce_loss(temperature**2 * kl, where=where, reduce_fn=reduce_fn)


def bernoulli_kl_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  temperature: float = 1.0,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""KL between independent Bernoullis, times temperature**2: clicks and multi-label classes.

  $$L = T^2 \left( p^t \log\frac{p^t}{p^s} + (1 - p^t) \log\frac{1 - p^t}{1 - p^s} \right), \quad
  p = \sigma(z / T)$$

  Args:
    student_logits: float `[...]`, one logit a binary decision.
    teacher_logits: float `[...]`; receives no gradient.
    temperature: T > 0, shared by both.
    where: bool `[...]`, the decisions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats times T**2: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ (also `where`'s), or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(bernoulli_kl_loss(jnp.array([0.0]), jnp.array([2.0]))), 4)
    0.3278

  Reference:
    Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531,
    with the sigmoid in place of the softmax.
  """
  check_same_shape(student_logits, teacher_logits)
  check_temperature(temperature)
  student = jnp.clip(visible(student_logits, where), FLOOR, -FLOOR) / temperature
  teacher = jnp.clip(visible(constant(teacher_logits), where), FLOOR, -FLOOR) / temperature
  gain = jax.nn.log_sigmoid(teacher) - jax.nn.log_sigmoid(student)
  loss = jax.nn.log_sigmoid(-teacher) - jax.nn.log_sigmoid(-student)
  kl = jax.nn.sigmoid(teacher) * gain + jax.nn.sigmoid(-teacher) * loss
  return reduce_loss(temperature**2 * kl, where=where, reduce_fn=reduce_fn)


def logit_mse_loss(
  student_logits: Array,
  teacher_logits: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Mean squared difference of logits.

  $$L = \frac{1}{|S|} \sum_{c \in S} (z^s_c - z^t_c)^2$$

  S holds the supported classes that neither side calls impossible (-inf).

  Args:
    student_logits: float `[..., C]`.
    teacher_logits: float `[..., C]`; receives no gradient.
    support: bool `[C]` or `[..., C]`, the classes that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in squared logits: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, or `where` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> float(logit_mse_loss(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 1.0]])))
    2.5

  Reference:
    Ba, Caruana, Do Deep Nets Really Need to be Deep?, 2014, arXiv:1312.6184 (their sum over
    classes, divided by how many there are).
  """
  check_same_shape(student_logits, teacher_logits)
  student = floored(visible(student_logits, where, core_ndim=1), support)
  teacher = floored(visible(constant(teacher_logits), where, core_ndim=1), support)
  real = (student != FLOOR) & (teacher != FLOOR)  # NaN stays in, and so stays visible.
  difference = jnp.where(real, student, 0.0) - jnp.where(real, teacher, 0.0)
  mse = safe_divide(jnp.sum(difference**2, axis=-1), jnp.sum(real, axis=-1))
  return reduce_loss(mse, where=where, reduce_fn=reduce_fn)


def cross_entropy_loss(
  logits: Array,
  labels: Array,
  *,
  label_smoothing: float = 0.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Softmax cross-entropy with integer labels.

  $$L = -(1 - \epsilon) \log p_y - \frac{\epsilon}{|S|} \sum_{c \in S} \log p_c$$

  S holds the supported classes whose logit is not -inf.

  Args:
    logits: float `[..., C]`.
    labels: int `[...]` in `[0, C)`; masked ones may be anything (PAD).
    label_smoothing: epsilon in [0, 1], the weight of the uniform distribution over S.
    support: bool `[C]` or `[..., C]`, the classes that exist.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. A label out of range that counts
    gives NaN.

  Raises:
    ValueError: if `labels` or `where` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> labels = jnp.array([1, -1])
    >>> loss = cross_entropy_loss(jnp.zeros([2, 4]), labels, where=labels >= 0)
    >>> round(float(loss), 4)
    1.3863

  Reference:
    Szegedy et al., Rethinking the Inception Architecture, 2015, arXiv:1512.00567 (smoothing).
  """
  check_labels(labels, jnp.shape(logits)[:-1])
  logits = floored(visible(logits, where, core_ndim=1), support)
  labels = labels if where is None else jnp.where(where, labels, 0)
  log_p = jax.nn.log_softmax(logits, axis=-1)
  loss = -pick(log_p, labels)
  if label_smoothing:
    real = logits != FLOOR
    uniform = -safe_divide(jnp.sum(jnp.where(real, log_p, 0.0), axis=-1), jnp.sum(real, axis=-1))
    loss = (1 - label_smoothing) * loss + label_smoothing * uniform
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def soft_cross_entropy_loss(
  student_logits: Array,
  teacher_probs: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Softmax cross-entropy with a target for every class: refined, mixed or annotated labels.

  $$L = -\sum_{c \in S} q_c \log p_c$$

  Args:
    student_logits: float `[..., C]`.
    teacher_probs: float `[..., C]`, q >= 0, probabilities (not logits); receives no gradient. A sum
      other than 1 weighs the example.
    support: bool `[C]` or `[..., C]`, the classes that exist: S; targets outside are dropped.
    where: bool `[...]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`. At the target itself it is the
    target's entropy, not 0.

  Raises:
    ValueError: if the shapes differ, or `where` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> loss = soft_cross_entropy_loss(jnp.zeros([1, 4]), jnp.array([[0.7, 0.1, 0.1, 0.1]]))
    >>> round(float(loss), 4)
    1.3863

  Reference:
    Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531.
  """
  check_same_shape(student_logits, teacher_probs)
  log_p = log_probs(visible(student_logits, where, core_ndim=1), 1.0, support)
  target = visible(constant(teacher_probs), where, core_ndim=1)
  if support is not None:
    target = jnp.where(jnp.broadcast_to(support, target.shape), target, 0.0)
  return reduce_loss(-jnp.sum(target * log_p, axis=-1), where=where, reduce_fn=reduce_fn)


def binary_cross_entropy_loss(
  logits: Array,
  labels: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Sigmoid cross-entropy with labels in [0, 1].

  $$L = -y \log \sigma(z) - (1 - y) \log(1 - \sigma(z))$$

  Args:
    logits: float `[...]`, one logit a binary decision.
    labels: float (or int, bool) `[...]` in [0, 1]; a masked one may be anything.
    where: bool `[...]`, the decisions that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[...]` for `reduce_fn=None`.

  Raises:
    ValueError: if `labels` or `where` has not the shape `[...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(binary_cross_entropy_loss(jnp.array([0.0, 3.0]), jnp.array([1.0, 1.0]))), 4)
    0.3709

  Reference:
    Cox, The Regression Analysis of Binary Sequences, 1958.
  """
  check_labels(labels, jnp.shape(logits))
  logits = jnp.clip(visible(logits, where), FLOOR, -FLOOR)
  labels = visible(labels, where)
  loss = labels * jax.nn.softplus(-logits) + (1 - labels) * jax.nn.softplus(logits)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)
