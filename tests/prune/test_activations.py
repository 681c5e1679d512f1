import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import prune
from kdjax.traced import observe_inputs

RNG = np.random.default_rng(0)


def linear(params, x):
  return x @ params["kernel"]


def problem(inputs=16, outputs=6, rows=64):
  """Weights, correlated inputs, and what was observed of them."""
  x = RNG.normal(size=(rows, inputs)) @ RNG.normal(size=(inputs, inputs))
  params = {"kernel": jnp.asarray(RNG.normal(size=(inputs, outputs)), jnp.float32)}
  x = jnp.asarray(x, jnp.float32)
  return params, x, observe_inputs(linear, params, x)


def sparse_gpt_oracle(w, h, sparsity, groups, block, damping):
  """Algorithm 1 of the paper in float64, the inverse updated by elimination instead of Cholesky."""
  w, h = np.float64(w).copy(), np.float64(h)
  size = len(h)
  inverse = np.linalg.inv(h + damping * np.mean(np.diag(h)) * np.eye(size))
  # The diagonal of the inverse that is left at each step, all inputs before being fixed.
  diagonal, rest = np.zeros(size), inverse.copy()
  rows = []
  for k in range(size):
    diagonal[k] = rest[k, k]
    rows.append(rest[k].copy())
    rest = rest - np.outer(rest[:, k], rest[k]) / rest[k, k]
  masks = np.ones(w.shape, bool)
  for start in range(0, size, block):
    stop = min(start + block, size)
    if groups is None:
      cost = w[start:stop] ** 2 / diagonal[start:stop, None]
      count = round(sparsity * cost.size)
      order = np.argsort(cost.ravel())[:count]
      part = np.ones(cost.size, bool)
      part[order] = False
      masks[start:stop] = part.reshape(cost.shape)
    for k in range(start, stop):
      if groups is not None and (k - start) % groups[1] == 0:
        n, m = groups
        cost = w[k : k + m] ** 2 / diagonal[k : k + m, None]
        masks[k : k + m] = np.argsort(np.argsort(-cost, axis=0), axis=0) < n
      error = np.where(masks[k], 0.0, w[k]) / diagonal[k]
      w[k:] -= rows[k][k:, None] * error[None]
      w[k] = np.where(masks[k], w[k], 0.0)
  return w, masks


@pytest.mark.parametrize(
  ("sparsity", "groups", "block"),
  [(0.5, None, 16), (0.5, None, 8), (0.75, None, 5), (0.0, (2, 4), 8), (0.0, (1, 4), 16)],
)
def test_sparse_gpt_follows_the_paper(sparsity, groups, block):
  params, _, observed = problem()
  pruned, masks = prune.sparse_gpt(
    params, observed, sparsity=sparsity, groups=groups, block=block, damping=0.05
  )
  total = observed["kernel"].value.total
  expected, kept = sparse_gpt_oracle(params["kernel"], total, sparsity, groups, block, 0.05)
  np.testing.assert_array_equal(masks["kernel"], kept)
  np.testing.assert_allclose(pruned["kernel"], expected, atol=2e-3)


def test_the_correction_is_worth_it():
  """On inputs of a few directions, as those of trained layers are."""
  x = RNG.normal(size=(512, 4)) @ RNG.normal(size=(4, 64)) + 0.3 * RNG.normal(size=(512, 64))
  x, params = jnp.asarray(x, jnp.float32), problem(64, 16)[0]
  observed = observe_inputs(linear, params, x)
  wanted = linear(params, x)

  def loss(params):
    return float(jnp.mean((linear(params, x) - wanted) ** 2))

  def loss_of(scores, **options):
    return loss(prune.apply_masks(params, prune.make_masks(scores, sparsity=0.5, **options)))

  pruned, masks = prune.sparse_gpt(params, observed, sparsity=0.5)
  assert prune.measure_sparsity(masks) == 0.5
  wanda = loss_of(prune.wanda(params, observed), pattern=prune.each_output())
  assert loss(pruned) < 0.2 * wanda < 0.2 * loss_of(prune.magnitude(params))
  assert loss(pruned) < 0.2 * loss(prune.apply_masks(params, masks))


def test_one_of_two_weights_takes_over_by_regression():
  x = jnp.array([[1.0, 1.0], [1.0, 1.1], [0.0, 2.0]])
  params = {"kernel": jnp.array([[1.0], [2.0]])}
  observed = observe_inputs(linear, params, x)
  pruned, masks = prune.sparse_gpt(params, observed, sparsity=0.5, damping=0.0)
  assert masks["kernel"][:, 0].tolist() == [False, True]
  target, column = np.asarray(linear(params, x))[:, 0], np.asarray(x)[:, 1]
  np.testing.assert_allclose(pruned["kernel"][1, 0], column @ target / (column @ column), rtol=1e-4)


def test_wanda_golden():
  params = {"kernel": jnp.array([[1.0, -2.0], [3.0, 1.0]]), "bias": jnp.ones([2])}
  x = jnp.array([[3.0, 0.0], [4.0, 1.0]])
  apply_fn = lambda params, x: x @ params["kernel"] + params["bias"][None]  # noqa: E731
  scores = prune.wanda(params, observe_inputs(apply_fn, params, x))
  norms = np.sqrt(np.array([25.0, 1.0]) / 2)
  np.testing.assert_allclose(scores["kernel"], [[norms[0], 2 * norms[0]], [3 * norms[1], norms[1]]])
  assert scores["bias"].tolist() == [0, 0]
  masks = prune.make_masks(scores, sparsity=0.5, pattern=prune.each_output())
  assert masks["kernel"].tolist() == [[True, True], [False, False]]


def test_what_goes_into_stock_layers_is_seen():
  """Against Linen's own captured activations; attention's output is contracted over two axes."""
  module = nn.Sequential([nn.MultiHeadDotProductAttention(num_heads=2), nn.Dense(3)])
  x = jnp.asarray(RNG.normal(size=(2, 5, 8)), jnp.float32)
  params = module.init(jax.random.key(0), x)
  seen = observe_inputs(module.apply, params, x)["params"]
  flat = x.reshape(-1, 8)
  for name in ("query", "key", "value"):
    assert seen["layers_0"][name]["kernel"].axes == (0,)
    np.testing.assert_allclose(
      seen["layers_0"][name]["kernel"].value.total, flat.T @ flat, rtol=1e-4, atol=1e-4
    )
  out = seen["layers_0"]["out"]["kernel"]
  assert out.axes == (0, 1)
  assert out.value.total.shape == (8, 8)
  _, state = module.apply(params, x, capture_intermediates=True)
  attended = state["intermediates"]["layers_0"]["__call__"][0].reshape(-1, 8)
  np.testing.assert_allclose(
    seen["layers_1"]["kernel"].value.total, attended.T @ attended, rtol=1e-4, atol=1e-4
  )
  assert float(out.value.count) == 10
  assert seen["layers_1"]["bias"] is None
  # What the observed output is a function of: the rows before the projection, by least squares.
  pruned, masks = prune.sparse_gpt(params, {"params": seen}, sparsity=0.5, select=is_kernel)
  assert prune.measure_sparsity(masks, select=is_kernel) == 0.5
  assert jax.tree.map(jnp.shape, pruned) == jax.tree.map(jnp.shape, params)


def is_kernel(path, leaf):
  del leaf
  return path[-1] == "kernel"


def test_moments_of_batches_add_up():
  params, x, whole = problem()
  halves = [observe_inputs(linear, params, part) for part in (x[:20], x[20:])]
  added = jax.tree.map(jnp.add, *halves)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), added, whole)
  jitted = jax.jit(lambda params, x: observe_inputs(linear, params, x))(params, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), jitted, whole)


def test_a_weight_that_is_used_twice_sees_all_rows():
  params, x, _ = problem()
  twice = observe_inputs(lambda p, x: linear(p, x) + linear(p, x[::-1] + 1), params, x)
  both = np.concatenate([x, x[::-1] + 1])
  np.testing.assert_allclose(twice["kernel"].value.total, both.T @ both, rtol=1e-4, atol=1e-2)
  assert float(twice["kernel"].value.count) == 128


def test_what_was_not_observed_is_named():
  params = {"table": jnp.ones([4, 2]), "kernel": jnp.ones([2, 3])}
  apply_fn = lambda params, ids: params["table"][ids] @ params["kernel"]  # noqa: E731
  observed = observe_inputs(apply_fn, params, jnp.arange(3))
  for make in (prune.wanda, lambda p, o: prune.sparse_gpt(p, o, sparsity=0.5)):
    with pytest.raises(ValueError, match="table is no factor of an observed product"):
      make(params, observed)
  with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\]"):
    prune.sparse_gpt(params, observed, sparsity=2.0)
  with pytest.raises(ValueError, match="m must divide"):
    prune.sparse_gpt(params, observed, sparsity=0.5, groups=(2, 3))
  with pytest.raises(ValueError, match="kernel has 2 inputs, no multiple of 4"):
    prune.sparse_gpt(params, observed, sparsity=0.5, groups=(2, 4), select=is_kernel)
  square = {"w": jnp.ones([2, 2])}
  with pytest.raises(ValueError, match="contracted over"):
    observe_inputs(lambda p, x: x @ p["w"] @ p["w"].T, square, jnp.ones([1, 2]))


def test_gradients_make_scores():
  params, grads = {"w": jnp.array([[2.0, -1.0]])}, {"w": jnp.array([[0.5, 3.0]])}
  assert prune.saliency(params, grads)["w"].tolist() == [[1, 3]]
  assert prune.movement(params, grads)["w"].tolist() == [[-1, 3]]
  assert prune.fisher(params, grads)["w"].tolist() == [[0.5, 4.5]]
  # A step of gradient descent changes the size of a weight as the movement says, to first order.
  step = 1e-3
  grown = (jnp.abs(params["w"] - step * grads["w"]) - jnp.abs(params["w"])) * jnp.abs(params["w"])
  np.testing.assert_allclose(grown / step, prune.movement(params, grads)["w"], rtol=1e-3)
  for criterion in (prune.saliency, prune.movement, prune.fisher):
    with pytest.raises(ValueError, match="w: params"):
      criterion(params, {"w": jnp.ones([1, 3])})


def test_fisher_is_the_quadratic_loss_of_removing_a_weight():
  """Least squares with independent noise of variance 1: the Fisher information is the Hessian."""
  x = jnp.asarray(RNG.normal(size=(20000, 3)), jnp.float32)
  params = {"w": jnp.array([0.3, -0.2, 0.1])}
  noise = jnp.asarray(RNG.normal(size=20000), jnp.float32)
  loss = lambda params, x, y: 0.5 * (x @ params["w"] - y) ** 2  # noqa: E731
  y = x @ params["w"] + noise
  grads = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, x, y)
  scores = jnp.mean(jax.vmap(prune.fisher, in_axes=(None, 0))(params, grads)["w"], axis=0)
  clean = x @ params["w"]
  change = [float(jnp.mean(loss({"w": params["w"].at[i].set(0)}, x, clean))) for i in range(3)]
  np.testing.assert_allclose(scores, change, rtol=0.1)


@pytest.mark.parametrize("count", [0, 4, 9, 16, 24])
def test_blocks_go_as_a_whole(count):
  scores = jnp.asarray(RNG.random((4, 6)), jnp.float32)
  masks = np.asarray(prune.block(2, 3)(scores, count))
  parts = masks.reshape(2, 2, 2, 3)
  assert np.all(parts == parts[:, :1, :, :1])
  assert (~masks).sum() == count // 6 * 6
  totals = np.asarray(scores).reshape(2, 2, 2, 3).sum((1, 3))
  gone = ~parts[:, 0, :, 0]
  if gone.any() and not gone.all():
    assert totals[gone].max() <= totals[~gone].min()


def test_rows_and_columns_are_blocks():
  scores = jnp.array([[1.0, 2.0, 3.0], [9.0, 1.0, 1.0]])
  assert prune.block(1, 0)(scores, 3).tolist() == [[False] * 3, [True] * 3]
  assert prune.block(0, 1)(scores, 2).tolist() == [[True, False, True]] * 2
  with pytest.raises(ValueError, match="no multiples"):
    prune.block(2, 2)(scores, 2)


def test_each_output_loses_as_many():
  scores = jnp.asarray(RNG.random((2, 3, 4)), jnp.float32)
  masks = np.asarray(prune.each_output(axis=(0, 1))(scores, 8))
  assert (~masks).sum((0, 1)).tolist() == [2] * 4
  flat, kept = np.asarray(scores).reshape(6, 4), masks.reshape(6, 4)
  for column in range(4):
    lost = flat[~kept[:, column], column]
    assert lost.max() < flat[kept[:, column], column].min()
  np.testing.assert_array_equal(
    prune.each_output(axis=-1)(scores[0], 3), prune.each_output()(scores[0].T, 3).T
  )
