"""Topology distillation: the similarities between users and items, whole or by groups."""

import jax
import jax.numpy as jnp

from kdjax.losses.common import (
  check_same_axes,
  check_same_shape,
  constant,
  existing,
  mean_over,
  unit,
  visible,
)
from kdjax.reduce import ReduceFn, reduce_loss, safe_divide
from kdjax.types import Array


def topology_loss(
  student_features: Array,
  teacher_features: Array,
  *,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Full topology distillation (FTD): squared differences of cosine similarities.

  $$L_i = \frac{1}{n - 1} \sum_{j \ne i} (A^t_{ij} - A^s_{ij})^2, \quad
  A_{ij} = \frac{e_i \cdot e_j}{\lVert e_i \rVert \lVert e_j \rVert}$$

  Widths may differ: only similarities within one model are compared. Users and items of a batch go
  in together, concatenated. A zero vector has similarity 0 to all.

  Args:
    student_features: float `[..., n, d_s]`, n entities that are compared with each other.
    teacher_features: float `[..., n, d_t]` of the same entities; receives no gradient.
    where: bool `[..., n]`, the entities that count; others take no part as partners either.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in squared cosines: a scalar, or `[..., n]` for `reduce_fn=None`. 0 without partners.

  Raises:
    ValueError: if the leading shapes differ, or `where` has not the shape `[..., n]`.

  Example:
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[2.0], [3.0]])
    >>> float(topology_loss(student, teacher))
    1.0

  Reference:
    Kang et al., Topology Distillation for Recommender System, KDD 2021,
    doi:10.1145/3447548.3467319 (their squared Frobenius norm, divided by the number of pairs).
  """
  student, teacher, seen = _entities(student_features, teacher_features, where)
  change = _cosines(student, student) - _cosines(teacher, teacher)
  loss = mean_over(change**2, _others(seen))
  return reduce_loss(loss, where=where, reduce_fn=reduce_fn)


def group_topology_loss(
  student_features: Array,
  teacher_features: Array,
  groups: Array,
  *,
  num_groups: int | None = None,
  group_weight: float = 1.0,
  entity_weight: float = 1.0,
  prototypes_only: bool = False,
  where: Array | None = None,
  reduce_fn: ReduceFn = jnp.mean,
):
  r"""Hierarchical topology distillation (HTD): between groups, and within each group.

  $$L_i = w_g \frac{1}{K} \sum_k (\cos(P^t_k, e^t_i) - \cos(P^s_k, e^s_i))^2 + w_e
  \frac{1}{n_{g_i} - 1} \sum_{j \ne i, g_j = g_i} (A^t_{ij} - A^s_{ij})^2, \quad
  P_k = \frac{1}{n_k} \sum_{g_j = k} e_j$$

  With `prototypes_only` the first part compares prototypes with prototypes, and entities share it
  so that its mean is that over the K**2 pairs of groups. Groups come from the teacher:
  `expert_groups`, trained by the hint that `experts` gives. Users and items go in together, with
  groups of their own.

  Args:
    student_features: float `[..., n, d_s]`, n entities that are compared with each other.
    teacher_features: float `[..., n, d_t]` of the same entities; receives no gradient.
    groups: int `[..., n]`: equal ones are one group.
    num_groups: groups are in [0, num_groups), which saves time and memory where they are few (an
      entity beyond has no prototype); None for any numbers.
    group_weight: w_g >= 0.
    entity_weight: w_e >= 0.
    prototypes_only: the published choice Group(P, P) in place of Group(P, e).
    where: bool `[..., n]`, the entities that count; others take no part in groups either.
    reduce_fn: see `kdjax.reduce.reduce_loss`.

  Returns:
    float32, in squared cosines: a scalar, or `[..., n]` for `reduce_fn=None`.

  Raises:
    ValueError: if the leading shapes differ, `where` has not the shape `[..., n]` a weight is
      negative or `num_groups` < 1.

  Example:
    >>> import jax.numpy as jnp
    >>> student = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> teacher = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    >>> options = {"group_weight": 0.0, "reduce_fn": None}
    >>> group_topology_loss(student, teacher, jnp.array([0, 0, 1]), **options).tolist()
    [1.0, 1.0, 0.0]

  Reference:
    Kang et al., Topology Distillation for Recommender System, KDD 2021,
    doi:10.1145/3447548.3467319 (means in place of their norms). Their code stops the gradient at
    the prototypes and drops pairs whose teacher similarity is negative; here neither is done.
  """
  for name, weight in (("group_weight", group_weight), ("entity_weight", entity_weight)):
    if isinstance(weight, int | float) and weight < 0:
      raise ValueError(f"{name} must not be negative, got {weight}")
  if num_groups is not None and num_groups < 1:
    raise ValueError(f"num_groups must be positive, got {num_groups}")
  student, teacher, seen = _entities(student_features, teacher_features, where)
  groups = jnp.asarray(groups)
  check_same_shape(groups, seen)
  same = (groups[..., :, None] == groups[..., None, :]) & seen[..., :, None] & seen[..., None, :]
  within = _cosines(student, student) - _cosines(teacher, teacher)
  loss = entity_weight * mean_over(within**2, same & _others(seen))
  if num_groups is None:  # A group is as good by the number of its first entity.
    groups, num_groups = jnp.argmax(same, axis=-1), seen.shape[-1]
  member = jax.nn.one_hot(groups, num_groups) * seen[..., None]
  sizes = jnp.sum(member, axis=-2)
  centres, teacher_centres = (_prototypes(x, member, sizes) for x in (student, teacher))
  if prototypes_only:
    student, teacher = centres, teacher_centres
  change = _cosines(student, centres) - _cosines(teacher, teacher_centres)
  between = mean_over(change**2, jnp.broadcast_to((sizes > 0)[..., None, :], change.shape))
  if prototypes_only:
    # Shared out among a group's entities so that their mean is that over the groups.
    entities, kinds = (jnp.sum(x, axis=-1, keepdims=True) for x in (sizes, sizes > 0))
    between = between * safe_divide(jnp.broadcast_to(entities, sizes.shape), kinds * sizes)
    between = jnp.einsum("...nk,...k->...n", member, between)
  return reduce_loss(loss + group_weight * between, where=where, reduce_fn=reduce_fn)


def _entities(student_features, teacher_features, where):
  """Both features with 0 where masked, and which entities count, as bool `[..., n]`."""
  check_same_axes(student_features, teacher_features, -1)
  student = visible(student_features, where, core_ndim=1)
  teacher = visible(constant(teacher_features), where, core_ndim=1)
  return student, teacher, existing(where, student.shape[:-1])


def _cosines(a: Array, b: Array) -> Array:
  """`[..., n, d]` and `[..., m, d]` to `[..., n, m]`; 0 with zero gradient at zero vectors."""
  return jnp.einsum("...nd,...md->...nm", unit(a), unit(b), precision="highest")


def _prototypes(features: Array, member: Array, sizes: Array) -> Array:
  """The mean of every group, `[..., K, d]`; 0 where nobody is in it."""
  total = jnp.einsum("...nk,...nd->...kd", member, features, precision="highest")
  return safe_divide(total, jnp.broadcast_to(sizes[..., None], total.shape))


def _others(seen: Array) -> Array:
  """Who compares with whom: `[..., n, n]`, nobody with itself."""
  others = ~jnp.eye(seen.shape[-1], dtype=bool)
  pairs = seen[..., :, None] & seen[..., None, :]
  return pairs & jnp.broadcast_to(others, pairs.shape)
