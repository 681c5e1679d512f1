"""Contrastive losses between student and teacher, and the memory of embeddings they may need."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  check_fraction,
  check_same_shape,
  check_temperature,
  constant,
  existing,
  unit,
  visible,
)
from kdjax.losses.logits import cross_entropy_loss
from kdjax.reduce import ReduceFn, reduce_loss
from kdjax.types import Array


class MemoryBank(NamedTuple):
  """Running embeddings of every example of the training set, by index.

  Attributes:
    student: float32 `[N, d]`, rows near unit length.
    teacher: float32 `[N, d]`, rows near unit length.
  """

  student: Array
  teacher: Array


def info_nce_loss(
  student_embeddings: Array,
  teacher_embeddings: Array,
  *,
  temperature: float = 0.07,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Which of the batch's teacher embeddings belongs to the student's? Cross-entropy of the guess.

  $$L_i = -\log \frac{e^{\cos(s_i, t_i) / T}}{\sum_j e^{\cos(s_i, t_j) / T}}$$

  The other examples of the batch are the negatives; masked ones are none.

  Args:
    student_embeddings: float `[B, d]`; normalised here.
    teacher_embeddings: float `[B, d]`; receives no gradient.
    temperature: T > 0.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[B]` for `reduce_fn=None`.

  Raises:
    ValueError: if the shapes differ, `where` has not the shape `[B]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> round(float(info_nce_loss(jnp.eye(2), jnp.eye(2), temperature=1.0)), 4)
    0.3133

  Reference:
    van den Oord, Li, Vinyals, Representation Learning with Contrastive Predictive Coding, 2018,
    arXiv:1807.03748, between the embeddings of two networks.
  """
  check_same_shape(student_embeddings, teacher_embeddings)
  check_temperature(temperature)
  student = unit(visible(student_embeddings, where, core_ndim=1))
  teacher = unit(visible(constant(teacher_embeddings), where, core_ndim=1))
  logits = student @ teacher.T / temperature
  support = None if where is None else jnp.broadcast_to(where[None, :], logits.shape)
  own = jnp.arange(len(logits))
  return cross_entropy_loss(logits, own, support=support, where=where, reduce_fn=reduce_fn)


def crd_loss(
  student_embeddings: Array,
  teacher_memory: Array,
  ids: Array,
  *,
  temperature: float = 0.07,
  normalizer: float | Array = 1.0,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Contrastive representation distillation against embeddings in memory, by NCE.

  $$L = -\log h_0 - \sum_{k=1}^K \log(1 - h_k), \quad
  h_k = \frac{e^{s \cdot t_k / T} / Z}{e^{s \cdot t_k / T} / Z + K / N}$$

  $t_0$ is the teacher's embedding of the same example, $t_1$ to $t_K$ are those of others, of N in
  memory. The published objective also trains a linear head on the teacher, against the student's
  memory: add `crd_loss(head_embeddings, bank.student, ids)`.

  Args:
    student_embeddings: float `[B, d]`; normalised here.
    teacher_memory: float `[N, d]`, rows of about unit length, as `MemoryBank.teacher`; receives no
      gradient.
    ids: int `[B, 1 + K]`, rows of the memory: the example's own, then the negatives (see
      `contrast_ids`); masked ones may be anything.
    temperature: T > 0.
    normalizer: Z > 0; 1 as in the paper, or `memory_normalizer`, as in the authors' code.
    where: bool `[B]`, the examples that count.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in nats: a scalar, or `[B]` for `reduce_fn=None`. An id out of range that counts gives
    NaN.

  Raises:
    ValueError: if the shapes do not fit, `where` has not the shape `[B]`, or T <= 0.

  Example:
    >>> import jax.numpy as jnp
    >>> memory = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> loss = crd_loss(memory[:1], memory, jnp.array([[0, 1]]), temperature=1.0)
    >>> round(float(loss), 4)
    1.2675

  Reference:
    Tian, Krishnan, Isola, Contrastive Representation Distillation, 2020, arXiv:1910.10699 (T is
    0.1 or 0.07; Z appears in their code only).
  """
  check_temperature(temperature)
  shape = jnp.shape(ids)
  if len(shape) != 2 or shape[1] < 2 or shape[:1] != jnp.shape(student_embeddings)[:1]:
    raise ValueError(f"ids must have shape [B, 1 + K] with K > 0, got {shape}")
  student = unit(visible(student_embeddings, where, core_ndim=1))
  ids = ids if where is None else jnp.where(where[:, None], ids, 0)
  memory = jnp.asarray(constant(teacher_memory), jnp.float32)
  size, negatives = len(memory), ids.shape[1] - 1
  logits = _similarities(student, memory, ids) / temperature - jnp.log(normalizer)
  odds = logits - jnp.log(negatives / size)
  loss = jax.nn.softplus(-odds[:, 0]) + jnp.sum(jax.nn.softplus(odds[:, 1:]), axis=-1)
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def contrast_ids(key: Array, ids: Array, *, num_examples: int, num_negatives: int) -> Array:
  """Each example's own index, then negatives drawn uniformly from the other examples.

  Args:
    key: a PRNG key.
    ids: int `[B]` in `[0, N)`, the examples of the batch.
    num_examples: N > 1, how many there are in memory.
    num_negatives: K > 0; drawn with replacement.

  Returns:
    int32 `[B, 1 + K]`, for `crd_loss`.

  Raises:
    ValueError: if there is no other example, or K is not positive.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> contrast_ids(jax.random.key(0), jnp.array([1]), num_examples=2, num_negatives=3).tolist()
    [[1, 0, 0, 0]]
  """
  if num_examples < 2 or num_negatives < 1:
    raise ValueError(f"cannot draw {num_negatives} negatives from {num_examples} examples")
  own = jnp.asarray(ids, jnp.int32)[:, None]
  drawn = jax.random.randint(key, (len(own), num_negatives), 0, num_examples - 1)
  return jnp.concatenate([own, drawn + (drawn >= own)], axis=1)


def init_memory(key: Array, *, num_examples: int, dim: int) -> MemoryBank:
  """A memory of random embeddings, of unit length on average.

  Args:
    key: a PRNG key.
    num_examples: N > 0, the size of the training set.
    dim: d > 0, the width of the embeddings.

  Returns:
    MemoryBank of uniform float32 `[N, d]`.

  Example:
    >>> import jax
    >>> init_memory(jax.random.key(0), num_examples=100, dim=8).teacher.shape
    (100, 8)
  """
  bound = (3 / dim) ** 0.5
  draws = (
    jax.random.uniform(k, (num_examples, dim), jnp.float32, -bound, bound)
    for k in jax.random.split(key)
  )
  return MemoryBank(*draws)


def update_memory(
  bank: MemoryBank,
  student_embeddings: Array,
  teacher_embeddings: Array,
  ids: Array,
  *,
  momentum: float = 0.5,
  where: Array | None = None,
) -> MemoryBank:
  r"""Moves the examples' rows towards their new embeddings, and back to unit length.

  $$m \leftarrow \frac{\beta m + (1 - \beta) v}{\lVert \beta m + (1 - \beta) v \rVert}$$

  Args:
    bank: the memory so far.
    student_embeddings: float `[B, d]`; normalised here.
    teacher_embeddings: float `[B, d]`; normalised here.
    ids: int `[B]`, different rows of the memory.
    momentum: beta in [0, 1], how much of the old row stays.
    where: bool `[B]`, the examples that count; the rows of others stay as they are.

  Returns:
    The memory with these rows replaced. No gradient flows through it.

  Raises:
    ValueError: if `where` has not the shape `[B]`, or the momentum is a number out of range.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> bank = MemoryBank(jnp.eye(2), jnp.eye(2))
    >>> new = jnp.array([[0.0, 1.0]])
    >>> update_memory(bank, new, new, jnp.array([0]), momentum=0.0).student.tolist()
    [[0.0, 1.0], [0.0, 1.0]]

  Reference:
    Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018,
    arXiv:1805.01978.
  """
  check_fraction("momentum", momentum)

  def moved(memory: Array, embeddings: Array) -> Array:
    memory = jnp.asarray(memory)
    fresh = unit(visible(constant(embeddings), where, core_ndim=1))
    rows = unit(momentum * memory[safe] + (1 - momentum) * fresh)
    return memory.at[target].set(rows, mode="drop")

  counts = existing(where, jnp.shape(ids))
  safe = jnp.where(counts, ids, 0)
  target = jnp.where(counts, ids, len(bank.student))  # Out of range, hence dropped.
  return MemoryBank(
    moved(bank.student, student_embeddings), moved(bank.teacher, teacher_embeddings)
  )


def memory_normalizer(
  embeddings: Array,
  memory: Array,
  ids: Array,
  *,
  temperature: float = 0.07,
  where: Array | None = None,
) -> Array:
  r"""The Z of `crd_loss` as the authors' code has it: estimated once, on the first batch.

  $$Z = \frac{N}{B (1 + K)} \sum_{i, k} e^{v_i \cdot m_{i k} / T}$$

  Args:
    embeddings: float `[B, d]`; normalised here.
    memory: float `[N, d]`, the other side's.
    ids: int `[B, 1 + K]`, rows of the memory.
    temperature: T > 0.
    where: bool `[B]`, the examples that count.

  Returns:
    float32 scalar. No gradient flows through it.

  Example:
    >>> import jax.numpy as jnp
    >>> float(memory_normalizer(jnp.zeros([1, 2]), jnp.eye(2), jnp.array([[0, 1]])))
    2.0

  Reference:
    Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018,
    arXiv:1805.01978.
  """
  fresh = unit(visible(constant(embeddings), where, core_ndim=1))
  ids = ids if where is None else jnp.where(where[:, None], ids, 0)
  powers = jnp.exp(_similarities(fresh, constant(memory), ids) / temperature)
  return len(memory) * reduce_loss(jnp.mean(powers, axis=-1), where=where)


def _similarities(embeddings: Array, memory: Array, ids: Array) -> Array:
  """Dot products with the memory's rows: `[B, 1 + K]`, NaN for an id that is no row."""
  size = len(memory)
  rows = jnp.take(memory, jnp.where(ids < 0, size, ids), axis=0, mode="fill", fill_value=jnp.nan)
  return jnp.einsum("bd,bkd->bk", embeddings, rows)
