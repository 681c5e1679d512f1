import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import lora
from kdjax.quant import dequantize, is_qtensor, quantize_params
from kdjax.store import load_params, save_params

KEY = jax.random.key(0)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMS = {
  "table": {"embedding": normal(11, 4)},
  "dense": {"kernel": normal(6, 5, seed=1), "bias": normal(5)},
  "conv": {"kernel": normal(3, 3, 2, 7, seed=2)},
}


def test_only_kernels_get_adapters_and_nothing_changes_yet():
  adapters = lora.init(PARAMS, KEY, rank=2)
  assert jax.tree.map(jnp.shape, adapters) == {
    "dense": {"kernel": {"a": (6, 2), "b": (2, 5)}},
    "conv": {"kernel": {"a": (3, 3, 2, 2), "b": (2, 7)}},
  }
  assert np.abs(adapters["dense"]["kernel"]["a"]).max() <= 6**-0.5
  merged = lora.merge(PARAMS, adapters, scale=3.0)
  assert jax.tree.all(jax.tree.map(jnp.array_equal, merged, PARAMS))


@pytest.mark.parametrize("axes", [(0,), (1, 2), (2,), (0, 1)])
def test_the_change_is_the_product_of_the_factors(axes):
  params = {"w": normal(4, 3, 6)}
  rule = lambda path, leaf: axes  # noqa: E731
  adapters = lora.init(params, KEY, rank=2, axis_rule=rule)
  adapters["w"]["b"] = normal(*adapters["w"]["b"].shape, seed=3)
  merged = lora.merge(params, adapters, scale=0.25, axis_rule=rule)["w"]
  outs = tuple(set(range(3)) - set(axes))
  change = np.transpose(np.asarray(merged - params["w"], np.float64), axes + outs)
  rows = np.prod([params["w"].shape[axis] for axis in axes])
  a, b = (np.asarray(adapters["w"][n], np.float64) for n in "ab")
  np.testing.assert_allclose(
    change.reshape(rows, -1), 0.25 * a.reshape(rows, 2) @ b.reshape(2, -1), atol=1e-6
  )
  assert np.linalg.matrix_rank(change.reshape(rows, -1), tol=1e-4) == 2


def test_gradients_are_those_of_the_weight_through_the_factors():
  adapters = lora.init(PARAMS, KEY, rank=2)
  g = normal(6, 5, seed=4)
  loss = lambda adapters: jnp.sum(g * lora.merge(PARAMS, adapters, scale=2.0)["dense"]["kernel"])  # noqa: E731
  grads = jax.jit(jax.grad(loss))(adapters)
  np.testing.assert_array_equal(grads["dense"]["kernel"]["a"], np.zeros([6, 2]))
  expected = 2 * np.asarray(adapters["dense"]["kernel"]["a"]).T @ g
  np.testing.assert_allclose(grads["dense"]["kernel"]["b"], expected, rtol=1e-5)


def test_a_change_of_that_rank_is_learned():
  x, base = normal(64, 8), normal(8, 6, seed=1)
  goal = x @ (base + normal(8, 2, seed=2) @ normal(2, 6, seed=3))
  optimizer = optax.adam(0.05)

  def run(rank):
    def loss(adapters):
      return jnp.mean((x @ lora.merge({"kernel": base}, adapters)["kernel"] - goal) ** 2)

    def step(_, carry):
      adapters, state = carry
      updates, state = optimizer.update(jax.grad(loss)(adapters), state)
      return optax.apply_updates(adapters, updates), state

    adapters = lora.init({"kernel": base}, KEY, rank=rank)
    carry = jax.lax.fori_loop(0, 600, step, (adapters, optimizer.init(adapters)))
    return float(loss(carry[0])), float(loss(adapters))

  one, two = run(1), run(2)
  assert two[0] < 1e-4 * two[1]
  assert one[0] > 1e-2 * one[1]


def test_rounded_weights_stay_under_their_adapters(tmp_path):
  int4 = quantize_params(PARAMS, bits=4)
  adapters = lora.init(int4, KEY, rank=1)
  adapters["dense"]["kernel"]["b"] = normal(1, 5)
  merged = lora.merge(int4, adapters)
  assert is_qtensor(merged["table"]["embedding"])
  change = adapters["dense"]["kernel"]["a"] @ adapters["dense"]["kernel"]["b"]
  np.testing.assert_allclose(
    merged["dense"]["kernel"], dequantize(int4["dense"]["kernel"]) + change, atol=1e-6
  )
  # Adapters are params like others: small files of their own.
  assert save_params(tmp_path / "adapters", adapters) < 2500
  again, _ = load_params(tmp_path / "adapters")
  assert jax.tree.all(jax.tree.map(jnp.array_equal, again, adapters))


def test_dtypes_are_kept():
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  adapters = lora.init(half, KEY, rank=1)
  assert {x.dtype.name for x in jax.tree.leaves(adapters)} == {"float32"}
  assert {x.dtype.name for x in jax.tree.leaves(lora.merge(half, adapters))} == {"bfloat16"}


def test_what_does_not_fit_is_named():
  with pytest.raises(ValueError, match="rank=6 does not fit dense/kernel: at least 1, at most 5"):
    lora.init({"dense": PARAMS["dense"]}, KEY, rank=6)
  with pytest.raises(ValueError, match="no leaf was selected"):
    lora.init({"bias": jnp.ones(3)}, KEY)
  adapters = lora.init(PARAMS, KEY, rank=1)
  with pytest.raises(ValueError, match="adapters of no leaf: conv/kernel"):
    lora.merge({"dense": PARAMS["dense"]}, adapters)
  other = {"dense": {"kernel": jnp.ones([5, 6])}, "conv": PARAMS["conv"]}
  with pytest.raises(ValueError, match=r"dense/kernel: a \(6, 1\) and b \(1, 5\)"):
    lora.merge(other, adapters)
