"""The k largest in two stages are those of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.order import top_k


def check(values, k):
  found = jax.jit(top_k, static_argnums=1)(values, k)
  for a, e in zip(found, jax.lax.top_k(values, k), strict=True):
    np.testing.assert_array_equal(a, e)
    assert a.dtype == e.dtype


@pytest.mark.parametrize("shape", [(3, 5000), (2, 3, 2049), (4096,), (2, 100)])
@pytest.mark.parametrize("k", [0, 1, 7, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_as_one_stage(shape, k, seed):
  rng = np.random.default_rng(seed)
  check(jnp.asarray(rng.normal(size=shape), jnp.float32), k)
  # Many ties, within groups and between them.
  check(jnp.asarray(rng.integers(0, 4, size=shape), jnp.float32), k)
  # Hardly any that are possible.
  check(jnp.where(rng.random(shape) < 0.002, rng.random(shape), -jnp.inf), k)


def test_all_and_equal():
  check(jnp.zeros((2, 3000)), 50)
  check(jnp.asarray(np.random.default_rng(0).normal(size=(2, 3000)), jnp.bfloat16), 3000)


def test_vmap():
  values = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4096)), jnp.float32)
  for a, e in zip(jax.vmap(lambda x: top_k(x, 5))(values), top_k(values, 5), strict=True):
    np.testing.assert_array_equal(a, e)
