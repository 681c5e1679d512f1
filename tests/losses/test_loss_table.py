"""Every loss, through every property."""

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases_catalog import CASES as CATALOG
from cases_catalog_parts import CASES as CATALOG_PARTS
from cases_divergences import CASES as DIVERGENCES
from cases_features import CASES as FEATURES
from cases_listwise import CASES as LISTWISE
from cases_logits import CASES as LOGITS
from cases_maps import CASES as MAPS
from cases_pairwise import CASES as PAIRWISE
from cases_ranking import CASES as RANKING
from cases_recommenders import CASES as RECOMMENDERS
from cases_relations import CASES as RELATIONS
from cases_sequence import CASES as SEQUENCE
from jax.sharding import PartitionSpec
from loss_cases import EXAMPLES

from kdjax import losses
from kdjax.reduce import Mean, totals


def over(cases):
  return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


CASES = [
  *LOGITS,
  *FEATURES,
  *MAPS,
  *RELATIONS,
  *RANKING,
  *LISTWISE,
  *PAIRWISE,
  *RECOMMENDERS,
  *CATALOG,
  *CATALOG_PARTS,
  *DIVERGENCES,
  *SEQUENCE,
]
table = over(CASES)
# For what compiles most and hangs least on options: the first case of every loss.
once = over(list({case.loss.__name__: case for case in reversed(CASES)}.values()))
independent = over([case for case in CASES if not case.joint])
divergences = over([case for case in CASES if case.equal])
with_closed_form = over([case for case in CASES if case.gradient])
distillations = over([case for case in CASES if case.teachers])
HALF = EXAMPLES // 2
BY_ID = {case.id: case for case in CASES}
KEEP = np.isin(np.arange(EXAMPLES), [0, 1, 3, 7, 8, 11])  # Half of them, to compile less.


def args_of(case, seed=0):
  return [jax.tree.map(np.asarray, arg) for arg in case.make(np.random.default_rng(seed))]


def on_rows(case, args, fn):
  """Applies `fn` to the args that have an example axis."""
  return [a if i in case.shared else fn(a) for i, a in enumerate(args)]


def row_options(case):
  """Options that have an example axis, as the rows have."""
  options = case.options.items()
  return {k: v for k, v in options if isinstance(v, np.ndarray) and v.shape[:1] == (EXAMPLES,)}


class Results(NamedTuple):
  """What one compiled program tells of a loss."""

  each: Any  # reduce_fn=None.
  mean: Any  # (value, gradients of students then teachers) of jnp.mean.
  sum: Any  # The same of jnp.sum.


# Infinities come out as they do for users: the quick compiler of all other programs makes NaN of
# some, and takes half of the time.
EMITTERS = "xla_cpu_use_fusion_emitters"
AS_SERVED = {EMITTERS: True} if EMITTERS in os.environ["XLA_FLAGS"] else None


@functools.cache
def compiled(case_id, quickly):
  """`fn(args, where, row_options) -> Results`, compiled once for all tests."""
  case = BY_ID[case_id]

  def loss(where, rows, reduce_fn, *args):
    return case.loss(*args, **{**case.options, **rows}, where=where, reduce_fn=reduce_fn)

  def run(args, where, rows):
    grad = jax.value_and_grad(loss, tuple(i + 3 for i in (*case.students, *case.teachers)))
    mean, total = (grad(where, rows, reduce_fn, *args) for reduce_fn in (jnp.mean, jnp.sum))
    return Results(loss(where, rows, None, *args), mean, total)

  return jax.jit(run, compiler_options=None if quickly else AS_SERVED)


@functools.cache
def compiled_parts(case_id):
  """`fn(args, where, row_options) -> (each, totals)`, for parts of the examples."""
  case = BY_ID[case_id]

  def run(args, where, rows):
    options = {**case.options, **rows, "where": where}
    return [case.loss(*args, **options, reduce_fn=reduce_fn) for reduce_fn in (None, totals)]

  return jax.jit(run)


def run(case, args, *, where=None):
  quickly = where is not None or any(a.dtype == jnp.bfloat16 for a in args)
  return compiled(case.id, quickly)(args, where, row_options(case))


def run_part(case, args, where, part):
  """(each, totals) of the examples that the index `part` chooses."""
  rows = {k: v[part] for k, v in row_options(case).items()}
  return compiled_parts(case.id)(on_rows(case, args, lambda a: a[part]), where[part], rows)


def where_of(case, args, keep=KEEP):
  """`keep` over the examples, of the shape of the unreduced loss."""
  shape = run(case, args).each.shape
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
  results = run(case, args)
  assert results.each.dtype == results.mean[0].dtype == results.sum[0].dtype == jnp.float32
  np.testing.assert_allclose(results.each, expected, rtol=2e-5, atol=2e-6)
  np.testing.assert_allclose(results.mean[0], expected.mean(), rtol=2e-5)
  np.testing.assert_allclose(results.sum[0], expected.sum(), rtol=2e-5)


@with_closed_form
def test_gradient_equals_the_closed_form(case):
  args = args_of(case)
  results = run(case, args)
  expected = case.gradient(*args, **case.options)
  np.testing.assert_allclose(results.sum[1][0], expected, rtol=2e-5, atol=2e-6)
  mean = expected / results.each.size
  np.testing.assert_allclose(results.mean[1][0], mean, rtol=2e-5, atol=2e-6)


@table
def test_gradient_equals_differences_of_the_oracle(case):
  """Also of the args without a closed form, along one random direction each."""
  args = args_of(case)
  rng = np.random.default_rng(1)
  _, grads = run(case, args).sum
  for position, grad in zip(case.students, grads, strict=False):
    step = rng.normal(size=args[position].shape)

    def along(epsilon, position=position, step=step):
      moved = list(args)
      moved[position] = np.float64(args[position]) + epsilon * step
      return case.oracle(*moved, **case.options).sum()

    expected = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(np.sum(np.float64(grad) * step), expected, rtol=1e-4, atol=1e-4)


@distillations
def test_teacher_gets_no_gradient(case):
  results = run(case, args_of(case))
  for _, grads in (results.mean, results.sum):
    assert len(grads) == len(case.students) + len(case.teachers)
    for grad in grads[len(case.students) :]:
      assert np.all(np.asarray(grad) == 0)


@divergences
def test_zero_with_zero_gradient_at_equality(case):
  args = args_of(case)
  for student, teacher in case.equal:
    args[teacher] = args[student]
  for leaf in jax.tree.leaves(run(case, args)):
    np.testing.assert_allclose(leaf, np.zeros_like(leaf), atol=1e-6)


@table
def test_masked_equals_removed(case):
  args = args_of(case)
  where = where_of(case, args)
  expected, _ = run_part(case, args, where, KEEP)
  results = run(case, args, where=where)
  values = np.asarray(results.each)
  np.testing.assert_allclose(values[KEEP], expected, rtol=1e-5, atol=1e-6)
  assert np.all(values[~KEEP] == 0)
  np.testing.assert_allclose(results.mean[0], np.mean(expected), rtol=1e-5)
  np.testing.assert_allclose(results.sum[0], np.sum(expected), rtol=1e-5)
  for position, grad in zip(case.students, results.sum[1], strict=False):
    if position not in case.shared:
      assert np.all(np.asarray(grad)[~KEEP] == 0)


@table
def test_masked_garbage_reaches_neither_value_nor_gradient(case):
  args = args_of(case)
  where = where_of(case, args)

  def spoil(a):
    bad = np.float32(np.nan) if a.dtype == np.float32 else np.array(-1, a.dtype)
    return np.where(KEEP.reshape(-1, *[1] * (a.ndim - 1)), a, bad)

  spoiled = run(case, on_rows(case, args, spoil), where=where)
  assert_close(spoiled, run(case, args, where=where), rtol=1e-5, atol=1e-7)
  assert finite(spoiled)


@table
def test_all_masked_is_zero_with_zero_gradient(case):
  args = args_of(case)
  where = np.zeros_like(where_of(case, args))
  for leaf in jax.tree.leaves(run(case, args, where=where)):
    assert np.all(np.asarray(leaf) == 0)


@table
def test_nan_that_counts_stays_visible(case):
  for position in case.students:
    args = args_of(case)
    args[position] = args[position].copy()
    args[position].reshape(-1)[0] = np.nan
    results = run(case, args)
    assert np.isnan(results.mean[0])
    assert np.isnan(results.sum[0])


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
  actual = np.asarray(run(case, args).each)
  np.testing.assert_allclose(actual[known], expected[known], rtol=1e-4, atol=2e-3)


@table
def test_bfloat16_in_float32_out(case):
  args = args_of(case)
  is_float = [a.dtype == np.float32 for a in args]
  half = [jnp.asarray(a, jnp.bfloat16) if f else a for a, f in zip(args, is_float, strict=True)]
  back = [np.asarray(a, np.float32) if f else a for a, f in zip(half, is_float, strict=True)]
  results = run(case, half)
  assert results.each.dtype == results.mean[0].dtype == results.sum[0].dtype == jnp.float32
  np.testing.assert_allclose(results.mean[0], run(case, back).mean[0], rtol=2e-2)
  assert all(grad.dtype == jnp.bfloat16 for grad in results.mean[1])
  assert finite(results)


@once
def test_jit_equals_no_jit(case):
  args = args_of(case)
  where = where_of(case, args)

  def loss(*a):
    return case.loss(*a, **case.options, where=where)

  value, grads = jax.value_and_grad(loss, case.students)(*args)
  expected = run(case, args, where=where).mean
  assert_close((value, grads), (expected[0], expected[1][: len(grads)]), rtol=1e-5, atol=1e-6)


@once
def test_vmap_and_pmap_equal_a_loop(case):
  """Each quarter of a batch, two on each of two devices, equals the whole with the rest masked."""
  args = args_of(case)

  def fold(a):
    return a.reshape(2, 2, EXAMPLES // 4, *a.shape[1:])

  quarters, rows = on_rows(case, args, fold), {k: fold(v) for k, v in row_options(case).items()}
  axes = [None if i in case.shared else 0 for i in range(len(args))]

  def mean(args, rows):
    def loss(*a):
      return case.loss(*a, **{**case.options, **rows})

    return jax.value_and_grad(loss, case.students)(*args)

  each = jax.pmap(jax.vmap(mean, (axes, 0)), in_axes=(axes, 0), devices=jax.devices()[:2])
  values, grads = jax.device_get(each(quarters, rows))
  for place in np.ndindex(2, 2):
    keep = np.arange(EXAMPLES) // (EXAMPLES // 4) == 2 * place[0] + place[1]
    expected, expected_grads = run(case, args, where=where_of(case, args, keep)).mean
    np.testing.assert_allclose(values[place], expected, rtol=1e-5, atol=1e-7)
    for position, grad, whole in zip(case.students, grads, expected_grads, strict=False):
      seen = whole if position in case.shared else np.asarray(whole)[keep]
      np.testing.assert_allclose(grad[place], seen, rtol=1e-5, atol=1e-6)


@table
def test_shard_map_equals_each_part_alone(case):
  """Inside a manual program each device computes the loss and gradient of its own rows."""
  args, rows = args_of(case), row_options(case)
  mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  of_rows, whole = PartitionSpec("data"), PartitionSpec()
  specs = [whole if i in case.shared else of_rows for i in range(len(args))]

  def mean(args, rows):
    def loss(*a):
      return case.loss(*a, **{**case.options, **rows})

    # What is the same on both devices has one gradient a device here, not their sum.
    args = [
      jax.lax.pcast(a, "data", to="varying") if i in case.shared else a for i, a in enumerate(args)
    ]
    value, grads = jax.value_and_grad(loss, case.students)(*args)
    return value[None], jax.tree.map(lambda g: g[None], grads)

  # The loop in optax's CTC does not say how what it carries varies.
  checked = case.loss is not losses.ctc_loss
  parts = jax.shard_map(
    mean, mesh=mesh, in_specs=(specs, of_rows), out_specs=of_rows, check_vma=checked
  )
  values, grads = jax.jit(parts)(args, rows)
  for half in range(2):
    keep = np.arange(EXAMPLES) // HALF == half
    expected, expected_grads = run(case, args, where=where_of(case, args, keep)).mean
    np.testing.assert_allclose(values[half], expected, rtol=1e-5)
    for position, grad, whole_grad in zip(case.students, grads, expected_grads, strict=False):
      seen = whole_grad if position in case.shared else np.asarray(whole_grad)[keep]
      np.testing.assert_allclose(grad[half], seen, rtol=1e-5, atol=1e-6)


@independent
def test_totals_merge_to_the_mean(case):
  args = args_of(case)
  where = where_of(case, args, keep=np.arange(EXAMPLES) < 8)  # 6 of one part, 2 of the other.
  index = np.arange(EXAMPLES)
  parts = [run_part(case, args, where, part)[1] for part in (index < HALF, index >= HALF)]
  assert all(isinstance(part, Mean) for part in parts)
  expected, _ = run(case, args, where=where).mean
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
