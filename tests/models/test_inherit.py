import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import models, quant
from kdjax.models.inherit import inherit_tables


def test_one_table_keeps_the_best_inner_products_of_its_width():
  wide = np.random.default_rng(0).normal(size=(30, 8)) * 0.5 ** np.arange(8)
  teacher = {"item": {"embedding": jnp.asarray(wide, jnp.float32)}}
  student = inherit_tables({"item": {"embedding": jnp.zeros([30, 3])}}, teacher)
  table = np.asarray(student["item"]["embedding"])
  left, values, right = np.linalg.svd(wide, full_matrices=False)
  best = (left[:, :3] * values[:3]) @ right[:3]
  np.testing.assert_allclose(table @ table.T, best @ best.T, rtol=1e-4, atol=1e-5)


def test_tables_of_one_width_share_their_basis_and_the_rest_stays():
  sizes = {"num_items": 20, "max_length": 6, "num_layers": 1}
  batch = {name: jnp.zeros([1, 6], jnp.int32) for name in ("items", "segments", "positions")}
  teacher_model = models.make_sasrec(**sizes, dim=8)
  student_model = models.make_sasrec(**sizes, dim=4)
  teacher = teacher_model.init(jax.random.key(0), batch)
  fresh = student_model.init(jax.random.key(1), batch)
  student = inherit_tables(fresh, teacher)

  def both(params):
    return np.concatenate(
      [params[name]["embedding"] for name in ("item_embedding", "position_embedding")]
    )

  # One basis for both: inner products across the two tables are kept as well as within them.
  wide, narrow = both(teacher), both(student)
  _, vectors = np.linalg.eigh(wide.T @ wide)
  top = wide @ vectors[:, -4:]
  np.testing.assert_allclose(narrow @ narrow.T, top @ top.T, rtol=1e-4, atol=1e-6)
  del student["item_embedding"], student["position_embedding"]
  for name, leaves in student.items():
    jax.tree.map(np.testing.assert_array_equal, leaves, fresh[name])


def test_an_int8_teacher_lends_its_dequantized_tables():
  teacher = {"item": {"embedding": jax.random.normal(jax.random.key(0), (12, 6))}}
  fresh = {"item": {"embedding": jnp.zeros([12, 2])}}
  int8 = inherit_tables(fresh, quant.quantize_params(teacher))["item"]["embedding"]
  full = inherit_tables(fresh, teacher)["item"]["embedding"]
  np.testing.assert_allclose(int8 @ int8.T, full @ full.T, atol=0.15)


@pytest.mark.parametrize("shape", [(12, 7), (11, 6)], ids=["wider", "other rows"])
def test_nothing_in_common_is_an_error(shape):
  teacher = {"item": {"embedding": jnp.ones([12, 6])}}
  with pytest.raises(ValueError, match="share no embedding table"):
    inherit_tables({"item": {"embedding": jnp.zeros(shape)}}, teacher)
