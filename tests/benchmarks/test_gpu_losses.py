"""The race on a GPU, run here at tiny sizes with our functions alone."""

import functools

import jax
import jax.numpy as jnp
import pytest

from benchmarks import gpu_losses

SIZES = (32, 16, 96)


def test_it_checks_times_and_prints():
  result = gpu_losses.race(SIZES, rounds=2, device=None)
  assert set(result["cases"]) == {"cross_entropy", "kl", "jensen_shannon"}
  for variants in result["cases"].values():
    assert set(variants) == {"kdjax", "lean"}
    assert variants["kdjax"]["times_ours"] == 1.0
    assert all(max(found["errors"].values()) < gpu_losses.CLOSE for found in variants.values())
  text = gpu_losses.table_of(result)
  assert text.count("| kdjax |") == 3
  assert "Missing: liger." in text


def test_what_is_wrong_is_not_timed():
  def wrong(case, student, args):
    return 1.1 * gpu_losses.ours(case, student, args)

  makers = {"kdjax": functools.partial(gpu_losses.jax_call, wrong)}
  with pytest.raises(RuntimeError, match=r"kdjax is wrong by 0\.1"):
    gpu_losses.compare(makers, "kl", SIZES, rounds=1)


def test_inputs_are_of_the_asked_dtype():
  args = gpu_losses.inputs(*SIZES)
  assert args["query"].dtype == args["teacher_table"].dtype == jnp.bfloat16
  assert args["table"].shape == (96, 16)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
  gpu_losses.main("nowhere/at/all", SIZES, rounds=1)
  assert "No GPU: JAX runs on cpu. Nothing was measured." in capsys.readouterr().out
