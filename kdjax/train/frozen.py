"""Parameters that stay as they are."""

import optax

from kdjax.tree import map_with_path
from kdjax.types import Params, Select


def freeze(tx: optax.GradientTransformation, select: Select) -> optax.GradientTransformation:
  """The transformation `tx` for all leaves but some, which never change.

  Frozen leaves have no state in the optimizer (no moments), take no part in norms that `tx` clips
  by, and under `jit` their gradients are not computed.

  Args:
    tx: for the leaves that train; extra arguments reach it.
    select: `(path, leaf) -> bool`, which leaves are frozen, by their paths in the params that the
      transformation is initialised with.

  Returns:
    An optax transformation.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"table": jnp.ones([3]), "out": jnp.ones([2])}
    >>> tx = freeze(optax.adam(0.1), lambda path, leaf: path[0] == "table")
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> updates["table"].tolist(), bool(jnp.all(updates["out"] < 0))
    ([0.0, 0.0, 0.0], True)
  """

  def labels(params: Params) -> Params:
    return map_with_path(lambda path, leaf: "frozen" if select(path, leaf) else "trained", params)

  return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
