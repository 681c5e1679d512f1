"""Divergences of language models and fused losses against trl and liger-kernel, by golden values.

Where a package departs from the paper, the test says how.
"""

import golden_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.types import FactoredLogits

NAME = "trl_liger_losses"


@pytest.fixture(scope="module")
def golden():
  return golden_files.load(NAME)


def check(golden, name, by, loss):
  """Value and gradient of `loss(z)`."""
  value, gradient = jax.value_and_grad(loss)(jnp.asarray(golden[by]))
  np.testing.assert_allclose(value, golden[f"value_{name}"], rtol=1e-5)
  np.testing.assert_allclose(gradient, golden[f"gradient_{name}"], rtol=1e-4, atol=1e-6)


def divergence(student, teacher, beta, where, temperature=1.0):
  """At both ends they give the KL itself, a jump; inside, the divergence as printed."""
  loss = losses.jensen_shannon_loss(
    student,
    teacher,
    teacher_weight=beta,
    normalized=beta in (0.0, 1.0),
    temperature=temperature,
    where=where,
  )
  return loss / temperature**2  # Their factor T**2 is absent.


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_jensen_shannon_equals_trl(golden, beta, temperature):
  where, teacher = golden["labels"] != -100, golden["logits_t"]
  loss = lambda z: divergence(z, teacher, beta, where, temperature)  # noqa: E731
  check(golden, f"jsd_{beta}_{temperature}", "logits_s", loss)


def test_ends_equal_trl(golden):
  where, teacher = golden["labels"] != -100, golden["logits_t"]
  for beta, fn in ((0.0, losses.kl_loss), (1.0, losses.reverse_kl_loss)):
    loss = lambda z, fn=fn: fn(z, teacher, temperature=2.0, where=where) / 4  # noqa: E731
    check(golden, f"jsd_{beta}_2.0", "logits_s", loss)


def test_universal_logit_equals_trl(golden):
  loss = lambda z: losses.universal_logit_loss(z, golden["wide_t"], temperature=1.5)  # noqa: E731
  check(golden, "uld", "logits_s", loss)


@pytest.mark.parametrize("by", ["query_s", "table_s"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_catalogue_losses_equal_liger(golden, beta, by):
  where = golden["items"] != -100
  labels = np.maximum(golden["items"], 0)
  teacher = FactoredLogits(jnp.asarray(golden["query_t"]), jnp.asarray(golden["table_t"]))

  def loss(z):
    parts = {name: jnp.asarray(golden[name]) for name in ("query_s", "table_s")} | {by: z}
    student = FactoredLogits(parts["query_s"], parts["table_s"])
    if beta == 0.0:  # Forward KL: both losses in one sweep.
      return losses.catalog_distillation_loss(
        student, teacher, labels, label_weight=0.2, distill_weight=0.8, where=where
      )
    soft = divergence(student.dense(), teacher.dense(), beta, where)
    return 0.2 * losses.catalog_cross_entropy_loss(student, labels, where=where) + 0.8 * soft

  check(golden, f"fused_{beta}_{by}", by, loss)


@pytest.mark.filterwarnings("ignore")  # The packages' own are not ours to mend.
def test_golden_file_is_what_its_script_makes(golden):
  golden_files.check_script(NAME, golden, packages=("torch", "trl", "liger_kernel"))
