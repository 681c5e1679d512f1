"""How far a student agrees with its teacher, whatever the labels say."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import PAD, Array, FactoredLogits


def overlap_metric(
  student_ids: Array,
  teacher_ids: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Share of the teacher's best items that are among the student's: $|S \cap T| / |T|$.

  With the k best ids of both (`catalog.top_k`) this is overlap@k.

  Args:
    student_ids: int `[..., k]`, distinct; PAD where there is none.
    teacher_ids: int `[..., k']`, distinct; PAD where there is none.
    where: bool `[...]`, which lists count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a list.

  Returns:
    float32 in [0, 1]; 0 for a list without teacher ids.

  Raises:
    ValueError: if the leading axes differ.

  Example:
    >>> import jax.numpy as jnp
    >>> float(overlap_metric(jnp.array([3, 1, 4, 8]), jnp.array([1, 3, 5, 9])))
    0.5
  """
  if student_ids.shape[:-1] != teacher_ids.shape[:-1]:
    raise ValueError(f"student_ids {student_ids.shape} and teacher_ids {teacher_ids.shape}")
  exists = teacher_ids != PAD
  shared = jnp.any(teacher_ids[..., :, None] == student_ids[..., None, :], axis=-1) & exists
  values = safe_divide(jnp.sum(shared, axis=-1), jnp.sum(exists, axis=-1))
  return reduce_loss(values, where=where, reduce_fn=reduce_fn)


def top1_metric(
  student_scores: Array,
  teacher_scores: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Probability that student and teacher put the same candidate first.

  $$\frac{|A_S \cap A_T|}{|A_S| \, |A_T|}, \qquad A = \{c : s_c = \max s\}$$

  Ties are broken at random, each on its own: a constant student gets 1 / C.

  Args:
    student_scores: float `[..., C]`.
    teacher_scores: float `[..., C]`.
    support: bool `[..., C]`, which candidates exist.
    where: bool `[...]`, which lists count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a list.

  Returns:
    float32 in [0, 1]. A list with a NaN score gives NaN.

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> import jax.numpy as jnp
    >>> float(top1_metric(jnp.zeros(4), jnp.array([1.0, 3.0, 2.0, 0.0])))
    0.25
  """
  exists = _exists(student_scores, teacher_scores, support)

  def first(scores: Array) -> Array:
    scores = jnp.where(exists, scores.astype(jnp.float32), -jnp.inf)
    return (scores == jnp.max(scores, axis=-1, keepdims=True)) & exists

  student, teacher = first(student_scores), first(teacher_scores)
  pairs = jnp.sum(student, axis=-1) * jnp.sum(teacher, axis=-1)
  values = safe_divide(jnp.sum(student & teacher, axis=-1), pairs)
  values = _keep_nan(values, student_scores, teacher_scores, exists)
  return reduce_loss(values, where=where, reduce_fn=reduce_fn)


def kl_metric(
  student_scores: Array,
  teacher_scores: Array,
  *,
  temperature: float = 1.0,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""KL(teacher || student) of the softmax distributions, in nats.

  $$\sum_c p_c \log \frac{p_c}{q_c}, \qquad p = \mathrm{softmax}(t / \tau),\;
  q = \mathrm{softmax}(s / \tau)$$

  Not multiplied by the squared temperature, as a loss would be.

  Args:
    student_scores: float `[..., C]`, logits.
    teacher_scores: float `[..., C]`, logits.
    temperature: tau > 0.
    support: bool `[..., C]`, which candidates exist.
    where: bool `[...]`, which lists count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a list.

  Returns:
    float32, nats; 0 for a list without candidates.

  Raises:
    ValueError: if the shapes differ, or the temperature is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(kl_metric(jnp.zeros(2), jnp.array([100.0, 0.0]))), 4)
    0.6931
  """
  _check_temperature(temperature)
  exists = _exists(student_scores, teacher_scores, support)
  values = _kl(student_scores / temperature, teacher_scores / temperature, exists)
  return reduce_loss(values, where=where, reduce_fn=reduce_fn)


def catalog_kl_metric(
  student: FactoredLogits,
  teacher: FactoredLogits,
  *,
  temperature: float = 1.0,
  users_per_block: int = 64,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""`kl_metric` over a whole catalogue, a block of users at a time.

  Args:
    student: factored logits, query `[..., d]` over V items.
    teacher: factored logits, query `[..., d']` over the same items.
    temperature: tau > 0.
    users_per_block: how many rows of V logits exist at once.
    where: bool `[...]`, which rows count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a row.

  Returns:
    float32, nats.

  Raises:
    ValueError: if the catalogues or the leading axes differ, or the temperature is not positive.

  Example:
    >>> import jax.numpy as jnp
    >>> student = FactoredLogits(jnp.zeros([5, 1]), jnp.ones([2, 1]))
    >>> teacher = FactoredLogits(jnp.ones([5, 1]), jnp.array([[100.0], [0.0]]))
    >>> round(float(catalog_kl_metric(student, teacher, users_per_block=2)), 4)
    0.6931
  """
  _check_temperature(temperature)
  if student.num_items != teacher.num_items:
    raise ValueError(f"catalogues of {student.num_items} and {teacher.num_items} items differ")
  lead = student.query.shape[:-1]
  if teacher.query.shape[:-1] != lead:
    raise ValueError(f"queries {student.query.shape} and {teacher.query.shape} differ in rows")
  values = _catalog_kl(student, teacher, temperature, users_per_block).reshape(lead)
  return reduce_loss(values, where=where, reduce_fn=reduce_fn)


def kendall_metric(
  student_scores: Array,
  teacher_scores: Array,
  *,
  support: Array | None = None,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
) -> Any:
  r"""Kendall's tau-b: agreement on the order of pairs, corrected for ties.

  $$\tau_b = \frac{C - D}{\sqrt{(n_0 - n_S)(n_0 - n_T)}}$$

  with C concordant, D discordant of all $n_0$ pairs, $n_S$ tied by the student and $n_T$ by the
  teacher. All pairs are compared, in O(C^2) time and O(C) memory: meant for candidate lists, not
  for catalogues; counts are exact up to 4,096 candidates, and rounded to float32 above.

  Args:
    student_scores: float `[..., C]`.
    teacher_scores: float `[..., C]`.
    support: bool `[..., C]`, which candidates exist.
    where: bool `[...]`, which lists count.
    reduce_fn: as in `kdjax.reduce.reduce_loss`; None gives one value a list.

  Returns:
    float32 in [-1, 1]; 0 where either side ties everything. A list with a NaN score gives NaN.

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(kendall_metric(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 3.0, 2.0]))), 4)
    0.3333

  Reference:
    Kendall, The treatment of ties in ranking problems, 1945.
  """
  exists = _exists(student_scores, teacher_scores, support)
  values = _tau_b(student_scores, teacher_scores, exists)
  values = _keep_nan(values, student_scores, teacher_scores, exists)
  return reduce_loss(values, where=where, reduce_fn=reduce_fn)


@jax.jit
def _tau_b(student_scores: Array, teacher_scores: Array, exists: Array) -> Array:
  """Tau-b of every list, one candidate against all others at a time: pairs are never stored."""

  def one_candidate(index: Array) -> tuple[Array, ...]:
    pairs = exists & lax.dynamic_index_in_dim(exists, index, axis=-1)

    def order(scores: Array) -> Array:
      one = lax.dynamic_index_in_dim(scores, index, axis=-1)
      return ((one > scores).astype(jnp.float32) - (one < scores)) * pairs

    student, teacher = order(student_scores), order(teacher_scores)
    terms = student * teacher, jnp.abs(student), jnp.abs(teacher)
    return tuple(jnp.sum(term, axis=-1) for term in terms)

  counts = lax.map(one_candidate, jnp.arange(exists.shape[-1]))
  agreed, student, teacher = (jnp.sum(count, axis=0) for count in counts)
  return safe_divide(agreed, jnp.sqrt(student) * jnp.sqrt(teacher))


@functools.partial(jax.jit, static_argnames="users_per_block")
def _catalog_kl(
  student: FactoredLogits, teacher: FactoredLogits, temperature: float, users_per_block: int
) -> Array:
  queries = (
    student.query.reshape(-1, student.query.shape[-1]),
    teacher.query.reshape(-1, teacher.query.shape[-1]),
  )

  size = min(users_per_block, max(queries[0].shape[0], 1))
  padding = -queries[0].shape[0] % size

  def blocks(rows: Array) -> Array:
    return jnp.pad(rows, ((0, padding), (0, 0))).reshape(-1, size, rows.shape[-1])

  def kl(rows: tuple[Array, Array]) -> Array:
    with jax.default_matmul_precision("highest"):
      logits = [
        _shaped_bias(side)._replace(query=query).dense() / temperature
        for side, query in zip((student, teacher), rows, strict=True)
      ]
    return _kl(logits[0], logits[1], jnp.ones(logits[0].shape, bool))

  values = lax.map(kl, (blocks(queries[0]), blocks(queries[1])))
  return values.reshape(-1)[: queries[0].shape[0]]


def _shaped_bias(logits: FactoredLogits) -> FactoredLogits:
  """The bias with an axis for the rows."""
  return logits if logits.bias is None else logits._replace(bias=logits.bias[None, :])


def _kl(student: Array, teacher: Array, exists: Array) -> Array:
  log_s, log_t = (
    jax.nn.log_softmax(jnp.where(exists, scores.astype(jnp.float32), -jnp.inf), axis=-1)
    for scores in (student, teacher)
  )
  # 0 log 0 = 0, where the teacher rules a candidate out or it does not exist.
  terms = jnp.where(exists & (log_t > -jnp.inf), jnp.exp(log_t) * (log_t - log_s), 0.0)
  terms = jnp.where(exists & jnp.isnan(log_t), jnp.nan, terms)
  return jnp.sum(terms, axis=-1)


def _exists(student: Array, teacher: Array, support: Array | None) -> Array:
  for name, other in (("teacher_scores", teacher), ("support", support)):
    if other is not None and other.shape != student.shape:
      raise ValueError(f"{name} has shape {other.shape} but student_scores has {student.shape}")
  return jnp.ones(student.shape, bool) if support is None else support


def _keep_nan(values: Array, student: Array, teacher: Array, exists: Array) -> Array:
  nan = (jnp.isnan(student) | jnp.isnan(teacher)) & exists
  return jnp.where(jnp.any(nan, axis=-1), jnp.nan, values)


def _check_temperature(temperature: Any) -> None:
  if isinstance(temperature, int | float) and temperature <= 0:
    raise ValueError(f"temperature must be positive, got {temperature}")
