"""Catalogue losses whose tables are split over a mesh axis: vocabulary-parallel."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kdjax import losses
from kdjax.collectives import read_collectives
from kdjax.mesh_table import MeshTable
from kdjax.reduce import Mean, totals
from kdjax.types import FactoredLogits

ITEMS, TOKENS = 72, 12
STUDENT = FactoredLogits(P("data"), P("model"), P("model"))


def logits(width, seed, items=ITEMS):
  rng = np.random.default_rng(seed)
  shapes = (TOKENS, width), (items, width), (items,)
  return FactoredLogits(*(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes))


@pytest.fixture(scope="module")
def mesh():
  return Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))


TEACHER = logits(9, 1)
BEST = losses.catalog_top_k_targets(TEACHER, 5)
DRAWN = losses.catalog_sample_targets(jax.random.key(0), TEACHER, 4, keep=3)
LABELS = jnp.asarray(np.random.default_rng(2).integers(0, ITEMS, TOKENS), jnp.int32)
TOPK = losses.TopK(P("data"), P("data"), P("data"))
DRAWS = losses.SampledTargets(P("data"), P("data"))
CASES = {
  losses.catalog_cross_entropy_loss: ((LABELS,), (P("data"),)),
  losses.catalog_kl_loss: ((TEACHER,), (STUDENT,)),
  losses.catalog_reverse_kl_loss: ((TEACHER,), (STUDENT,)),
  losses.catalog_jensen_shannon_loss: ((TEACHER,), (STUDENT,)),
  losses.catalog_distillation_loss: ((TEACHER, LABELS), (STUDENT, P("data"))),
  losses.catalog_top_k_kl_loss: ((BEST,), (TOPK,)),
  losses.catalog_top_k_reverse_kl_loss: ((BEST,), (TOPK,)),
  losses.catalog_sampled_cross_entropy_loss: ((DRAWN,), (DRAWS,)),
  losses.catalog_cached_distillation_loss: ((BEST, LABELS), (TOPK, P("data"))),
}


def split(mesh, loss, places, **options):
  """The mean over the batch of a loss whose tables are split, as one function of whole arrays."""

  def of_part(student, *rest):
    mean = loss(student, *rest, axis_name="model", reduce_fn=totals, **options)
    return Mean(*jax.lax.psum(tuple(mean), "data"))

  mapped = jax.shard_map(of_part, mesh=mesh, in_specs=(STUDENT, *places), out_specs=Mean(P(), P()))
  return lambda *args: mapped(*args).compute()


@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("loss", list(CASES), ids=lambda loss: loss.__name__)
def test_split_equals_whole(mesh, loss, block):
  rest, places = CASES[loss]
  student = logits(6, 0)
  found = jax.jit(jax.value_and_grad(split(mesh, loss, places, block=block)))(student, *rest)
  expected = jax.jit(jax.value_and_grad(loss))(student, *rest)
  for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6)


def test_gradients_that_are_taken_on_the_way_back(mesh):
  """A reduction of one's own makes a second sweep, which starts from what the first knows."""
  loss, weights = losses.catalog_jensen_shannon_loss, jnp.linspace(0.5, 2, TOKENS)
  student = logits(6, 0)

  def of_part(student, teacher, weights):
    each = loss(student, teacher, axis_name="model", block=7, reduce_fn=None)
    return jax.lax.psum(jnp.sum(each * weights), "data")

  specs = (STUDENT, STUDENT, P("data"))
  mapped = jax.shard_map(of_part, mesh=mesh, in_specs=specs, out_specs=P())
  found = jax.jit(jax.grad(mapped))(student, TEACHER, weights)
  whole = lambda s: jnp.sum(loss(s, TEACHER, reduce_fn=None) * weights)  # noqa: E731
  for a, e in zip(found, jax.jit(jax.grad(whole))(student), strict=True):
    np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6)


def test_labels_are_of_the_whole_catalogue(mesh):
  loss = split(mesh, losses.catalog_cross_entropy_loss, (P("data"),))
  assert jnp.isnan(loss(logits(6, 0), LABELS.at[3].set(ITEMS)))
  assert not jnp.isnan(loss(logits(6, 0), LABELS.at[3].set(ITEMS - 1)))


def test_little_is_communicated(mesh):
  """Numbers of tokens and a gradient of queries travel; no table, and no block of logits."""
  items = 4096
  student, teacher = logits(8, 0, items), logits(8, 1, items)
  places = FactoredLogits(*(NamedSharding(mesh, spec) for spec in STUDENT))
  student, teacher = (jax.device_put(x, places) for x in (student, teacher))
  step = jax.jit(jax.grad(split(mesh, losses.catalog_kl_loss, (STUDENT,))))
  text = step.lower(student, teacher).compile().as_text()
  assert "all-gather" not in text
  sizes = []
  for shapes in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
    for dims in re.findall(r"f32\[([\d,]*)\]", shapes):
      sizes.append(int(np.prod([int(d) for d in dims.split(",") if d])))
  # Gradients of a device's own rows are summed over `data`, as in any data-parallel step.
  rows = items // 4 * (8 + 1)
  assert 0 < sum(sizes) <= rows + 64 * TOKENS


def test_ten_million_items_on_eight_devices():
  items, tokens = 10_000_000, 2
  mesh = Mesh(np.array(jax.devices()), ("model",))
  rng = np.random.default_rng(0)
  query = rng.normal(size=(tokens, 2)).astype(np.float32)
  table = rng.normal(size=(items, 2)).astype(np.float32)
  labels = jnp.array([3, items - 1])
  specs = FactoredLogits(P(), P("model"))
  place = lambda x, spec: jax.device_put(jnp.asarray(x), NamedSharding(mesh, spec))  # noqa: E731
  student = FactoredLogits(place(query, P()), place(table, P("model")))
  step = jax.jit(
    jax.value_and_grad(
      jax.shard_map(
        lambda s, y: losses.catalog_cross_entropy_loss(s, y, axis_name="model"),
        mesh=mesh, in_specs=(specs, P()), out_specs=P(),
      )
    )
  )  # fmt: skip
  compiled = step.lower(student, labels).compile()
  loss, grads = compiled(student, labels)
  scores = np.float64(query) @ np.float64(table).T
  powers = np.exp(scores - scores.max(-1, keepdims=True))
  p = powers / powers.sum(-1, keepdims=True)
  np.testing.assert_allclose(loss, -np.log(p[[0, 1], labels]).mean(), rtol=1e-5)
  expected = (p @ np.float64(table) - table[np.asarray(labels)]) / tokens
  np.testing.assert_allclose(grads.query, expected, rtol=1e-4, atol=1e-5)
  assert grads.table.shape == (items, 2)
  assert {shard.data.shape for shard in grads.table.addressable_shards} == {(items // 8, 2)}
  # A device holds its rows, their gradient and a block of logits.
  memory = compiled.memory_analysis()
  rows = items // 8 * 2 * 4
  assert memory.argument_size_in_bytes < 1.1 * rows
  assert memory.output_size_in_bytes < 1.1 * rows
  assert memory.temp_size_in_bytes < 2.5 * rows


def on_mesh(mesh, student):
  return student._replace(table=MeshTable(student.table, mesh))


@pytest.mark.parametrize("reduce_fn", [jnp.mean, None], ids=["mean", "each"])
@pytest.mark.parametrize("loss", list(CASES), ids=lambda loss: loss.__name__)
def test_mesh_tables_equal_arrays(mesh, loss, reduce_fn):
  """Under `jit` alone: the loss itself spreads over the devices of the table."""
  rest, _ = CASES[loss]
  student, where = logits(6, 0), jnp.arange(TOKENS) % 5 > 0
  weights = jnp.linspace(0.5, 2, TOKENS)

  def weighed(student, place):
    return jnp.sum(loss(place(student), *rest, where=where, reduce_fn=reduce_fn) * weights)

  found = jax.jit(jax.value_and_grad(lambda s: weighed(s, lambda s: on_mesh(mesh, s))))(student)
  expected = jax.jit(jax.value_and_grad(lambda s: weighed(s, lambda s: s)))(student)
  for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, e, rtol=2e-5, atol=3e-6)


def test_tokens_that_do_not_divide(mesh):
  student, teacher = (x._replace(query=x.query[:11]) for x in (logits(6, 0, 71), logits(9, 1, 71)))
  loss = lambda s, t: losses.catalog_kl_loss(s, t, reduce_fn=jnp.sum)  # noqa: E731
  both = on_mesh(mesh, student), on_mesh(mesh, teacher)
  np.testing.assert_allclose(jax.jit(loss)(*both), loss(student, teacher), rtol=1e-5)


def of_items(x, items):
  return FactoredLogits(x.query, x.table[:items], x.bias[:items])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("loss", list(CASES), ids=lambda loss: loss.__name__)
def test_items_that_do_not_divide(mesh, loss, block, bias):
  """Devices share 70 items as they do 72, and what fills them up is no item."""
  items = 70
  teacher = of_items(TEACHER, items)
  targets = {
    id(TEACHER): teacher,
    id(BEST): losses.catalog_top_k_targets(teacher, 5),
    id(DRAWN): losses.catalog_sample_targets(jax.random.key(0), teacher, 4, keep=3),
    id(LABELS): LABELS % items,
  }
  rest = [targets[id(x)] for x in CASES[loss][0]]
  if not bias:
    rest = [x._replace(bias=None) if isinstance(x, FactoredLogits) else x for x in rest]
  student = of_items(logits(6, 0), items)
  student = student if bias else student._replace(bias=None)
  run = lambda s: loss(on_mesh(mesh, s), *rest, block=block)  # noqa: E731
  found = jax.jit(jax.value_and_grad(run))(student)
  expected = jax.jit(jax.value_and_grad(lambda s: loss(s, *rest, block=block)))(student)
  for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, e, rtol=2e-5, atol=3e-6)


@pytest.mark.parametrize("items", [4096, 4095])
def test_mesh_tables_are_not_gathered(mesh, items):
  student, teacher = logits(8, 0, items), logits(8, 1, items)
  # As `kdjax.train.shardings` lays them: by rows, or by columns where rows do not divide.
  specs = STUDENT if items % 4 == 0 else FactoredLogits(P("data"), P(None, "model"), P())
  places = FactoredLogits(*(NamedSharding(mesh, spec) for spec in specs))
  student, teacher = (jax.device_put(x, places) for x in (student, teacher))
  loss = lambda s, t: losses.catalog_kl_loss(on_mesh(mesh, s), t, block=64)  # noqa: E731
  compiled = jax.jit(jax.grad(loss), out_shardings=places).lower(student, teacher).compile()
  text = compiled.as_text()
  assert not re.search(r"f32\[\d+,[\d,]+\]\S* all-gather", text)  # A bias may be, no table.
  assert ("all-gather" in text, "all-to-all" in text) == (items % 4 > 0,) * 2
  # Whole tables would be two of 128 KB; a device keeps its own rows, their gradient and a block,
  # and of columns that are turned to rows both.
  most = items * 8 * 4 * (1 if items % 4 == 0 else 1.5)
  assert compiled.memory_analysis().temp_size_in_bytes < most


def test_a_mesh_table_is_read_as_an_array(mesh):
  student = logits(6, 0)
  table, ids = on_mesh(mesh, student), jnp.array([[1, 5]] * TOKENS)
  np.testing.assert_array_equal(table.dense(), student.dense())
  np.testing.assert_array_equal(table.at(ids), student.at(ids))
  assert table.table.astype(jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize("items", [8, 4096])  # Fewer and more rows than tokens.
def test_looked_up_rows_and_their_gradient(mesh, items):
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.normal(size=(items, 3)), jnp.float32)
  ids = jnp.asarray(rng.integers(0, items, (TOKENS, 2)))
  weights = jnp.asarray(rng.normal(size=(TOKENS, 2, 3)), jnp.float32)
  rows, batch = NamedSharding(mesh, P("model")), NamedSharding(mesh, P("data"))
  place = jax.device_put(table, rows), jax.device_put(ids, batch), jax.device_put(weights, batch)

  def grad_of(look_up):
    return lambda table, ids, w: jax.grad(lambda t: jnp.sum(w * look_up(t, ids)))(table)

  spread = jax.jit(grad_of(lambda t, i: MeshTable(t, mesh)[i]), out_shardings=rows)
  expected = grad_of(lambda t, i: t[i])(table, ids, weights)
  np.testing.assert_allclose(spread(*place), expected, rtol=1e-6)
  sent = read_collectives(spread.lower(*place).compile().as_text())
  # What is added to a few rows travels, or all of a device's rows: whichever is less.
  assert sum(c.payload for c in sent) <= 4 * min(items * 3, TOKENS * 2 * (3 + 1))


@pytest.fixture(scope="module")
def cube():
  return Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "model"))


@pytest.mark.parametrize("tokens", [TOKENS, 11])
@pytest.mark.parametrize("loss", list(CASES), ids=lambda loss: loss.__name__)
def test_columns_that_an_axis_splits(cube, loss, tokens):
  """Gathered for the loss, whether or not the devices divide the tokens."""
  of_tokens = lambda tree: jax.tree.map(lambda x: x[:tokens] if len(x) == TOKENS else x, tree)  # noqa: E731
  student, rest = of_tokens(logits(6, 0)), of_tokens(CASES[loss][0])
  found = jax.jit(jax.value_and_grad(lambda s, *r: loss(on_mesh(cube, s), *r)))(student, *rest)
  expected = jax.jit(jax.value_and_grad(loss))(student, *rest)
  for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-6)


def test_gradients_of_columns_are_scattered(cube):
  table = NamedSharding(cube, P("model", "fsdp"))
  places = FactoredLogits(NamedSharding(cube, P(("data", "fsdp"))), table, None)
  student = jax.device_put(logits(8, 0, 4096)._replace(bias=None), places)
  grad = jax.jit(
    jax.grad(lambda s, y: losses.catalog_cross_entropy_loss(on_mesh(cube, s), y)),
    out_shardings=places,
  )
  sent = read_collectives(grad.lower(student, LABELS).compile().as_text())
  whole = 4 * 4096 * 8 // 2  # Bytes of a device's rows.
  assert [c.payload for c in sent if c.kind == "reduce-scatter"] == [whole]
  assert [c.payload for c in sent if c.kind == "all-gather" and c.payload > 4096] == [whole]
  assert max(c.payload for c in sent if c.kind == "all-reduce") == whole // 2  # Over data.


@pytest.mark.parametrize("items", [8, 4096, 4097])  # Fewer and more rows than tokens.
def test_rows_are_looked_up_by_columns(cube, items):
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.normal(size=(items, 6)), jnp.float32)
  ids = jnp.asarray(rng.integers(0, items, (TOKENS, 2)))
  weights = jnp.asarray(rng.normal(size=(TOKENS, 2, 6)), jnp.float32)
  own = NamedSharding(cube, P(None if items % 2 else "model", "fsdp"))
  batch = NamedSharding(cube, P(("data", "fsdp")))
  place = jax.device_put(table, own), jax.device_put(ids, batch), jax.device_put(weights, batch)

  def step(table, ids, weights):
    return jax.value_and_grad(lambda t: jnp.sum(weights * MeshTable(t, cube)[ids]))(table)

  spread = jax.jit(step, out_shardings=(None, own))
  plain = jax.value_and_grad(lambda t: jnp.sum(weights * t[ids]))(table)
  for a, e in zip(spread(*place), plain, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)
  if items == 4096:
    sent = read_collectives(spread.lower(*place).compile().as_text())
    assert max(c.payload for c in sent) <= 4 * TOKENS * 2 * 6


@pytest.mark.parametrize("tokens", [TOKENS, 11])
@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("items", [ITEMS, 70, 6])
def test_targets_are_found_where_the_table_lies(mesh, items, block, tokens):
  """Best items and draws of tables on a mesh, as of arrays; also where a device has few items."""
  teacher = of_items(TEACHER, items)
  teacher = teacher._replace(query=teacher.query[:tokens], bias=teacher.bias.at[2].set(-jnp.inf))
  k = min(items, 9)
  finders = (
    lambda t: losses.catalog_top_k_targets(t, k, temperature=1.5, block=block),
    lambda t: losses.catalog_sample_targets(jax.random.key(0), t, 8, keep=k // 2, block=block),
  )
  for find in finders:
    found, expected = jax.jit(find)(on_mesh(mesh, teacher)), find(teacher)
    same = np.asarray(found.indices == expected.indices)
    # What a sum rounds to decides of a draw at the edge of two items; the best are the best.
    assert same.all() if find is finders[0] else same.mean() > 0.99
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
      where = same if a.shape == same.shape else np.full(a.shape, True)
      np.testing.assert_allclose(a[where], e[where], rtol=2e-5, atol=1e-6)


def test_finding_targets_gathers_no_table(mesh):
  places = FactoredLogits(*(NamedSharding(mesh, spec) for spec in STUDENT))
  teacher = jax.device_put(logits(8, 1, 4096), places)
  find = lambda t: losses.catalog_sample_targets(  # noqa: E731
    jax.random.key(0), on_mesh(mesh, t), 8, keep=8, block=64
  )
  compiled = jax.jit(find).lower(teacher).compile()
  table = teacher.table.size * 4
  sent = read_collectives(compiled.as_text())
  assert sent
  assert max(c.payload for c in sent) < table / 16
