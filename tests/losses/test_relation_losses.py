"""Identities and traps of the losses between examples, and of the memory bank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from kdjax import losses
from kdjax.losses import relations

RELATIONS = [
  losses.rkd_distance_loss,
  losses.rkd_angle_loss,
  losses.similarity_preserving_loss,
  losses.correlation_congruence_loss,
  losses.probabilistic_transfer_loss,
  losses.cka_loss,
]


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rotation(size):
  return np.linalg.qr(normal(size, size, seed=9))[0]


@pytest.mark.parametrize("loss", RELATIONS)
def test_rotations_and_scales_are_no_difference(loss):
  teacher = normal(5, 4)
  value, gradient = jax.value_and_grad(loss)(3 * teacher @ rotation(4), teacher)
  assert abs(value) < 1e-6
  assert np.abs(gradient).max() < 1e-5


@pytest.mark.parametrize("loss", [losses.rkd_distance_loss, losses.rkd_angle_loss, losses.cka_loss])
def test_shifts_are_no_difference(loss):
  teacher = normal(5, 4)
  assert abs(loss(teacher + 2, teacher)) < 1e-6


@pytest.mark.parametrize("loss", RELATIONS)
def test_the_order_of_examples_does_not_matter(loss):
  student, teacher = normal(5, 4), normal(5, 3, seed=1)
  order = np.array([3, 1, 4, 0, 2])
  np.testing.assert_allclose(
    loss(student[order], teacher[order], reduce_fn=None),
    np.asarray(loss(student, teacher, reduce_fn=None))[order],
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("loss", [losses.rkd_distance_loss, losses.probabilistic_transfer_loss])
def test_one_example_has_no_partner(loss):
  where = np.array([False, True, False])
  value, gradient = jax.value_and_grad(loss)(normal(3, 4), normal(3, 4, seed=1), where=where)
  assert value == 0
  assert np.all(np.asarray(gradient) == 0)


def test_two_examples_make_no_angle():
  where = np.array([False, True, True])
  value, gradient = jax.value_and_grad(losses.rkd_angle_loss)(
    normal(3, 4), normal(3, 4, seed=1), where=where
  )
  assert value == 0
  assert np.all(np.asarray(gradient) == 0)


def test_equal_teacher_examples_count_in_the_mean_distance():
  """The paper's mean runs over all pairs; some code leaves out those at distance 0."""
  student, teacher = np.float32([[0], [1], [3]]), np.float32([[0], [0], [3]])
  ours = np.abs(student - student.T) / 2
  theirs = np.abs(teacher - teacher.T) / 2
  difference = np.abs(ours - theirs)
  expected = np.where(difference <= 1, difference**2 / 2, difference - 0.5).sum() / 6
  np.testing.assert_allclose(losses.rkd_distance_loss(student, teacher), expected, rtol=1e-6)


def test_similarity_is_the_frobenius_norm_over_the_squared_batch():
  student, teacher = normal(5, 2, 3), normal(5, 4, seed=1)
  grams = [x.reshape(5, -1) @ x.reshape(5, -1).T for x in (student, teacher)]
  s, t = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in grams)
  np.testing.assert_allclose(
    losses.similarity_preserving_loss(student, teacher),
    np.linalg.norm(s - t) ** 2 / 5**2,
    rtol=1e-5,
  )


def test_congruence_of_high_order_is_the_gaussian_kernel():
  student, teacher = normal(4, 3), normal(4, 3, seed=1)
  kernels = []
  for x in (student, teacher):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    kernels.append(np.exp(-0.4 * ((unit[:, None] - unit[None]) ** 2).sum(-1)))
  np.testing.assert_allclose(
    losses.correlation_congruence_loss(student, teacher, order=12),
    ((kernels[0] - kernels[1]) ** 2).mean(),
    rtol=1e-4,
  )


def test_opposite_examples_are_never_neighbours():
  """A similarity of exactly 0 on either side: finite, and 0 times log 0 is 0."""
  student = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
  teacher = jnp.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]])
  for pair in ((student, teacher), (teacher, student)):
    value, gradient = jax.value_and_grad(losses.probabilistic_transfer_loss)(*pair)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


def test_cka_equals_its_formula_on_features():
  student, teacher = normal(7, 2, 2), normal(7, 3, seed=1)
  x, y = (a.reshape(7, -1) - a.reshape(7, -1).mean(0) for a in (student, teacher))
  expected = np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
  np.testing.assert_allclose(losses.linear_cka(student, teacher), expected, rtol=1e-5)
  np.testing.assert_allclose(losses.cka_loss(student, teacher), 1 - expected, rtol=1e-5)


def test_cka_leaves_masked_examples_out():
  student, teacher = normal(7, 4), normal(7, 3, seed=1)
  where = np.arange(7) != 2
  spoiled = np.where(where[:, None], student, np.nan)
  expected = losses.linear_cka(student[where], teacher[where])
  np.testing.assert_allclose(losses.linear_cka(spoiled, teacher, where=where), expected, rtol=1e-5)


def test_cka_of_what_does_not_vary_is_zero():
  teacher = normal(4, 3)
  assert losses.linear_cka(jnp.ones([4, 2]), teacher) == 0
  value, gradient = jax.value_and_grad(losses.cka_loss)(jnp.ones([4, 2]), teacher)
  np.testing.assert_allclose(value, 1, rtol=1e-6)
  assert np.all(np.asarray(gradient) == 0)


def test_info_nce_without_direction_is_a_guess():
  loss = losses.info_nce_loss(jnp.zeros([5, 3]), normal(5, 3))
  np.testing.assert_allclose(loss, np.log(5), rtol=1e-6)


def test_info_nce_of_more_negatives_by_mask():
  """Masked examples are no negatives: the guess is among those that count."""
  where = np.array([True, True, False, True])
  loss = losses.info_nce_loss(jnp.zeros([4, 3]), normal(4, 3), where=where)
  np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)


def test_temperature_must_be_positive():
  x, ids = jnp.ones([2, 3]), jnp.zeros([2, 2], int)
  with pytest.raises(ValueError, match="temperature must be positive"):
    losses.info_nce_loss(x, x, temperature=0)
  with pytest.raises(ValueError, match="temperature must be positive"):
    losses.crd_loss(x, x, ids, temperature=-1.0)


def test_negatives_that_do_not_exist_are_refused():
  key, own = jax.random.key(0), jnp.zeros([1], int)
  for numbers in ({"num_examples": 1, "num_negatives": 2}, {"num_examples": 9, "num_negatives": 0}):
    with pytest.raises(ValueError, match="cannot draw"):
      losses.contrast_ids(key, own, **numbers)
  with pytest.raises(ValueError, match="with K > 0"):
    losses.crd_loss(jnp.ones([1, 3]), jnp.ones([2, 3]), own[:, None])
  bank = losses.init_memory(key, num_examples=2, dim=3)
  with pytest.raises(ValueError, match="momentum must lie"):
    losses.update_memory(bank, jnp.ones([1, 3]), jnp.ones([1, 3]), own, momentum=1.5)


def test_an_id_out_of_range_that_counts_is_nan():
  embeddings, memory = normal(2, 3), normal(4, 3, seed=1)
  for wrong in (-1, 4):
    ids = np.array([[0, 1], [2, wrong]])
    each = losses.crd_loss(embeddings, memory, ids, reduce_fn=None)
    assert np.isfinite(each[0])
    assert np.isnan(each[1])
    assert np.isfinite(losses.crd_loss(embeddings, memory, ids, where=np.array([True, False])))


def test_crd_trains_a_head_of_the_teacher_against_the_students_memory():
  """The published objective has both sides: swapped roles give the head its gradient."""
  bank = losses.init_memory(jax.random.key(0), num_examples=6, dim=3)
  features, ids = normal(2, 4), np.array([[0, 1, 2], [3, 4, 5]])

  def objective(student, head):
    to_teacher = losses.crd_loss(student, bank.teacher, ids)
    return to_teacher + losses.crd_loss(features @ head, bank.student, ids)

  gradients = jax.grad(objective, (0, 1))(normal(2, 3, seed=1), normal(4, 3, seed=2))
  assert all(np.any(np.asarray(g) != 0) for g in gradients)


def test_contrast_ids_are_uniform_over_the_others():
  own = np.repeat(np.arange(5), 4000)
  ids = losses.contrast_ids(jax.random.key(1), own, num_examples=5, num_negatives=2)
  assert ids.shape == (20000, 3)
  assert ids.dtype == jnp.int32
  assert np.all(np.asarray(ids[:, 0]) == own)
  for example in range(5):
    counts = np.bincount(np.asarray(ids[own == example, 1:]).reshape(-1), minlength=5)
    assert counts[example] == 0
    assert scipy.stats.chisquare(np.delete(counts, example)).pvalue > 1e-4


def test_memory_moves_only_where_it_should():
  bank = losses.init_memory(jax.random.key(0), num_examples=5, dim=3)
  student, teacher = normal(2, 3), normal(2, 3, seed=1)
  ids, where = jnp.array([3, 1]), np.array([True, False])
  moved = jax.jit(losses.update_memory)(bank, student, teacher, ids, momentum=0.25, where=where)
  for before, after, new in zip(bank, moved, (student, teacher), strict=True):
    expected = 0.25 * np.float64(before[3]) + 0.75 * np.float64(new[0]) / np.linalg.norm(new[0])
    np.testing.assert_allclose(after[3], expected / np.linalg.norm(expected), rtol=1e-5)
    untouched = np.arange(5) != 3
    assert np.all(np.asarray(after)[untouched] == np.asarray(before)[untouched])


def test_masked_garbage_does_not_reach_the_memory():
  bank = losses.init_memory(jax.random.key(0), num_examples=3, dim=2)
  garbage = jnp.array([[jnp.nan, 1.0]])
  off = jnp.array([False])
  moved = losses.update_memory(bank, garbage, garbage, jnp.array([-1]), where=off)
  assert all(np.array_equal(a, b) for a, b in zip(bank, moved, strict=True))
  assert losses.memory_normalizer(garbage, bank.teacher, jnp.array([[-1]]), where=off) == 0


def test_memory_starts_near_unit_length_and_differs_by_side():
  bank = losses.init_memory(jax.random.key(0), num_examples=2000, dim=16)
  assert bank.student.shape == bank.teacher.shape == (2000, 16)
  for side in bank:
    np.testing.assert_allclose(np.mean(np.sum(np.square(side), -1)), 1, rtol=0.03)
  assert not np.array_equal(bank.student, bank.teacher)


@pytest.mark.parametrize("masked", [False, True])
def test_distances_of_many_vectors_come_from_products(monkeypatch, masked):
  rng = np.random.default_rng(5)
  student = jnp.asarray(rng.normal(size=(12, 6)) + 50.0, jnp.float32)  # Far from the origin.
  student = student.at[3].set(student[7])  # Equal ones have no distance and no gradient.
  teacher = jnp.asarray(rng.normal(size=(12, 9)), jnp.float32)
  where = jnp.asarray(rng.random(12) < 0.8) if masked else None
  fn = jax.value_and_grad(lambda s: losses.rkd_distance_loss(s, teacher, where=where))
  value, gradient = fn(student)
  monkeypatch.setattr(relations, "DIRECT", 0)
  other_value, other_gradient = fn(student)
  np.testing.assert_allclose(other_value, value, rtol=1e-4)
  np.testing.assert_allclose(other_gradient, gradient, rtol=1e-3, atol=1e-5)


def test_no_array_of_pairs_times_width_is_built_for_many_vectors():
  shape = jax.ShapeDtypeStruct((512, 128), jnp.float32)
  program = str(jax.make_jaxpr(jax.grad(losses.rkd_distance_loss))(shape, shape))
  assert "512,512]" in program
  assert "512,512,128]" not in program
