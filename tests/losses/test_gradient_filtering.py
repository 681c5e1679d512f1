"""Blocks of items that give no gradient: within the bound, and only where there is no mass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from kdjax import losses
from kdjax.losses import blocks, factored
from kdjax.types import FactoredLogits

TOKENS, ITEMS, BLOCK = 24, 192, 16


def peaked(width, seed, *, slope=0.3):
  """Logits that fall along the catalogue, as where items are sorted by popularity."""
  rng = np.random.default_rng(seed)
  query, table = rng.normal(size=(TOKENS, width)), rng.normal(size=(ITEMS, width))
  arrays = query, table, -slope * np.arange(ITEMS)
  return FactoredLogits(*(jnp.asarray(x, jnp.float32) for x in arrays))


LABELS = jnp.arange(TOKENS) % 12
# The bound of a token's gradient by its logits, in epsilon; the loss with its options.
CASES = {
  "cross_entropy": (1.0, lambda s, t, **o: losses.catalog_cross_entropy_loss(s, LABELS, **o)),
  "kl": (3.0, lambda s, t, **o: losses.catalog_kl_loss(s, t, temperature=1.5, **o)),
  "distillation": (
    0.4 + 2 * 1.5 * 0.6,
    lambda s, t, **o: losses.catalog_distillation_loss(
      s, t, LABELS, label_weight=0.4, distill_weight=0.6, temperature=1.5, **o
    ),
  ),
}


def check(found, exact, eps, student, weight=1.0):
  """Errors of all gradients against what is left out of every token's softmaxes."""
  errors = jax.tree.map(lambda a, e: np.abs(np.float64(a) - np.float64(e)), found, exact)
  rounding = 2e-6 * weight
  longest = np.linalg.norm(student.table, axis=-1).max()
  assert np.linalg.norm(errors.query, axis=-1).max() <= weight * eps * longest + rounding
  norms = np.linalg.norm(student.query, axis=-1)
  assert (
    np.linalg.norm(errors.table, axis=-1).sum() <= weight * eps * norms.sum() + ITEMS * rounding
  )
  assert errors.bias.sum() <= weight * eps * TOKENS + ITEMS * rounding


@pytest.mark.parametrize("eps", [1e-6, 1e-2, 0.5, 1e3])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", list(CASES))
def test_the_error_is_within_the_bound(name, seed, eps, monkeypatch):
  monkeypatch.setattr(blocks, "_BLOCK", 8 * BLOCK)  # Several blocks of tokens too.
  bound, loss = CASES[name]
  student, teacher = peaked(6, seed), peaked(9, seed + 5, slope=0.2)

  @jax.jit
  def both(student):
    exact = jax.value_and_grad(lambda s: loss(s, teacher, block=BLOCK, reduce_fn=jnp.sum))
    near = jax.value_and_grad(
      lambda s: loss(s, teacher, block=BLOCK, reduce_fn=jnp.sum, filter_eps=eps)
    )
    return exact(student), near(student)

  (value, exact), (same, found) = both(student)
  assert value == same
  check(found, exact, min(eps, 1.0), student, bound)


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("reduce_fn", [jnp.mean, None], ids=["in the sweep", "on the way back"])
def test_what_has_no_mass_gets_no_gradient_and_all_else_its_own(name, reduce_fn):
  _, loss = CASES[name]
  student, teacher = peaked(6, 0), peaked(9, 5)

  def total(student, eps):
    return jnp.sum(loss(student, teacher, block=BLOCK, reduce_fn=reduce_fn, filter_eps=eps))

  grad = jax.jit(jax.grad(total), static_argnums=1)
  exact, found = grad(student, None), grad(student, 1e-3)
  gone = np.all(np.asarray(found.bias).reshape(-1, BLOCK) == 0, axis=1)
  assert 3 <= gone.sum() <= ITEMS // BLOCK - 3
  assert not np.any(np.all(np.asarray(exact.bias).reshape(-1, BLOCK) == 0, axis=1))
  kept = np.repeat(~gone, BLOCK)
  np.testing.assert_allclose(found.table[kept], exact.table[kept], rtol=1e-5, atol=1e-7)


def test_the_teacher_counts_too():
  """Where the student has no mass and the teacher has, the gradient stays."""
  student, teacher = peaked(6, 0, slope=0.5), peaked(9, 5, slope=-0.5)
  grad = jax.jit(jax.grad(lambda s, eps: losses.catalog_kl_loss(
    s, teacher, block=BLOCK, filter_eps=eps)), static_argnums=1)  # fmt: skip
  exact, found = grad(student, None), grad(student, 1e-3)
  last = slice(ITEMS - BLOCK, ITEMS)
  np.testing.assert_allclose(found.table[last], exact.table[last], rtol=1e-5)
  middle = slice(6 * BLOCK, 7 * BLOCK)
  assert not np.any(found.table[middle])
  assert np.any(exact.table[middle])


def test_tokens_that_do_not_count_hold_nothing_back():
  student, where = peaked(6, 0), jnp.arange(TOKENS) != 3
  odd = student._replace(query=student.query.at[3].set(50.0))

  @jax.jit
  def grad(student):
    return jax.grad(
      lambda s: losses.catalog_cross_entropy_loss(
        s, LABELS, block=BLOCK, where=where, filter_eps=1e-3
      )
    )(student)

  for a, e in zip(grad(odd), grad(student), strict=True):
    np.testing.assert_array_equal(a, e)


def test_many_students_at_once():
  teacher = peaked(9, 5)
  students = jax.tree.map(lambda *x: jnp.stack(x), peaked(6, 0), peaked(6, 1))
  grad = jax.grad(lambda s: losses.catalog_kl_loss(s, teacher, block=BLOCK, filter_eps=1e-3))
  found = jax.jit(jax.vmap(grad))(students)
  for i in range(2):
    alone = jax.jit(grad)(jax.tree.map(lambda x, i=i: x[i], students))
    for a, e in zip(found, alone, strict=True):
      np.testing.assert_allclose(a[i], e, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", list(CASES))
def test_split_over_a_mesh_axis(name):
  """Every device leaves out blocks of its own."""
  bound, loss = CASES[name]
  student, teacher, eps = peaked(6, 0), peaked(9, 5), 1e-2
  mesh = Mesh(np.array(jax.devices()[:4]), ("model",))
  specs = FactoredLogits(P(), P("model"), P("model"))
  split = jax.shard_map(
    lambda s, t: loss(s, t, block=BLOCK, reduce_fn=jnp.sum, axis_name="model", filter_eps=eps),
    mesh=mesh, in_specs=(specs, specs), out_specs=P(),
  )  # fmt: skip
  found = jax.jit(jax.grad(split))(student, teacher)
  exact = jax.jit(jax.grad(lambda s: loss(s, teacher, reduce_fn=jnp.sum)))(student)
  assert np.any(np.all(np.asarray(found.bias).reshape(-1, BLOCK) == 0, axis=1))
  check(found, exact, eps, student, bound)


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_kept_exponentials_or_logits_computed_twice(eps, monkeypatch):
  """Both roads of large catalogues lead to the same gradients."""
  student, teacher, found = peaked(6, 0), peaked(9, 5), []
  for keep in (False, True):
    chosen = blocks.Blocks(8, BLOCK, None, keep)
    monkeypatch.setattr(factored, "choose_blocks", lambda *_, chosen=chosen: chosen)
    loss = lambda s: losses.catalog_kl_loss(s, teacher, filter_eps=eps)  # noqa: E731
    found.append(jax.jit(jax.grad(loss))(student))
  for a, b in zip(*found, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(a == 0, b == 0)


def test_blocks_without_gradient_lose_no_labels(monkeypatch):
  """Where all tokens meet in a block, its labels must count whatever else it lacks."""
  student, found = peaked(6, 0), []
  for direct in (False, True):
    chosen = blocks.Blocks(len(LABELS), BLOCK, direct=direct)
    monkeypatch.setattr(factored, "choose_blocks", lambda *_, chosen=chosen: chosen)
    loss = lambda s: losses.catalog_cross_entropy_loss(s, LABELS, filter_eps=0.5)  # noqa: E731
    found.append(jax.jit(jax.grad(loss))(student))
  for a, b in zip(*found, strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_negative_threshold_is_refused():
  with pytest.raises(ValueError, match="filter_eps must not be negative"):
    losses.catalog_cross_entropy_loss(peaked(6, 0), LABELS, filter_eps=-1.0)
