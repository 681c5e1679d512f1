"""Eight virtual CPU devices, quick compiles, no silent rank promotion: before JAX starts."""

import gc
import importlib.metadata
import itertools
import os
import pathlib

# The time of the tests is that of compiling: without LLVM's optimisations it is a third less, and
# half of what is left without the emitters of fused loops, which jaxlib 0.11 always uses. A program
# in one part has a third of the mappings of one in 32 (see `few_programs`).
os.environ["XLA_FLAGS"] = " ".join(
  (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_use_fusion_emitters=false"
    if importlib.metadata.version("jaxlib").startswith("0.10.")
    else "",
    os.environ.get("XLA_FLAGS", ""),
  )
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "agg")
# ranx takes a minute to compile; numba reads this when it is first imported, by bm25s perhaps.
os.environ["NUMBA_DISABLE_JIT"] = "1"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes so many objects that the collector would take a twentieth of the time.
gc.freeze()
gc.set_threshold(20_000)

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


# Every compiled program is some memory, a megabyte or so, and some mappings of it, of which Linux
# gives a process 65,530: past them the compiler dies.
MAPPINGS = pathlib.Path("/proc/self/maps")
_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs():
  """Forgets compiled programs before there are too many of them."""
  yield
  if next(_tests) % 32 == 0 and MAPPINGS.exists():
    with MAPPINGS.open("rb") as lines:
      if sum(1 for _ in lines) > 15_000:
        jax.clear_caches()


@pytest.fixture
def shared_data():
  """The folder of real data beside the checkout; tests that need it skip where it is absent."""
  if not SHARED_DATA.is_dir():
    pytest.skip(f"real data not found beside the checkout: {SHARED_DATA.name}/ is absent")
  return SHARED_DATA
