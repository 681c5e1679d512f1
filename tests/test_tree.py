"""Paths, selection, counting and bytes on small literal trees."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from kdjax import tree


class Pair(NamedTuple):
  left: object
  right: object


TREE = {
  "dense": {"kernel": jnp.array([[1.0, 0.0], [0.0, 2.0]]), "bias": jnp.zeros([2])},
  "list": [jnp.ones([3], jnp.int8), Pair(jnp.ones([2, 2], jnp.bfloat16), None)],
}


def test_paths_are_strings_whatever_the_container():
  assert [path for path, _ in tree.leaves_with_path(TREE)] == [
    ("dense", "bias"),
    ("dense", "kernel"),
    ("list", "0"),
    ("list", "1", "left"),
  ]


def test_map_with_path_keeps_the_structure():
  named = tree.map_with_path(lambda path, leaf: "/".join(path), TREE)
  assert named["dense"] == {"kernel": "dense/kernel", "bias": "dense/bias"}
  assert named["list"] == ["list/0", Pair("list/1/left", None)]


def test_map_with_path_takes_more_trees():
  doubled = tree.map_with_path(lambda path, a, b: a + b, TREE, TREE)
  np.testing.assert_array_equal(doubled["dense"]["kernel"], [[2, 0], [0, 4]])


def test_is_leaf_stops_the_descent():
  is_pair = lambda x: isinstance(x, Pair)  # noqa: E731
  paths = [path for path, _ in tree.leaves_with_path(TREE, is_leaf=is_pair)]
  assert paths[-1] == ("list", "1")


def test_is_matrix():
  chosen = [path for path, leaf in tree.leaves_with_path(TREE) if tree.is_matrix(path, leaf)]
  assert chosen == [("dense", "kernel"), ("list", "1", "left")]


def test_under_selects_below_its_prefix_only():
  select = tree.under("dense", select=tree.is_matrix)
  chosen = [path for path, leaf in tree.leaves_with_path(TREE) if select(path, leaf)]
  assert chosen == [("dense", "kernel")]
  assert not tree.under("dense", "kernel")(("dense",), None)
  assert tree.under()(("anything",), None)


def test_counts():
  assert tree.count_params(TREE) == 4 + 2 + 3 + 4
  assert tree.count_nonzero(TREE) == 2 + 0 + 3 + 4
  assert tree.count_bytes(TREE) == 4 * 4 + 4 * 2 + 3 * 1 + 4 * 2
  assert tree.count_params({}) == tree.count_nonzero({}) == tree.count_bytes({}) == 0
