"""The exponential of the sweeps against that of NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses.exponentials import exp


@pytest.mark.parametrize("compiled", [False, True])
def test_as_exact_as_float32_over_its_whole_range(compiled):
  near = -np.geomspace(1e-30, 1, 1001, dtype=np.float32)
  x = jnp.concatenate([jnp.linspace(-87.3, 0, 500_001), near])
  found = (jax.jit(exp) if compiled else exp)(x)
  exact = np.exp(np.asarray(x, np.float64))
  assert found.dtype == jnp.float32
  assert np.abs(np.asarray(found, np.float64) / exact - 1).max() < 2e-7
  assert float(found.max()) == 1.0


def test_what_is_impossible_has_no_mass_and_nan_stays():
  x = jnp.array([-jnp.inf, -1e30, -88.0, 0.0, -0.0, jnp.nan])
  for f in (exp, jax.jit(exp)):
    np.testing.assert_array_equal(f(x), [0, 0, 0, 1, 1, jnp.nan])


def test_other_platforms_take_their_own(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  x = jnp.linspace(-5, 0, 11)
  np.testing.assert_array_equal(exp(x), jnp.exp(x))
