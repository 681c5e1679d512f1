"""A sequential recommender over another catalogue than the one that it was trained on."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.models.linen import Sizes
from kdjax.types import Params


def move_items(
  params: Params, sizes: Sizes, *, rows: np.ndarray, features: Sequence[np.ndarray] = ()
) -> tuple[Params, Sizes]:
  """The same model with other items: what is known of them, and rows of those that both have.

  So a teacher of one domain ranks the items of another, of which it knows the texts only, and a
  student there learns from it. An item that the old catalogue has keeps its embedding of the id;
  others get the mean of all, which tells nothing of them.

  Args:
    params: of a `make_sasrec` or `make_gru4rec` with these sizes, not quantised.
    sizes: its sizes.
    rows: int `[V']`, which old item each new one is; -1 for none.
    features: float `[V', F_m]`, what is known of the new items, in place of every table of
      `feature_dims`.

  Returns:
    Params and sizes of the same model over V' items.

  Raises:
    ValueError: if nothing connects the catalogues, the features are not as many or as wide as the
      model's, `rows` has an item that the old catalogue has not, or its items' table is composed.

  Reference:
    Y. Hou et al., Towards Universal Sequence Representation Learning for Recommender Systems, KDD
    2022, arXiv:2206.05941 (texts as what domains share).
  """
  rows = np.asarray(rows)
  widths = tuple(sizes.get("feature_dims", ()))
  found = tuple(np.shape(table) for table in features)
  if found != tuple((len(rows), width) for width in widths):
    raise ValueError(f"features {list(found)} for {len(rows)} items and feature_dims {widths}")
  if rows.min(initial=-1) < -1 or rows.max(initial=-1) >= sizes["num_items"]:
    raise ValueError(f"rows must lie in [-1, {sizes['num_items']})")
  if not widths and (rows < 0).all():
    raise ValueError("the catalogues share no item, and the model knows nothing else of its items")
  if sizes.get("composition"):
    raise ValueError(
      "items of a composed table have no rows of their own to move; train a full one"
    )
  moved = dict(params)
  if "item_embedding" in params:
    table = jnp.asarray(params["item_embedding"]["embedding"])
    own = jnp.where((rows >= 0)[:, None], table[rows], jnp.mean(table, axis=0))
    moved["item_embedding"] = {"embedding": own}
  for m, known in enumerate(features):
    old = params[f"item_features_{m}"]["embedding"]
    moved[f"item_features_{m}"] = {"embedding": jnp.asarray(known, old.dtype)}
  return jax.tree.map(jnp.asarray, moved), {**sizes, "num_items": len(rows)}
