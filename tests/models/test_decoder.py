"""Decoders beyond what transformers' folders show: caches, sampling, generated rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import quant
from kdjax.models import append, generate, make_cached, make_decoder, sample_tokens
from kdjax.models.rotary import rotary_frequencies, rotate

SIZES = {
  "vocab_size": 19,
  "max_length": 32,
  "dim": 16,
  "num_layers": 2,
  "num_heads": 4,
  "num_kv_heads": 2,
  "window": (3, None),
}
TOKENS = jnp.array([[2, 5, 3, 7], [4, 1, -1, -1]])
BATCH = {
  "tokens": TOKENS,
  "segments": (TOKENS >= 0).astype(jnp.int32),
  "positions": jnp.arange(4)[None] * (TOKENS >= 0),
}
KEY = jax.random.key(3)


def made(**sizes):
  sizes = SIZES | sizes
  model = make_decoder(**sizes)
  params = model.init(jax.random.key(0), BATCH)
  noise = lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape)  # noqa: E731
  cached = make_cached(**sizes)
  model = model._replace(apply=jax.jit(model.apply))
  return model, cached._replace(extend=jax.jit(cached.extend)), jax.tree.map(noise, params)


@pytest.mark.parametrize(
  "sizes", [{}, {"rope_theta": None, "rms_norm": False, "gated": False, "logit_cap": 2.0}]
)
@pytest.mark.parametrize("integers", [False, True])
def test_token_by_token_equals_the_whole(sizes, integers):
  model, cached, params = made(**sizes)
  params = quant.quantize_params(params) if integers else params
  tokens = jnp.array([[2, 5, 3, 7, 8, 1, 0, 4]])
  batch = {"tokens": tokens, "segments": 1 + 0 * tokens, "positions": jnp.arange(8)[None]}
  whole = model.apply(params, batch).features["query"]
  cache = cached.init(1, 9)
  found = []
  for part in (slice(0, 3), slice(3, 4), slice(4, 8)):
    outputs, cache = cached.extend(params, {k: v[:, part] for k, v in batch.items()}, cache)
    found.append(outputs.features["query"])
  np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, atol=1e-5)
  assert int(cache.length) == 8
  np.testing.assert_array_equal(cache.segments, [[1] * 8 + [0]])


def test_packed_texts_do_not_see_each_other():
  model, _, params = made()
  tokens = jnp.array([[2, 5, 3, 7, 8, 1]])
  segments, positions = jnp.array([[1, 1, 1, 1, 2, 2]]), jnp.array([[0, 1, 2, 3, 0, 1]])
  packed = model.apply(params, {"tokens": tokens, "segments": segments, "positions": positions})
  alone = {"tokens": tokens[:, 4:], "segments": segments[:, 4:], "positions": positions[:, 4:]}
  expected = model.apply(params, alone).logits.dense()
  np.testing.assert_allclose(packed.logits.dense()[:, 4:], expected, atol=1e-5)


def test_a_window_hides_what_is_further_back():
  model, _, params = made(num_layers=1, window=2)
  batch = {
    "tokens": TOKENS[:1],
    "segments": BATCH["segments"][:1],
    "positions": jnp.arange(4)[None],
  }
  before = model.apply(params, batch).features["query"]
  after = model.apply(params, batch | {"tokens": TOKENS[:1].at[0, 1].set(9)}).features["query"]
  moved = np.abs(before - after).max(axis=-1)[0] > 1e-6
  assert moved.tolist() == [False, True, True, False]


def test_sampled_rows_are_likely_under_the_model():
  """Drawn tokens follow the model's own probabilities: chi-square over the first token."""
  model, cached, params = made()
  rows = {k: jnp.repeat(v[:1], 4000, axis=0) for k, v in BATCH.items()}
  write = jax.jit(lambda key: generate(cached, params, rows, key, max_new=2))
  drawn = np.asarray(write(KEY))
  np.testing.assert_array_equal(drawn, write(KEY))
  shares = np.asarray(jax.nn.softmax(model.apply(params, BATCH).logits.dense()[0, 3]), np.float64)
  counts = np.bincount(drawn[:, 0], minlength=19)
  chi = np.sum((counts - 4000 * shares) ** 2 / (4000 * shares))
  assert chi < 18 + 4 * np.sqrt(2 * 18)
  # The second token follows the first.
  first = np.bincount(drawn[:, 0]).argmax()
  tokens = jnp.array([[2, 5, 3, 7, int(first)]])
  batch = {"tokens": tokens, "segments": 1 + 0 * tokens, "positions": jnp.arange(5)[None]}
  shares = np.asarray(jax.nn.softmax(model.apply(params, batch).logits.dense()[0, 4]), np.float64)
  of_first = drawn[drawn[:, 0] == first, 1]
  counts = np.bincount(of_first, minlength=19)
  chi = np.sum((counts - len(of_first) * shares) ** 2 / (len(of_first) * shares))
  assert chi < 18 + 4 * np.sqrt(2 * 18)


def test_texts_end_and_are_joined():
  _, cached, params = made()
  free = np.asarray(generate(cached, params, BATCH, KEY, max_new=6, temperature=0.0))
  stop = int(free[1, 2])
  found = np.asarray(generate(cached, params, BATCH, KEY, max_new=6, temperature=0.0, stop=[stop]))
  for row, expected in zip(found, free, strict=True):
    ends = np.nonzero(expected == stop)[0]
    size = ends[0] + 1 if len(ends) else 6
    np.testing.assert_array_equal(row[:size], expected[:size])
    assert (row[size:] == -1).all()
  joined = append(BATCH, jnp.asarray(found))
  for row, prompt in enumerate((4, 2)):
    written = int((found[row] >= 0).sum())
    size = prompt + written
    tokens = [*TOKENS[row, :prompt].tolist(), *found[row, :written].tolist()]
    assert joined["tokens"][row].tolist() == tokens + [-1] * (10 - size)
    assert joined["segments"][row].tolist() == [1] * size + [0] * (10 - size)
    assert joined["positions"][row].tolist() == [*range(size)] + [0] * (10 - size)
    answers = [False] * prompt + [True] * written + [False] * (10 - size)
    assert joined["answers"][row].tolist() == answers


def test_sampling_keeps_the_likeliest():
  """Against sets by hand: p = .4, .3, .2, .1."""
  logits = jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2]))

  def seen(**options):
    keys = jax.random.split(KEY, 300)
    draw = lambda key: sample_tokens(logits, key, **options)  # noqa: E731
    return set(jax.vmap(draw)(keys).tolist())

  assert seen() == {0, 1, 2, 3}
  assert seen(temperature=0.0) == {1}
  assert seen(top_k=2) == {1, 2}
  assert seen(top_k=9) == {0, 1, 2, 3}
  assert seen(top_p=0.39) == {1}
  assert seen(top_p=0.41) == {1, 2}
  assert seen(top_p=0.71) == {1, 2, 3}
  # Of .4 and .3 alone the first holds .57.
  assert seen(top_k=2, top_p=0.56) == {1}
  assert seen(temperature=0.01) == {1}
  at_zero = sample_tokens(jnp.array([[0.0, -jnp.inf], [-jnp.inf, 1e4]]), KEY, top_p=0.9)
  assert at_zero.tolist() == [0, 1]


@pytest.mark.parametrize("options", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}])
def test_wrong_options_are_refused(options):
  with pytest.raises(ValueError, match="at least 0"):
    sample_tokens(jnp.zeros([3]), KEY, **options)


def test_wrong_sizes_are_refused():
  _, cached, params = made(rope_theta=None)
  with pytest.raises(ValueError, match="33 positions, but the position table has 32"):
    generate(cached, params, BATCH, KEY, max_new=29)
  with pytest.raises(ValueError, match="max_new=0"):
    generate(cached, params, BATCH, KEY, max_new=0)
  with pytest.raises(ValueError, match="only 'tokens' reads on"):
    make_cached(**SIZES, head="pool")
  for sizes, message in (
    ({"num_heads": 3, "head_dim": 4}, "num_heads=3 is no multiple of num_kv_heads=2"),
    ({"head": "labels"}, "head='labels': there are pool, tokens"),
    ({"activation": "mish"}, "activation='mish': there are gelu"),
    ({"head_dim": 3}, "head_dim=3 is odd"),
  ):
    with pytest.raises(ValueError, match=message):
      make_decoder(**SIZES | sizes).init(KEY, BATCH)


def test_rotation_keeps_lengths_and_tells_distances():
  x = jax.random.normal(KEY, (1, 1, 5, 6))
  frequencies = jnp.asarray(rotary_frequencies(6, 100.0))
  at = lambda start: rotate(x, start + jnp.arange(5)[None], frequencies)  # noqa: E731
  np.testing.assert_allclose(jnp.sum(at(3) ** 2, axis=-1), jnp.sum(x**2, axis=-1), rtol=1e-5)
  products = [jnp.einsum("bhld,bhmd->lm", at(start), at(start)) for start in (0, 40)]
  np.testing.assert_allclose(products[0], products[1], atol=1e-4)
  # As complex numbers, in float64.
  pairs = np.asarray(x[0, 0, :, :3]) + 1j * np.asarray(x[0, 0, :, 3:])
  turned = pairs * np.exp(1j * np.arange(5)[:, None] * 100.0 ** -(np.arange(0, 6, 2) / 6))
  expected = np.concatenate([turned.real, turned.imag], axis=-1)
  np.testing.assert_allclose(at(0)[0, 0], expected, atol=1e-5)


def test_the_compiled_loop_holds_one_cache():
  """Tokens are written in place: the loop keeps about one cache, not one a step."""
  _, cached, params = made(dim=64, head_dim=64, window=None)
  long = {k: jnp.tile(v[:1], (1, 64)) for k, v in BATCH.items()}
  long["segments"], long["positions"] = 1 + 0 * long["tokens"], jnp.arange(256)[None]
  compiled = jax.jit(lambda p: generate(cached, p, long, KEY, max_new=256)).lower(params).compile()
  memory = compiled.memory_analysis()
  of_cache = 2 * 2 * 2 * 512 * 64 * 4
  assert memory.temp_size_in_bytes < 6 * of_cache
