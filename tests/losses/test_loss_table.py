"""Every loss, through every property."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import CASES, EXAMPLES

from kdjax import losses
from kdjax.reduce import Mean, totals


def over(cases):
  return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


table = over(CASES)
divergences = over([case for case in CASES if case.equal])
with_closed_form = over([case for case in CASES if case.gradient])
distillations = over([case for case in CASES if case.teachers])
KEEP = np.arange(EXAMPLES) % 3 != 1
HALF = EXAMPLES // 2


def args_of(case, seed=0):
  return [jax.tree.map(np.asarray, arg) for arg in case.make(np.random.default_rng(seed))]


def on_rows(case, args, fn):
  """Applies `fn` to the args that have an example axis."""
  return [a if i in case.shared else fn(a) for i, a in enumerate(args)]


def row_options(case):
  """Options that have an example axis, as the rows have."""
  options = case.options.items()
  return {k: v for k, v in options if isinstance(v, np.ndarray) and v.shape[:1] == (EXAMPLES,)}


@functools.cache
def compiled(case_id, reduce_fn, argnums):
  """`fn(args, where, row_options) -> (value, grads)`, compiled once for all tests."""
  (case,) = (case for case in CASES if case.id == case_id)

  def loss(where, rows, *args):
    return case.loss(*args, **{**case.options, **rows}, where=where, reduce_fn=reduce_fn)

  def run(args, where, rows):
    if not argnums:
      return loss(where, rows, *args), ()
    return jax.value_and_grad(loss, tuple(i + 2 for i in argnums))(where, rows, *args)

  return jax.jit(run)


def run(case, args, *, where=None, reduce_fn=jnp.mean, argnums=None, rows=None):
  """(value, gradients of the student's args) of the compiled loss."""
  argnums = case.students if argnums is None else argnums
  argnums = () if reduce_fn in (None, totals) else tuple(argnums)
  rows = row_options(case) if rows is None else rows
  return compiled(case.id, reduce_fn, argnums)(args, where, rows)


def each(case, args, **kwargs):
  return np.asarray(run(case, args, reduce_fn=None, **kwargs)[0])


def where_of(case, args, keep=KEEP):
  """`keep` over the examples, of the shape of the unreduced loss."""
  shape = each(case, args).shape
  return np.array(np.broadcast_to(keep.reshape(-1, *[1] * (len(shape) - 1)), shape))


def assert_close(actual, expected, **tolerance):
  leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
  for a, e in leaves:
    np.testing.assert_allclose(a, e, **tolerance)


def finite(values):
  return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(values))


def test_every_public_loss_has_a_case():
  public = {name for name in losses.__all__ if name.endswith("_loss")}
  assert public == {case.loss.__name__ for case in CASES}


def test_case_ids_are_unique():
  assert len({case.id for case in CASES}) == len(CASES)


@table
def test_equals_the_oracle(case):
  args = args_of(case)
  expected = case.oracle(*args, **case.options)
  assert expected.dtype == np.float64
  value, _ = run(case, args, reduce_fn=None)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(run(case, args)[0], expected.mean(), rtol=2e-5)
  np.testing.assert_allclose(run(case, args, reduce_fn=jnp.sum)[0], expected.sum(), rtol=2e-5)


@with_closed_form
def test_gradient_equals_the_closed_form(case):
  args = args_of(case)
  _, grads = run(case, args, reduce_fn=jnp.sum)
  expected = case.gradient(*args, **case.options)
  np.testing.assert_allclose(grads[0], expected, rtol=2e-5, atol=2e-6)


@table
def test_gradient_equals_differences_of_the_oracle(case):
  """Also of the args without a closed form, along one random direction each."""
  args = args_of(case)
  rng = np.random.default_rng(1)
  _, grads = run(case, args, reduce_fn=jnp.sum)
  for position, grad in zip(case.students, grads, strict=True):
    step = rng.normal(size=args[position].shape)

    def along(epsilon, position=position, step=step):
      moved = list(args)
      moved[position] = np.float64(args[position]) + epsilon * step
      return case.oracle(*moved, **case.options).sum()

    expected = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(np.sum(np.float64(grad) * step), expected, rtol=1e-4, atol=1e-4)


@distillations
def test_teacher_gets_no_gradient(case):
  _, grads = run(case, args_of(case), argnums=case.teachers)
  assert len(grads) == len(case.teachers)
  for grad in grads:
    assert np.all(np.asarray(grad) == 0)


@divergences
def test_zero_with_zero_gradient_at_equality(case):
  args = args_of(case)
  for student, teacher in case.equal:
    args[teacher] = args[student]
  values = each(case, args)
  np.testing.assert_allclose(values, np.zeros_like(values), atol=1e-6)
  for grad in run(case, args, reduce_fn=jnp.sum)[1]:
    np.testing.assert_allclose(grad, np.zeros_like(grad), atol=1e-6)


@table
def test_masked_equals_removed(case):
  args = args_of(case)
  where = where_of(case, args)
  rows = {k: v[KEEP] for k, v in row_options(case).items()}
  expected = each(case, on_rows(case, args, lambda a: a[KEEP]), rows=rows)
  np.testing.assert_allclose(run(case, args, where=where)[0], expected.mean(), rtol=1e-5)
  total, _ = run(case, args, where=where, reduce_fn=jnp.sum)
  np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)
  values = each(case, args, where=where)
  np.testing.assert_allclose(values[KEEP], expected, rtol=1e-5, atol=1e-6)
  assert np.all(values[~KEEP] == 0)


@table
def test_masked_garbage_reaches_neither_value_nor_gradient(case):
  args = args_of(case)
  where = where_of(case, args)

  def spoil(a):
    bad = np.float32(np.nan) if a.dtype == np.float32 else np.array(-1, a.dtype)
    return np.where(KEEP.reshape(-1, *[1] * (a.ndim - 1)), a, bad)

  spoiled = on_rows(case, args, spoil)
  for reduce_fn in (jnp.mean, jnp.sum):
    actual = run(case, spoiled, where=where, reduce_fn=reduce_fn)
    expected = run(case, args, where=where, reduce_fn=reduce_fn)
    assert_close(actual, expected, rtol=1e-5, atol=1e-7)
    assert finite(actual)


@table
def test_all_masked_is_zero_with_zero_gradient(case):
  args = args_of(case)
  where = np.zeros_like(where_of(case, args))
  for reduce_fn in (jnp.mean, jnp.sum):
    for leaf in jax.tree.leaves(run(case, args, where=where, reduce_fn=reduce_fn)):
      assert np.all(np.asarray(leaf) == 0)


@table
def test_nan_that_counts_stays_visible(case):
  for position in case.students:
    args = args_of(case)
    args[position] = args[position].copy()
    args[position].reshape(-1)[0] = np.nan
    assert np.isnan(run(case, args)[0])


@table
def test_finite_at_the_edges(case):
  args = args_of(case)
  rng = np.random.default_rng(2)

  def extreme(a, choices):
    chosen = rng.choice(np.array(choices, np.float32), size=a.shape)
    return np.where(rng.random(a.shape) < 0.2, a, chosen).astype(np.float32)

  scenes = [
    lambda a: extreme(a, [1e4, -1e4]),
    lambda a: extreme(a, [0.5, -np.inf]),
    lambda a: extreme(a, [-np.inf, 1e4, -1e4]),
    lambda a: np.full_like(a, -np.inf),
  ]
  for positions in {case.edges, case.edges[:1], case.edges[1:]}:
    for scene in scenes:
      spoiled = [scene(a) if i in positions else a for i, a in enumerate(args)]
      assert finite(run(case, spoiled))


@table
def test_exact_at_ten_thousand(case):
  args = [np.float32(a * 4e3) if i in case.edges else a for i, a in enumerate(args_of(case))]
  with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
    expected = case.oracle(*args, **case.options)
  known = np.isfinite(expected)  # The naive oracle overflows where the loss does not.
  np.testing.assert_allclose(each(case, args)[known], expected[known], rtol=1e-4, atol=2e-3)


@table
def test_bfloat16_in_float32_out(case):
  args = args_of(case)
  half = [jnp.asarray(a, jnp.bfloat16) if a.dtype == np.float32 else a for a in args]
  back = [
    np.asarray(h, np.float32) if a.dtype == np.float32 else a
    for h, a in zip(half, args, strict=True)
  ]
  value, grads = run(case, half)
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, run(case, back)[0], rtol=2e-2)
  assert all(grad.dtype == jnp.bfloat16 for grad in grads)
  assert finite(grads)


@table
def test_jit_equals_no_jit(case):
  args = args_of(case)
  where = where_of(case, args)

  def loss(*a):
    return case.loss(*a, **case.options, where=where)

  plain = jax.value_and_grad(loss, case.students)(*args)
  assert_close(run(case, args, where=where), plain, rtol=1e-5, atol=1e-6)


@table
def test_vmap_equals_a_loop(case):
  args = args_of(case)

  def fold(a):
    return a.reshape(2, HALF, *a.shape[1:])

  halves, rows = on_rows(case, args, fold), {k: fold(v) for k, v in row_options(case).items()}
  axes = [None if i in case.shared else 0 for i in range(len(args))]
  fn = compiled(case.id, jnp.mean, case.students)
  mapped = jax.jit(jax.vmap(lambda a, r: fn(a, None, r), (axes, 0)))(halves, rows)
  for half in range(2):
    part = operator.itemgetter(half)
    expected = run(case, on_rows(case, halves, part), rows={k: part(v) for k, v in rows.items()})
    assert_close(jax.tree.map(part, mapped), expected, rtol=1e-5, atol=1e-6)


@table
def test_totals_merge_to_the_mean(case):
  args = args_of(case)
  where = where_of(case, args, keep=np.arange(EXAMPLES) % 5 < 2)  # 5 of the 12, unevenly.
  parts = []
  for part in map(operator.itemgetter, (slice(None, HALF), slice(HALF, None))):
    rows = {k: part(v) for k, v in row_options(case).items()}
    mean, _ = run(case, on_rows(case, args, part), where=part(where), rows=rows, reduce_fn=totals)
    assert isinstance(mean, Mean)
    parts.append(mean)
  expected, _ = run(case, args, where=where)
  np.testing.assert_allclose((parts[0] + parts[1]).compute(), expected, rtol=1e-5)


@table
def test_wrong_shapes_are_refused(case):
  args = args_of(case)
  with pytest.raises(ValueError, match="shape"):
    case.loss(*args, **case.options, where=np.ones((EXAMPLES, 2, 2), bool))
  rows = [i for i in range(len(args)) if i not in case.shared]
  args[rows[1]] = args[rows[1]][: EXAMPLES - 1]
  with pytest.raises(ValueError, match=r"shape|plus one axis|labels"):
    case.loss(*args, **case.options)
