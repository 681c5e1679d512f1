"""Distillation experts: several small projections to the teacher's width, and who uses which."""

import jax
import jax.numpy as jnp

from kdjax.losses.common import check_same_axes, check_temperature, constant, visible
from kdjax.losses.features import Helper
from kdjax.types import Array, Params


def experts(
  student_dim: int, teacher_dim: int, num_experts: int, *, hidden_dim: int | None = None
) -> Helper:
  r"""Projections from the student's width to the teacher's, and a selection among them.

  $$r(h^s, h^t) = \sum_m s_m E_m(h^s), \quad E_m(h) = W'_m \mathrm{relu}(W_m h + b_m) + b'_m,
  \quad s = \mathrm{softmax}\left(\frac{\log \alpha + g}{\tau}\right), \;
  \alpha = \mathrm{softmax}(V h^t + c), \; g \sim \mathrm{Gumbel}$$

  The selection looks at the teacher only. As tau falls (`expert_temperature`) every entity settles
  on one expert: that is its group (`expert_groups`) in `group_topology_loss`. Distillation experts
  (DE), and the group assignment of HTD, are `hint_loss(helper.apply(...), teacher_features)`.

  Args:
    student_dim: d_s > 0.
    teacher_dim: d_t > 0.
    num_experts: M > 0.
    hidden_dim: width of the experts; None for (d_s + d_t) / 2, as published.

  Returns:
    Helper whose `apply(params, student_features, teacher_features, *, key=None, temperature=1.0,
    where=None)` maps float `[..., d_s]` and `[..., d_t]` to float32 `[..., d_t]`. Without a key g
    is 0; pass the `where` of the loss, so that no masked garbage reaches the params. These are
    arrays by name: `hidden_kernel` `[M, d_s, h]`, `hidden_bias`, `kernel` `[M, h, d_t]`, `bias`,
    `selection_kernel` `[d_t, M]`, `selection_bias`.

  Raises:
    ValueError: if a width or M is not positive.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> helper = experts(4, 8, 3)
    >>> params = helper.init(jax.random.key(0))
    >>> helper.apply(params, jnp.ones([2, 4]), jnp.ones([2, 8]), key=jax.random.key(1)).shape
    (2, 8)

  Reference:
    Kang et al., DE-RRD: A Knowledge Distillation Framework for Recommender System, CIKM 2020,
    doi:10.1145/3340531.3412005 (`hint_loss` divides their squared norm by d_t).
  """
  hidden = (student_dim + teacher_dim) // 2 if hidden_dim is None else hidden_dim
  if min(student_dim, teacher_dim, num_experts, hidden) < 1:
    raise ValueError(
      "widths and num_experts must be positive, got "
      f"{student_dim}, {teacher_dim}, {hidden} and {num_experts}"
    )

  def init(key: Array) -> Params:
    # The experts are a batch: each is scaled by its own width.
    kernel_of = jax.nn.initializers.variance_scaling(
      1.0, "fan_in", "truncated_normal", batch_axis=0
    )
    keys = jax.random.split(key, 3)
    selection = jax.nn.initializers.lecun_normal()(keys[2], (teacher_dim, num_experts), jnp.float32)
    return {
      "hidden_kernel": kernel_of(keys[0], (num_experts, student_dim, hidden), jnp.float32),
      "hidden_bias": jnp.zeros([num_experts, hidden], jnp.float32),
      "kernel": kernel_of(keys[1], (num_experts, hidden, teacher_dim), jnp.float32),
      "bias": jnp.zeros([num_experts, teacher_dim], jnp.float32),
      "selection_kernel": selection,
      "selection_bias": jnp.zeros([num_experts], jnp.float32),
    }

  def apply(
    params: Params,
    student_features: Array,
    teacher_features: Array,
    *,
    key: Array | None = None,
    temperature: float | Array = 1.0,
    where: Array | None = None,
  ) -> Array:
    check_temperature(temperature)
    check_same_axes(student_features, teacher_features, -1)
    teacher_features = visible(teacher_features, where, core_ndim=1)
    logits = jax.nn.log_softmax(_selection_logits(params, teacher_features), axis=-1)
    if key is not None:
      logits = logits + jax.random.gumbel(key, logits.shape)
    selection = jax.nn.softmax(logits / temperature, axis=-1)
    student = visible(student_features, where, core_ndim=1)
    hidden = jnp.einsum("...s,msh->...mh", student, params["hidden_kernel"])
    hidden = jax.nn.relu(hidden + jnp.broadcast_to(params["hidden_bias"], hidden.shape))
    outputs = jnp.einsum("...mh,mht->...mt", hidden, params["kernel"])
    outputs = outputs + jnp.broadcast_to(params["bias"], outputs.shape)
    return jnp.einsum("...m,...mt->...t", selection, outputs)

  return Helper(init, apply)


def expert_groups(params: Params, teacher_features: Array) -> Array:
  """The expert that the selection likes best for each entity: its group.

  Args:
    params: of an `experts` helper.
    teacher_features: float `[..., d_t]`.

  Returns:
    int32 `[...]` in `[0, M)`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> params = experts(4, 3, 3).init(jax.random.key(0))
    >>> expert_groups(params | {"selection_kernel": jnp.eye(3)}, jnp.eye(3)).tolist()
    [0, 1, 2]

  Reference:
    Kang et al., Topology Distillation for Recommender System, KDD 2021,
    doi:10.1145/3447548.3467319.
  """
  return jnp.argmax(_selection_logits(params, teacher_features), axis=-1).astype(jnp.int32)


def expert_temperature(progress, *, start: float = 1.0, end: float = 1e-10) -> Array:
  r"""The temperature of the expert selection, falling exponentially over the training.

  $$\tau(p) = \tau_0 \left(\frac{\tau_P}{\tau_0}\right)^p$$

  Args:
    progress: p, the fraction of the training that is done; clipped to [0, 1].
    start: tau_0 > 0.
    end: tau_P > 0.

  Returns:
    float32 of the shape of `progress`.

  Raises:
    ValueError: if an end is not positive.

  Example:
    >>> round(float(expert_temperature(0.5, start=1.0, end=0.01)), 4)
    0.1

  Reference:
    Kang et al., DE-RRD, CIKM 2020, doi:10.1145/3340531.3412005.
  """
  check_temperature(start)
  check_temperature(end)
  progress = jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0)
  return start * (jnp.asarray(end, jnp.float32) / start) ** progress


def _selection_logits(params: Params, teacher_features: Array) -> Array:
  teacher = jnp.asarray(constant(teacher_features), jnp.float32)
  logits = jnp.einsum("...t,tm->...m", teacher, params["selection_kernel"])
  return logits + jnp.broadcast_to(params["selection_bias"], logits.shape)
