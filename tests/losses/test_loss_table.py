"""Every loss, through every property."""

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


def args_of(case, seed=0):
  return case.make(np.random.default_rng(seed))


def on_rows(case, args, fn):
  """Applies `fn` to the args that have an example axis."""
  return [a if i in case.shared else jax.tree.map(fn, a) for i, a in enumerate(args)]


def options_on_rows(case, fn):
  """Per-example options (their leading axis is the examples') follow the rows."""
  is_rows = lambda v: isinstance(v, np.ndarray) and v.shape[:1] == (EXAMPLES,)  # noqa: E731
  return {k: fn(v) if is_rows(v) else v for k, v in case.options.items()}


def where_of(case, args, keep=KEEP):
  """`keep` over the examples, of the shape of the unreduced loss."""
  shape = case.loss(*args, **case.options, reduce_fn=None).shape
  return np.array(np.broadcast_to(keep.reshape(-1, *[1] * (len(shape) - 1)), shape))


def grads(case, args, argnums=None, **kwargs):
  argnums = case.students if argnums is None else argnums
  return jax.grad(lambda *a: case.loss(*a, **case.options, **kwargs), argnums)(*args)


def finite(tree):
  return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree))


def test_every_public_loss_has_a_case():
  public = {name for name in losses.__all__ if name.endswith("_loss")}
  assert public == {case.loss.__name__ for case in CASES}


def test_case_ids_are_unique():
  assert len({case.id for case in CASES}) == len(CASES)


@table
def test_equals_the_oracle(case):
  args = args_of(case)
  expected = case.oracle(*args, **case.options)
  actual = case.loss(*args, **case.options, reduce_fn=None)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(case.loss(*args, **case.options), expected.mean(), rtol=2e-5)
  total = case.loss(*args, **case.options, reduce_fn=jnp.sum)
  np.testing.assert_allclose(total, expected.sum(), rtol=2e-5)


@with_closed_form
def test_gradient_equals_the_closed_form(case):
  args = args_of(case)
  expected = case.gradient(*args, **case.options)
  (actual,) = grads(case, args, argnums=(0,), reduce_fn=jnp.sum)
  np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)


@table
def test_gradient_equals_differences_of_the_oracle(case):
  """Also of the args without a closed form, along one random direction each."""
  args = [jax.tree.map(lambda x: np.asarray(x), a) for a in args_of(case)]
  rng = np.random.default_rng(1)
  for position, grad in zip(case.students, grads(case, args, reduce_fn=jnp.sum), strict=True):
    step = rng.normal(size=args[position].shape)

    def along(epsilon, position=position, step=step):
      moved = list(args)
      moved[position] = np.float64(args[position]) + epsilon * step
      return case.oracle(*moved, **case.options).sum()

    expected = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(np.sum(np.float64(grad) * step), expected, rtol=1e-4, atol=1e-4)


@distillations
def test_teacher_gets_no_gradient(case):
  for grad in grads(case, args_of(case), argnums=case.teachers):
    assert np.all(np.asarray(grad) == 0)


@divergences
def test_zero_with_zero_gradient_at_equality(case):
  args = list(args_of(case))
  for student, teacher in case.equal:
    args[teacher] = args[student]
  values = case.loss(*args, **case.options, reduce_fn=None)
  np.testing.assert_allclose(values, np.zeros_like(values), atol=1e-6)
  for grad in grads(case, args, reduce_fn=jnp.sum):
    np.testing.assert_allclose(grad, np.zeros_like(grad), atol=1e-6)


@table
def test_masked_equals_removed(case):
  args = args_of(case)
  where = where_of(case, args)
  removed = on_rows(case, args, lambda a: a[KEEP])
  options = options_on_rows(case, lambda v: v[KEEP])
  for reduce_fn in (jnp.mean, jnp.sum):
    actual = case.loss(*args, **case.options, where=where, reduce_fn=reduce_fn)
    expected = case.loss(*removed, **options, reduce_fn=reduce_fn)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
  each = case.loss(*args, **case.options, where=where, reduce_fn=None)
  np.testing.assert_allclose(
    np.asarray(each)[KEEP], case.loss(*removed, **options, reduce_fn=None), rtol=1e-5, atol=1e-6
  )
  assert np.all(np.asarray(each)[~KEEP] == 0)


@table
def test_masked_garbage_reaches_neither_value_nor_gradient(case):
  args = args_of(case)
  where = where_of(case, args)

  def spoil(a):
    bad = np.float32(np.nan) if a.dtype == np.float32 else np.array(-1, a.dtype)
    return np.where(KEEP.reshape(-1, *[1] * (a.ndim - 1)), a, bad)

  spoiled = on_rows(case, args, spoil)
  for reduce_fn in (jnp.mean, jnp.sum):
    np.testing.assert_allclose(
      case.loss(*spoiled, **case.options, where=where, reduce_fn=reduce_fn),
      case.loss(*args, **case.options, where=where, reduce_fn=reduce_fn),
      rtol=1e-6,
    )
  for actual, expected in zip(
    grads(case, spoiled, where=where), grads(case, args, where=where), strict=True
  ):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@table
def test_all_masked_is_zero_with_zero_gradient(case):
  args = args_of(case)
  where = np.zeros_like(where_of(case, args))
  for reduce_fn in (jnp.mean, jnp.sum):
    assert case.loss(*args, **case.options, where=where, reduce_fn=reduce_fn) == 0
    for grad in grads(case, args, where=where, reduce_fn=reduce_fn):
      assert np.all(np.asarray(grad) == 0)


@table
def test_nan_that_counts_stays_visible(case):
  args = [jax.tree.map(np.array, a) for a in args_of(case)]
  for position in case.students:
    spoiled = list(args)
    spoiled[position] = args[position].copy()
    spoiled[position].reshape(-1)[0] = np.nan
    assert np.isnan(case.loss(*spoiled, **case.options))


@table
def test_finite_at_the_edges(case):
  args = args_of(case)
  rng = np.random.default_rng(2)

  def extreme(a, choices):
    if a.ndim == 0:
      return a
    out = rng.choice(np.array(choices, np.float32), size=a.shape)
    return np.where(rng.random(a.shape) < 0.2, a, out).astype(np.float32)

  scenes = [lambda a: extreme(a, [1e4, -1e4]), lambda a: extreme(a, [0.5, -np.inf])]
  scenes += [lambda a: np.full_like(a, -np.inf), lambda a: extreme(a, [-np.inf, 1e4, -1e4])]
  fn = jax.jit(jax.value_and_grad(lambda *a: case.loss(*a, **case.options), case.students))
  for positions in {case.edges, case.edges[:1], case.edges[1:]}:
    for scene in scenes:
      assert finite(fn(*[scene(a) if i in positions else a for i, a in enumerate(args)]))


@table
def test_exact_at_ten_thousand(case):
  args = [np.float32(a * 4e3) if i in case.edges else a for i, a in enumerate(args_of(case))]
  with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
    expected = case.oracle(*args, **case.options)
  known = np.isfinite(expected)  # The naive oracle overflows where the loss does not.
  actual = np.asarray(case.loss(*args, **case.options, reduce_fn=None))
  np.testing.assert_allclose(actual[known], expected[known], rtol=1e-4, atol=2e-3)


@table
def test_bfloat16_in_float32_out(case):
  def half(a):
    return jnp.asarray(a, jnp.bfloat16) if a.dtype == np.float32 else a

  args = [jax.tree.map(half, a) for a in args_of(case)]
  back = [jax.tree.map(lambda a: np.asarray(a, np.float32), a) for a in args]
  back = [
    b if jnp.issubdtype(a.dtype, jnp.floating) else np.asarray(a)
    for a, b in zip(args, back, strict=True)
  ]
  actual = case.loss(*args, **case.options)
  assert actual.dtype == jnp.float32
  np.testing.assert_allclose(actual, case.loss(*back, **case.options), rtol=2e-2)
  for position, grad in zip(case.students, grads(case, args), strict=True):
    assert grad.dtype == args[position].dtype


@table
def test_jit_equals_no_jit(case):
  args = args_of(case)
  where = where_of(case, args)

  def loss_and_grads(*a):
    return jax.value_and_grad(lambda *b: case.loss(*b, **case.options, where=where), case.students)(
      *a
    )

  plain = loss_and_grads(*args)
  for actual, expected in zip(
    jax.tree.leaves(jax.jit(loss_and_grads)(*args)), jax.tree.leaves(plain), strict=True
  ):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@table
def test_vmap_equals_a_loop(case):
  args = args_of(case)
  halves = on_rows(case, args, lambda a: a.reshape(2, EXAMPLES // 2, *a.shape[1:]))
  axes = tuple(None if i in case.shared else 0 for i in range(len(args)))
  options = options_on_rows(case, lambda v: v.reshape(2, EXAMPLES // 2, *v.shape[1:]))
  mapped = {k: 0 if v is not case.options[k] else None for k, v in options.items()}

  def loss(options, *a):
    return case.loss(*a, **{**case.options, **options})

  stacked = {k: v for k, v in options.items() if mapped[k] == 0}
  fn = jax.value_and_grad(loss, tuple(i + 1 for i in case.students))
  actual = jax.vmap(fn, (0, *axes))(stacked, *halves)
  for half in range(2):
    expected = fn(
      {k: v[half] for k, v in stacked.items()}, *on_rows(case, halves, operator.itemgetter(half))
    )
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a[half], e, rtol=1e-5, atol=1e-6)


@table
def test_totals_merge_to_the_mean(case):
  args = args_of(case)
  where = where_of(case, args)
  cut = 5
  parts = []
  for rows in (slice(None, cut), slice(cut, None)):
    options = options_on_rows(case, operator.itemgetter(rows))
    part = on_rows(case, args, operator.itemgetter(rows))
    parts.append(case.loss(*part, **options, where=where[rows], reduce_fn=totals))
    assert isinstance(parts[-1], Mean)
  np.testing.assert_allclose(
    (parts[0] + parts[1]).compute(), case.loss(*args, **case.options, where=where), rtol=1e-5
  )


@table
def test_wrong_shapes_are_refused(case):
  args = args_of(case)
  with pytest.raises(ValueError, match="shape"):
    case.loss(*args, **case.options, where=np.ones((EXAMPLES, 2, 2), bool))
  rows = [i for i in range(len(args)) if i not in case.shared]
  short = list(args)
  short[rows[1]] = args[rows[1]][: EXAMPLES - 1]
  with pytest.raises(ValueError, match=r"shape|plus one axis|labels"):
    case.loss(*short, **case.options)
