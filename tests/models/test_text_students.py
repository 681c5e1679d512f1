"""Small encoders of text: padding is not read, directions are, and static tables by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.models import distill_table, make_static, make_text_cnn, make_text_gru
from kdjax.models.text_head import POOLINGS, pool

KEY = jax.random.key(0)
TOKENS = jnp.array([[3, 1, 4, 1, 5], [2, 6, -1, -1, -1]])
BATCH = {"tokens": TOKENS, "segments": (TOKENS >= 0).astype(jnp.int32)}
STUDENTS = {
  "static": (make_static, {}),
  "gru": (make_text_gru, {"num_layers": 2}),
  "gru_last": (make_text_gru, {"bidirectional": False, "pooling": "last"}),
  "lstm": (make_text_gru, {"cell": "lstm"}),
  "cnn": (make_text_cnn, {}),
}


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("head", ["pool", "labels"])
def test_padding_is_not_read(name, head):
  make, sizes = STUDENTS[name]
  model = make(vocab_size=9, dim=6, head=head, **sizes)
  params = model.init(KEY, BATCH)
  params = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape), params)
  apply = jax.jit(lambda batch: model.apply(params, batch).logits)
  whole = apply(BATCH)
  short = apply({k: v[1:, :2] for k, v in BATCH.items()})
  np.testing.assert_allclose(whole[1:], short, atol=1e-5)
  # Nor is what stands where the padding is.
  other = apply(BATCH | {"tokens": jnp.where(TOKENS < 0, 7, TOKENS)})
  np.testing.assert_allclose(whole, other, atol=1e-5)
  if head == "pool":
    np.testing.assert_allclose(jnp.linalg.norm(whole, axis=-1), [1, 1], atol=1e-5)


@pytest.mark.parametrize("name", STUDENTS)
def test_order_matters_but_to_static_tables(name):
  make, sizes = STUDENTS[name]
  model = make(vocab_size=9, dim=6, **sizes)
  params = model.init(KEY, BATCH)
  params = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape), params)
  first = {k: v[:1] for k, v in BATCH.items()}
  turned = first | {"tokens": first["tokens"][:, ::-1]}
  apply = jax.jit(lambda batch: model.apply(params, batch).logits)
  moved = float(jnp.abs(apply(first) - apply(turned)).max())
  assert (moved < 1e-6) == (name == "static")


def test_a_gru_reads_both_ways():
  """A layer forwards and one backwards, each by hand on the text without padding."""
  from kdjax.models.recurrent import GRU

  model = make_text_gru(vocab_size=9, dim=6, hidden_dim=4, normalize=False, dropout=0.0)
  params = model.init(KEY, BATCH)
  outputs = model.apply(params, BATCH)
  x = params["token_embedding"]["embedding"][TOKENS[1:, :2]]
  start = jnp.array([[True, False]])
  forward = GRU(4).apply({"params": params["layer_0"]}, x, start)
  backward = GRU(4).apply({"params": params["back_0"]}, x[:, ::-1], start)[:, ::-1]
  expected = jnp.concatenate([forward, backward], axis=-1)
  np.testing.assert_allclose(outputs.features["layer_0"][1:, :2], expected, atol=1e-6)
  np.testing.assert_allclose(outputs.logits[1:], expected.max(axis=1), atol=1e-6)


def test_an_lstm_is_that_of_flax_and_forgets_at_segments():
  from kdjax.models.recurrent import LSTM

  x = jax.random.normal(KEY, (2, 7, 3))
  starts = jnp.zeros([2, 7], bool).at[:, 0].set(True).at[1, 3].set(True)
  layer = LSTM(4)
  params = layer.init(KEY, x, starts)["params"]
  np.testing.assert_array_equal(params["input"]["bias"], np.repeat([0, 1, 0, 0], 4))
  params = jax.tree.map(lambda v: v + 0.3 * jax.random.normal(KEY, v.shape), params)
  given, own = (
    jnp.split(k, 4, axis=1) for k in (params["input"]["kernel"], params["recurrent_kernel"])
  )
  biases = jnp.split(params["input"]["bias"], 4)
  theirs = {f"i{g}": {"kernel": w} for g, w in zip("ifgo", given, strict=True)} | {
    f"h{g}": {"kernel": w, "bias": b} for g, w, b in zip("ifgo", own, biases, strict=True)
  }
  oracle = nn.RNN(nn.OptimizedLSTMCell(4))
  run = lambda x: oracle.apply({"params": {"cell": theirs}}, x)  # noqa: E731
  found = jax.jit(lambda x: layer.apply({"params": params}, x, starts))(x)
  np.testing.assert_allclose(found[:1], run(x[:1]), atol=1e-5)
  np.testing.assert_allclose(found[1:, :3], run(x[1:, :3]), atol=1e-5)
  np.testing.assert_allclose(found[1:, 3:], run(x[1:, 3:]), atol=1e-5)


def test_poolings_by_hand():
  x = jax.random.normal(KEY, (3, 5, 2))
  segments = jnp.array([[1] * 5, [1, 1, 0, 0, 0], [0] * 5])
  for how in POOLINGS:
    found = np.asarray(pool(x, segments, how=how))
    by_hand = {
      "mean": lambda rows: rows.mean(axis=0),
      "max": lambda rows: rows.max(axis=0),
      "first": lambda rows: rows[0],
      "last": lambda rows: rows[-1],
    }[how]
    for row, length in ((0, 5), (1, 2)):
      np.testing.assert_allclose(found[row], by_hand(np.asarray(x[row, :length])), atol=1e-6)
    if how != "first":
      np.testing.assert_array_equal(found[2], [0, 0])
  # A text need not begin in the first column.
  later = pool(x, jnp.array([[0, 0, 1, 1, 0]] * 3), how="last")
  np.testing.assert_allclose(later, x[:, 3], atol=1e-6)
  with pytest.raises(ValueError, match="pooling='median': there are mean"):
    pool(x, segments, how="median")


def test_distilled_tables_keep_distances_and_weigh_by_frequency():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 8)) + 5  # Of rank 3, off centre.
  counts = rng.integers(0, 100, 40)
  table = distill_table(rows, counts, dim=3, smoothing=0.01)
  weights = 0.01 / (0.01 + counts / counts.sum())
  flat = table / weights[:, None]
  of = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)  # noqa: E731
  np.testing.assert_allclose(of(flat), of(rows), atol=1e-3)
  # Directions are those of largest variance, in order, against numpy's own decomposition.
  one = distill_table(rows, np.ones(40), dim=1, smoothing=1.0)[:, 0] * (1 + 1 / 40)
  left, size, _ = np.linalg.svd(rows - rows.mean(axis=0))
  np.testing.assert_allclose(np.abs(one), np.abs(left[:, 0] * size[0]), atol=1e-4)
  assert (np.diff(flat.var(axis=0)) < 0).all()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"dim": 9}, r"dim=9: \[V, D\], \[V\] and 1 to min"),
    ({"counts": np.ones(4)}, r"counts \(4,\)"),
    ({"counts": np.zeros(5)}, "not all 0"),
    ({"smoothing": 0.0}, "smoothing=0.0 is positive"),
  ],
)
def test_wrong_tables_are_refused(change, message):
  given = {"embeddings": np.eye(5), "counts": np.ones(5), "dim": 2} | change
  with pytest.raises(ValueError, match=message):
    distill_table(given.pop("embeddings"), given.pop("counts"), **given)


def test_wrong_names_are_refused():
  for make in (make_static, make_text_gru, make_text_cnn):
    with pytest.raises(ValueError, match="head='ears': there are pool, labels"):
      make(vocab_size=9, head="ears").init(KEY, BATCH)
  with pytest.raises(ValueError, match="cell='rnn': there are gru, lstm"):
    make_text_gru(vocab_size=9, cell="rnn").init(KEY, BATCH)
