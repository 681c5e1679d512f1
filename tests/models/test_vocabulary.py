"""Rows of token tables that stand for no token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import quant
from kdjax.models import cut_vocabulary, make_bert, make_decoder

TOKENS = jnp.array([[2, 5, 3, -1]])
BATCH = {"tokens": TOKENS, "segments": (TOKENS >= 0) * 1, "positions": jnp.arange(4)[None]}
SIZES = {"vocab_size": 12, "dim": 8, "num_layers": 1, "num_heads": 2, "head": "tokens"}


@pytest.mark.parametrize("quantised", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize(
  ("make", "more"),
  [
    (make_bert, {"max_length": 8}),
    (make_decoder, {}),
    (make_decoder, {"tied": False, "logit_cap": 5.0}),
  ],
  ids=["bert", "decoder", "untied"],
)
def test_what_is_left_says_what_it_said(make, more, quantised):
  model = make(**SIZES, **more)
  params = jax.jit(model.init)(jax.random.key(0), BATCH)
  if quantised:
    params = quant.quantize_params(params)
  params_9, sizes_9 = cut_vocabulary(params, SIZES | more, 9)

  def logits(apply, params):
    found = jax.jit(apply)(params, BATCH).logits
    return found if isinstance(found, jax.Array) else found.dense()

  cut = logits(make(**sizes_9).apply, params_9)
  assert cut.shape == (1, 4, 9)
  np.testing.assert_allclose(cut, logits(model.apply, params)[..., :9], atol=1e-6)


def test_nothing_to_cut():
  params = make_decoder(**SIZES).init(jax.random.key(0), BATCH)
  assert cut_vocabulary(params, SIZES, 12)[0] is params
  assert cut_vocabulary(params, SIZES, 20) == (params, SIZES)
  with pytest.raises(ValueError, match="num_tokens=0 is at least 1"):
    cut_vocabulary(params, SIZES, 0)
