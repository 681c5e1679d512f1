"""Schedules: the formula, and a final sparsity that cannot be missed."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.prune.schedules import cubic, one_shot, periodic


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  start=st.integers(0, 60),
  length=st.integers(0, 80),
  every=st.integers(1, 100),
  final=st.floats(0, 1),
  share=st.floats(0, 1),
)
def test_cubic_cannot_miss_its_final_sparsity(start, length, every, final, share):
  initial = min(final * share, final)
  schedule = cubic(final, start=start, end=start + length, every=every, initial=initial)
  steps = jnp.arange(200)  # One shape for all: each operation compiles once.
  updates = np.asarray(jax.vmap(schedule.is_update)(steps))
  sparsity = np.asarray(jax.vmap(schedule.sparsity)(steps))
  assert updates[: start + length + 1].any()
  last = int(np.flatnonzero(updates)[-1])
  assert last == start + length
  assert sparsity[last] == np.float32(final)
  assert np.all(sparsity[last:] == np.float32(final))
  assert np.all(np.diff(sparsity) >= -1e-6)
  assert np.all(sparsity[:start] == 0)
  assert np.all(np.flatnonzero(updates)[:-1] % every == start % every)


def test_cubic_equals_the_published_formula():
  schedule = cubic(0.9, start=100, end=1100, every=100, initial=0.1)
  steps = np.arange(100, 1101)
  formula = 0.9 + (0.1 - 0.9) * (1 - (steps - 100) / 1000) ** 3
  np.testing.assert_allclose(jax.vmap(schedule.sparsity)(jnp.asarray(steps)), formula, atol=1e-6)


def test_steps_beyond_float32_are_exact():
  schedule = cubic(0.9, start=0, end=2**30 + 1, every=7)
  assert bool(schedule.is_update(2**30 + 1))
  assert not bool(schedule.is_update(2**30 + 2))
  assert float(schedule.sparsity(2**30 + 1)) == np.float32(0.9)


def test_one_shot_prunes_once_and_in_jit():
  schedule = one_shot(0.7, step=5)
  updates = [bool(jax.jit(schedule.is_update)(step)) for step in range(8)]
  assert updates == [False] * 5 + [True] + [False] * 2
  assert float(jax.jit(schedule.sparsity)(4)) == 0
  assert float(schedule.sparsity(7)) == np.float32(0.7)


def test_periodic_removes_the_same_share_of_what_is_left():
  schedule = periodic(0.9, every=5, rounds=4, start=3)
  steps = np.arange(40)
  updates = [bool(jax.jit(schedule.is_update)(step)) for step in steps]
  assert np.flatnonzero(updates).tolist() == [3, 8, 13, 18]
  left = np.array([1 - float(schedule.sparsity(step)) for step in steps])
  np.testing.assert_allclose(left[[3, 8, 13, 18]], 0.1 ** np.array([0.25, 0.5, 0.75, 1]), rtol=1e-5)
  assert np.all(left[:3] == 1)
  assert np.all(left[18:] == 1 - float(np.float32(0.9)))


@pytest.mark.parametrize(
  ("make", "match"),
  [
    (lambda: periodic(1.0, every=1, rounds=1), "less than 1"),
    (lambda: periodic(0.5, every=0, rounds=1), "every"),
    (lambda: one_shot(1.5), "final must lie"),
    (lambda: one_shot(0.5, step=-1), "negative"),
    (lambda: cubic(0.5, start=5, end=4), "start <= end"),
    (lambda: cubic(0.5, start=-1, end=4), "0 <= start"),
    (lambda: cubic(0.5, start=0, end=4, every=0), "every"),
    (lambda: cubic(0.5, start=0, end=4, initial=0.6), "exceeds"),
    (lambda: cubic(float("nan"), start=0, end=4), "final must lie"),
  ],
)
def test_bad_settings_are_refused(make, match):
  with pytest.raises(ValueError, match=match):
    make()
