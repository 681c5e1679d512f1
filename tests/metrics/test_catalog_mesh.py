"""The evaluator on a mesh: users shared by some devices, items by others, ranks as on one."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from test_catalog import brute_force, case, ragged, rows_of

from kdjax import metrics
from kdjax.mesh_table import MeshTable
from kdjax.metrics import catalog_blocks, plan
from kdjax.types import FactoredLogits

# Rows that divide, rows that do not, and columns that do in their place, which are turned to rows.
SHAPES = {"24 x 5": (24, 5), "23 x 5": (23, 5), "23 x 8": (23, 8)}
MESHES = ((8, 1, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2))


def on_mesh(table, sizes):
  """A table split as `kdjax.train.shardings` would: by rows or else columns, and over `fsdp`."""
  mesh = Mesh(np.array(jax.devices()).reshape(sizes), ("data", "fsdp", "model"))
  rows, columns = (size % mesh.shape["model"] == 0 for size in table.shape)
  spec = ["model" if rows else None, "model" if columns and not rows else None]
  if spec[1] is None and table.shape[1] % mesh.shape["fsdp"] == 0:
    spec[1] = "fsdp"
  return MeshTable(jax.device_put(table, NamedSharding(mesh, P(*spec))), mesh)


def made(shape, levels=None):
  items, dim = SHAPES[shape]
  queries, table, seen, targets = case(3, items=items, levels=levels)
  wide = np.zeros((items, dim), np.float32)
  wide[:, : table.shape[1]] = table
  padded = np.zeros((len(queries), dim), np.float32)
  padded[:, : queries.shape[1]] = queries
  return padded, wide, seen, targets


@pytest.mark.parametrize("sizes", MESHES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [None, 2])
def test_ranks_equal_brute_force(sizes, shape, levels):
  queries, table, seen, targets = made(shape, levels)
  bias = np.arange(len(table), dtype=np.float32) % 3
  options = {"bias": bias, "users_per_block": 8}
  split = on_mesh(table, sizes)
  ranks = metrics.rank_targets(queries, split, *ragged(seen), *ragged(targets), **options)
  assert rows_of(ranks) == brute_force(queries @ table.T + bias, seen, targets)
  seen[5] = list(range(len(table) - 2))
  alone, best = (metrics.top_k(queries, x, *ragged(seen), k=6, **options) for x in (table, split))
  np.testing.assert_array_equal(best.ids, alone.ids)
  np.testing.assert_allclose(best.scores, alone.scores, rtol=2e-6)
  assert (best.ids[5] == -1).sum() == 4


def test_equal_rows_of_different_devices_tie():
  rng = np.random.default_rng(6)
  queries = rng.normal(size=(9, 33)).astype(np.float32)
  table = np.broadcast_to(rng.normal(size=(1, 33)).astype(np.float32), (997, 33))
  nothing = np.zeros(0, np.int32), np.zeros(10, int)
  targets = rng.integers(0, 997, 9), np.arange(10)
  ranks = metrics.rank_targets(queries, on_mesh(table, (2, 1, 4)), *nothing, *targets)
  assert np.all(ranks.greater == 0)
  assert np.all(ranks.tied == 997)


def test_minus_infinity_and_nan_are_kept_apart_on_every_device():
  queries = np.ones((1, 1), np.float32)
  table = np.array([[0.0], [-np.inf], [-np.inf], [1.0], [-np.inf]], np.float32)
  split = on_mesh(table, (2, 1, 4))  # Its last device holds one item, and places for another.
  ranks = metrics.rank_targets(queries, split, *ragged([[2, 3]]), *ragged([[1]]))
  assert rows_of(ranks) == [(0, 1, 1, 2)]
  table = np.array([[1.0], [0.0], [0.0], [np.nan]], np.float32)
  ranks = metrics.rank_targets(queries, on_mesh(table, (2, 1, 4)), *ragged([[]]), *ragged([[0]]))
  assert ranks.greater.tolist() == [1]
  with pytest.raises(ValueError, match="the score of item 3 for user 0 is NaN"):
    metrics.rank_targets(queries, on_mesh(table, (2, 1, 4)), *ragged([[]]), *ragged([[3]]))


@pytest.mark.parametrize("shape", SHAPES)
def test_no_device_is_told_of_rows_or_scores(shape, monkeypatch):
  """Over the axis that splits items travel numbers of users, and the best of each device."""
  programs = {}

  def compiled(name, fn):
    @functools.wraps(fn)
    def call(*args, **options):
      programs[name] = fn.lower(*args, **options).compile()
      return fn(*args, **options)

    return call

  for name in ("rank_blocks", "top_k_blocks"):
    monkeypatch.setattr(metrics.catalog, name, compiled(name, getattr(catalog_blocks, name)))
  queries, table, seen, _ = made(shape)
  split, one_each = on_mesh(table, (2, 1, 4)), ragged([[user % 23] for user in range(37)])
  metrics.rank_targets(queries, split, *ragged(seen), *one_each, users_per_block=8)
  metrics.top_k(queries, split, *ragged(seen), k=3, users_per_block=8)
  for program in programs.values():
    for dims, kind in re.findall(r"= \w+\[([\d,]*)\]\S* (all-\w+)(?:-start)?\(", program.as_text()):
      if kind == "all-to-all":  # Of rows that do not divide: each device's share, once.
        assert shape == "23 x 8"
        continue
      assert kind == "all-reduce", (dims, kind)
      # Of a block of 8: the targets, counts, or the 3 best of 4 devices; of all: 5 lines.
      assert math.prod(map(int, filter(None, dims.split(",")))) <= max(8 * 4 * 3, 8 * 5)


def test_ten_million_items_of_eight_devices():
  """What the compiler says a device needs: its own rows, and a block's scores against them."""
  items, dim, users, block = 10_000_000, 64, 1000, 8
  mesh = Mesh(np.array(jax.devices()).reshape(1, 1, 8), ("data", "fsdp", "model"))
  shaped = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  table = shaped((items, dim), sharding=NamedSharding(mesh, P("model")))
  state = FactoredLogits(shaped((users, dim)), MeshTable(table, mesh), None)
  blocks = plan.make_blocks(np.arange(users), np.zeros(0, int), num_items=items, size=block)
  grid, _ = plan.make_grid(blocks, np.zeros(users, np.int32), np.arange(users + 1), size=block)
  options = {"scorer": metrics.catalog._score_factored, "num_items": items}
  options |= {"items_per_block": items}
  own = items // 8 * 4  # Bytes of one float for each item of a device.
  for lowered in (
    catalog_blocks.rank_blocks.lower(state, plan.on_device(blocks), grid, **options),
    catalog_blocks.top_k_blocks.lower(state, plan.on_device(blocks), **options, k=10),
  ):
    memory = lowered.compile().memory_analysis()
    assert memory.argument_size_in_bytes == pytest.approx(own * dim, rel=0.01)
    assert memory.temp_size_in_bytes < 4 * block * own, "scores, and what removes and compares them"
