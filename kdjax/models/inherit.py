"""A model's first parameters from those of another: of its teacher, or of what was pretrained."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.tree import leaves_with_path, map_with_path
from kdjax.types import Params, Path, Select


def inherit_tables(student_params: Params, teacher_params: Params) -> Params:
  r"""The student's embedding tables as the teacher's, brought to its width.

  Tables of one teacher width $d_t$ share the orthonormal basis $R \in R^{d_s \times d_t}$ that
  keeps most of them, the top eigenvectors of $\sum_k E_k^\top E_k$, and become $E_k R^\top$. So
  inner products between rows, of which a tied catalogue model's scores are made, are the best that
  $d_s$ columns can keep (Eckart and Young), and tables that are added to each other stay aligned.

  Args:
    student_params: freshly initialised; what is no table stays as it is.
    teacher_params: of a model whose tables have the same paths; int8 tables are dequantized.

  Returns:
    Parameters of the student's structure, shapes and dtypes.

  Raises:
    ValueError: if the two share no table: a leaf named `embedding` at one path, of as many rows in
      both, and in the student not wider than in the teacher.

  Example:
    >>> teacher = {"item": {"embedding": jnp.array([[3.0, 4.0], [6.0, 8.0]])}}
    >>> student = inherit_tables({"item": {"embedding": jnp.zeros([2, 1])}}, teacher)
    >>> jnp.abs(student["item"]["embedding"]).round(3).tolist()
    [[5.0], [10.0]]

  Reference:
    Eckart, Young, The approximation of one matrix by another of lower rank, Psychometrika 1936.
  """
  is_table = lambda x: hasattr(x, "__jax_array__")  # noqa: E731 - a QTensor is one leaf.
  theirs = {
    path: np.asarray(jnp.asarray(leaf), np.float64)
    for path, leaf in leaves_with_path(teacher_params, is_leaf=is_table)
    if path[-1] == "embedding" and jnp.ndim(leaf) == 2
  }
  widths: dict[Path, tuple[int, int]] = {}
  for path, leaf in leaves_with_path(student_params):
    shape = theirs[path].shape if path in theirs else (0, 0)
    if leaf.ndim == 2 and leaf.shape[0] == shape[0] and leaf.shape[1] <= shape[1]:
      widths[path] = (leaf.shape[1], shape[1])
  if not widths:
    raise ValueError("student and teacher share no embedding table of as many rows, not wider")
  bases = {}
  for narrow, wide in set(widths.values()):
    gram = sum(theirs[p].T @ theirs[p] for p, w in widths.items() if w == (narrow, wide))
    bases[narrow, wide] = np.linalg.eigh(gram)[1][:, ::-1][:, :narrow]

  def inherit(path: Path, leaf: jax.Array) -> jax.Array:
    if path not in widths:
      return leaf
    return jnp.asarray(theirs[path] @ bases[widths[path]], leaf.dtype)

  return map_with_path(inherit, student_params)


def inherit_leaves(
  student_params: Params,
  teacher_params: Params,
  *,
  select: Select = lambda path, leaf: True,
) -> tuple[Params, tuple[Path, ...]]:
  """The student's leaves as another model has them at the same paths, where their shapes agree.

  A classifier starts so from a model that was pretrained on masked tokens, whose blocks are called
  as its own.

  Args:
    student_params: freshly initialised; what is not taken stays the very array that it is.
    teacher_params: of the other model; int8 leaves are dequantized.
    select: which of the student's leaves may be taken.

  Returns:
    Parameters of the student's structure, shapes and dtypes, and the paths that were taken.

  Raises:
    ValueError: if the two share none.

  Example:
    >>> ours = {"up": jnp.zeros([2]), "out": jnp.zeros([3])}
    >>> params, taken = inherit_leaves(ours, {"up": jnp.ones([2]), "out": jnp.ones([4])})
    >>> params["up"].tolist(), params["out"].tolist(), taken
    ([1.0, 1.0], [0.0, 0.0, 0.0], (('up',),))
  """
  is_quantized = lambda x: hasattr(x, "__jax_array__")  # noqa: E731 - a QTensor is one leaf.
  theirs = dict(leaves_with_path(teacher_params, is_leaf=is_quantized))
  ours = leaves_with_path(student_params)
  taken = tuple(
    path
    for path, leaf in ours
    if path in theirs and jnp.shape(theirs[path]) == jnp.shape(leaf) and select(path, leaf)
  )
  if not taken:
    raise ValueError("student and teacher share no array of the same path and shape")

  def take(path: Path, leaf: jax.Array) -> jax.Array:
    return jnp.asarray(jnp.asarray(theirs[path]), leaf.dtype) if path in taken else leaf

  return map_with_path(take, student_params), taken
