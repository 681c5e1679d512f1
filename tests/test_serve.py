"""Texts encoded by length; histories and recommendations are tested with what serves them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import serve
from kdjax.models import append, make_bert, make_cached, make_decoder, make_text_gru


def texts(count, length, seed=0):
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, length + 1, count)
  real = np.arange(length)[None] < sizes[:, None]
  return {
    "tokens": np.where(real, rng.integers(0, 19, (count, length)), -1).astype(np.int32),
    "segments": real.astype(np.int32),
    "positions": (np.arange(length) * real).astype(np.int32),
  }


@pytest.mark.parametrize(
  ("make", "head", "tokens_per_call"),
  [(make_bert, "pool", 64), (make_bert, "labels", 4096), (make_text_gru, "pool", 1)],
)
def test_by_length_equals_padded(make, head, tokens_per_call):
  sizes = {"vocab_size": 19, "dim": 8, "num_layers": 1, "head": head}
  if make is make_bert:
    sizes |= {"num_heads": 2, "max_length": 40}
  model, rows = make(**sizes), texts(23, 40)
  params = model.init(jax.random.key(0), rows)
  params = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape), params)
  expected = jax.jit(model.apply)(params, {k: jnp.asarray(v) for k, v in rows.items()}).logits
  found = serve.encode_texts(model.apply, params, rows, tokens_per_call=tokens_per_call)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_few_programs_read_few_tokens():
  """At most a quarter more than the texts hold, but for what fills the last call up."""
  seen = []

  def apply(params, batch, *, key=None):
    seen.append(batch["tokens"].shape)
    return type("Outputs", (), {"logits": batch["tokens"][:, :1] + params})

  rows = texts(500, 512, seed=1)
  with jax.disable_jit():  # So that every call is seen, and not every program.
    found = serve.encode_texts(apply, jnp.float32(0), rows, tokens_per_call=2048)
  np.testing.assert_array_equal(found[:, 0], rows["tokens"][:, 0])
  assert len({length for _, length in seen}) == len(set(seen)) <= 25
  assert all(count == 2048 // length for count, length in seen)
  read = sum(count * length for count, length in seen)
  assert read <= 1.25 * np.maximum(rows["segments"].sum(axis=1), 8).sum() + 2048


def test_no_texts_is_an_error():
  with pytest.raises(ValueError, match="no text to encode"):
    serve.encode_texts(None, {}, {"segments": np.zeros([0, 4], np.int32)})


@pytest.mark.parametrize("sizes", [{}, {"rope_theta": None, "max_length": 24, "logit_cap": 3.0}])
def test_continuations_score_as_whole_texts(sizes):
  sizes = {"vocab_size": 19, "dim": 8, "num_layers": 2, "num_heads": 2} | sizes
  rows, tokens = texts(3, 9), texts(12, 5, seed=1)["tokens"].reshape(3, 4, 5)
  tokens[1, 2] = -1
  model = make_decoder(**sizes)
  params = model.init(jax.random.key(0), rows)
  params = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape), params)
  found = serve.score_continuations(make_cached(**sizes), params, rows, jnp.asarray(tokens))
  assert found.shape == (3, 4)
  assert found[1, 2] == 0
  for n in range(4):
    batch = append({k: jnp.asarray(v) for k, v in rows.items()}, jnp.asarray(tokens[:, n]))
    logits = model.apply(params, batch).logits
    logits = logits.dense() if hasattr(logits, "dense") else logits
    log_probs = np.asarray(jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32)), np.float64)
    following = np.maximum(batch["tokens"][:, 1:], 0)
    own = np.take_along_axis(log_probs, following[..., None], axis=-1)[..., 0]
    expected = np.sum(own * batch["answers"][:, 1:], axis=1)
    np.testing.assert_allclose(found[:, n], expected, atol=2e-4)
