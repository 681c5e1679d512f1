"""Eight virtual CPU devices, and no silent rank promotion, before JAX starts."""

import os
import pathlib

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data():
  """The folder of real data beside the checkout; tests that need it skip where it is absent."""
  if not SHARED_DATA.is_dir():
    pytest.skip(f"real data not found beside the checkout: {SHARED_DATA.name}/ is absent")
  return SHARED_DATA
