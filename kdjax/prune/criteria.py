"""How much a weight matters: scores, of which the lowest are removed first."""

import jax
import jax.numpy as jnp

from kdjax.tree import map_with_path
from kdjax.types import Array, Params


def magnitude(params: Params) -> Params:
  """The score of a weight is its size: `|w|`.

  Args:
    params: any pytree of float arrays.

  Returns:
    float32 scores of the same structure.

  Example:
    >>> import jax.numpy as jnp
    >>> magnitude({"kernel": jnp.array([[-2.0, 0.5]])})["kernel"].tolist()
    [[2.0, 0.5]]

  Reference:
    S. Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS
    2015, arXiv:1506.02626.
  """
  return jax.tree.map(lambda w: jnp.abs(w).astype(jnp.float32), params)


def random(params: Params, *, key: Array) -> Params:
  """Uniform scores: the baseline every criterion must beat.

  Args:
    params: any pytree of arrays.
    key: a PRNG key; the same key gives the same scores. Bind it with `functools.partial` where a
      criterion of one argument is wanted.

  Returns:
    float32 scores in [0, 1) of the same structure.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> scores = random({"a": jnp.ones([2, 3]), "b": jnp.ones([2, 3])}, key=jax.random.key(0))
    >>> bool(jnp.any(scores["a"] != scores["b"]))
    True
  """
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(key, max(len(leaves), 1))
  scores = [jax.random.uniform(k, jnp.shape(w)) for k, w in zip(keys, leaves, strict=False)]
  return jax.tree.unflatten(treedef, scores)


def saliency(params: Params, grads: Params) -> Params:
  """First-order change of the loss when a weight goes to 0: `|w g|`.

  Args:
    params: any pytree of float arrays.
    grads: the gradients, of the same structure.

  Returns:
    float32 scores of the same structure.

  Raises:
    ValueError: if the structures or the shapes of `params` and `grads` differ.

  Example:
    >>> import jax.numpy as jnp
    >>> saliency({"w": jnp.array([2.0, -1.0])}, {"w": jnp.array([0.5, 3.0])})["w"].tolist()
    [1.0, 3.0]

  Reference:
    N. Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity, ICLR 2019,
    arXiv:1810.02340 (there divided by the sum, which changes no order); P. Molchanov et al.,
    Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017,
    arXiv:1611.06440.
  """

  return jax.tree.map(jnp.abs, _products(params, grads))


def movement(params: Params, grads: Params) -> Params:
  """How fast a weight moves away from 0: `-w g`. Sum it over the steps of training.

  Negative where a step of gradient descent brings the weight nearer to 0. What fine-tuning wants
  away goes, however large it was before.

  Args:
    params: any pytree of float arrays.
    grads: the gradients of one step, of the same structure.

  Returns:
    float32 scores of the same structure.

  Raises:
    ValueError: if the structures or the shapes of `params` and `grads` differ.

  Example:
    >>> import jax.numpy as jnp
    >>> movement({"w": jnp.array([2.0, -1.0])}, {"w": jnp.array([0.5, 3.0])})["w"].tolist()
    [-1.0, 3.0]

  Reference:
    V. Sanh, T. Wolf, A. Rush, Movement Pruning: Adaptive Sparsity by Fine-Tuning, NeurIPS 2020,
    arXiv:2005.07683, equation 3 without the learning rate, which changes no order.
  """
  return jax.tree.map(jnp.negative, _products(params, grads))


def fisher(params: Params, grads: Params) -> Params:
  r"""Second-order change of the loss when a weight goes to 0: $\frac12 w^2 F$, $F = E[g^2]$.

  F is the diagonal of the empirical Fisher information, which stands for the Hessian's. Average it
  over examples: with gradients of single examples it is exact, with those of batches it is less by
  about the size of the batch.

  Args:
    params: any pytree of float arrays.
    grads: the gradients of one example or batch, of the same structure.

  Returns:
    float32 scores of the same structure.

  Raises:
    ValueError: if the structures or the shapes of `params` and `grads` differ.

  Example:
    >>> import jax.numpy as jnp
    >>> fisher({"w": jnp.array([2.0, -1.0])}, {"w": jnp.array([0.5, 3.0])})["w"].tolist()
    [0.5, 4.5]

  Reference:
    Y. LeCun, J. Denker, S. Solla, Optimal Brain Damage, NeurIPS 1989; L. Theis et al., Faster gaze
    prediction with dense networks and Fisher pruning, 2018, arXiv:1801.05787.
  """
  return jax.tree.map(lambda p: 0.5 * p**2, _products(params, grads))


def _products(params: Params, grads: Params) -> Params:
  """`w g`, float32; the shapes must agree."""

  def product(path, w, g):
    if jnp.shape(w) != jnp.shape(g):
      raise ValueError(f"{'/'.join(path)}: params {jnp.shape(w)} but grads {jnp.shape(g)}")
    return w.astype(jnp.float32) * g.astype(jnp.float32)

  return map_with_path(product, params, grads)
