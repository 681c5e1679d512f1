"""Tables of tokens that are longer than the vocabulary."""

from typing import Any

from kdjax.models.linen import Sizes
from kdjax.tree import map_with_path
from kdjax.types import Params, Path

_TABLES = ("token_embedding", "output_embedding", "token_bias")


def cut_vocabulary(params: Params, sizes: Sizes, num_tokens: int) -> tuple[Params, Sizes]:
  """A BERT or a decoder without the rows that stand for no token.

  Checkpoints pad their tables, to a multiple of what devices like, beyond the tokens that their
  tokenizer has. Without those rows no probability goes to them, none is ever drawn, and teacher and
  student speak of one vocabulary. What the model says of the other tokens stays as it was.

  Args:
    params: of `kdjax.models.make_bert(**sizes)` or `make_decoder(**sizes)`; perhaps quantised.
    sizes: its sizes.
    num_tokens: V, tokens of the tokenizer, at least 1.

  Returns:
    params and sizes with V tokens; the very same where the model has no more.

  Raises:
    ValueError: if `num_tokens` is below 1.

  Example:
    >>> import jax.numpy as jnp
    >>> params = {"token_embedding": {"embedding": jnp.ones([320, 4])}}
    >>> params, sizes = cut_vocabulary(params, {"vocab_size": 320, "dim": 4}, 300)
    >>> params["token_embedding"]["embedding"].shape, sizes
    ((300, 4), {'vocab_size': 300, 'dim': 4})
  """
  if num_tokens < 1:
    raise ValueError(f"num_tokens={num_tokens} is at least 1")
  rows = sizes["vocab_size"]
  if rows <= num_tokens:
    return params, sizes

  def cut(path: Path, leaf: Any) -> Any:
    # Of a quantised table the parts that have a row a token; others are shared by all rows.
    shared = path[0] not in _TABLES or leaf.ndim == 0 or leaf.shape[0] != rows
    return leaf if shared else leaf[:num_tokens]

  return map_with_path(cut, params), {**sizes, "vocab_size": num_tokens}
