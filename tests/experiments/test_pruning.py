"""Pruning, training through integers and mixed precision, by flags and in process."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from experiments import families, fitting, problems, prune, quantize, stored, train
from experiments.config import PruneConfig
from kdjax import quant


@pytest.mark.parametrize("family", ["sasrec", "mlp", "resnet"])
def test_one_run_distils_prunes_and_trains_integers(trained, tmp_path, family):
  fit = dataclasses.replace(tiny.FIT, train_bits=8, epochs=4)
  config = prune.Config(
    str(trained(family)), str(trained(family)), prune=PruneConfig(0.5, mask_every=1), fit=fit
  )
  pruned = prune.run(config, tmp_path / "pruned")
  assert pruned["training"]["sparsity"] == pytest.approx(0.5, abs=0.02)
  floats = stored.load_model(tmp_path / "pruned", flag="--")
  quantize.run(quantize.Config(str(tmp_path / "pruned"), rest_dtype="float32"), tmp_path / "int8")
  served = stored.load_model(tmp_path / "int8", flag="--")
  task = problems.make_task(served.data, family)
  apply = families.make_model(family, served.sizes).apply
  # Validation has judged what is served now.
  value = fitting.means(task.judge(apply, served.params, "valid"))[task.metric]
  assert value == pytest.approx(pruned["training"]["best_valid"], abs=1e-6)
  assert not any(quant.is_qtensor(leaf) for leaf in jax.tree.leaves(floats.params))


@pytest.mark.parametrize(("family", "limits"), [("sasrec", (4, 2.8)), ("mf", (2.2, 1.4))])
def test_mixed_precision_keeps_to_its_bytes(trained, tmp_path, family, limits):
  model = str(trained(family))
  sizes = {}
  for name, kb in zip(("wide", "tight"), limits, strict=True):
    mb = kb / 1000
    result = quantize.run(quantize.Config(model, mixed_mb=mb), tmp_path / name)
    found = result["training"]["sensitivity"]
    chosen = result["training"]["precisions"]
    sizes[name] = sum(s["nbytes"] for s in found if chosen[s["path"]] == s["precision"])
    assert sizes[name] <= mb * 1e6
    params = stored.load_model(tmp_path / name, flag="--").params
    kinds = {type(leaf).__name__ for leaf in jax.tree.leaves(params, is_leaf=quant.is_qtensor)}
    assert "QTensor" in kinds
  assert sizes["tight"] < sizes["wide"]
  with pytest.raises(ValueError, match=r"--mixed_mb=0.0001: .* the smallest precisions take"):
    quantize.run(quantize.Config(model, mixed_mb=0.0001), tmp_path / "none")


@pytest.mark.parametrize(
  ("method", "criterion", "distribution"),
  [
    ("one_shot", "magnitude", "global"), ("one_shot", "saliency", "uniform"),
    ("cubic", "movement", "erdos_renyi_kernel"), ("cubic", "fisher", "global"),
    ("rigl", "magnitude", "erdos_renyi_kernel"), ("set", "magnitude", "uniform"),
  ],
)  # fmt: skip
def test_every_way_to_prune_reaches_the_sparsity(
  trained, tmp_path, method, criterion, distribution
):
  options = PruneConfig(
    sparsity=0.7,
    prune_method=method,
    prune_criterion=criterion,
    prune_distribution=distribution,
    mask_every=2,
  )
  teacher = str(trained())
  result = prune.run(prune.Config(teacher, teacher, prune=options, fit=tiny.FIT), tmp_path)
  # What RigL and SET have grown starts from 0: the best model may hold some of it.
  assert 0.69 <= result["training"]["sparsity"] <= (0.75 if method in ("rigl", "set") else 0.71)
  assert result["training"]["best_step"] >= 1


def test_regrowth_takes_no_criterion():
  options = PruneConfig(prune_method="rigl", prune_criterion="fisher")
  with pytest.raises(
    ValueError, match=r"--prune_criterion=fisher does not fit --prune_method=rigl"
  ):
    prune.transform(options, 10, seed=0)
  options = PruneConfig(prune_method="set", prune_distribution="global")
  with pytest.raises(ValueError, match=r"--prune_distribution=global does not fit"):
    prune.transform(options, 10, seed=0)


def test_distributions_spread_the_same_sparsity_otherwise():
  """Uniform takes the same share of each leaf; wide leaves lose more of the other two."""
  rng = np.random.default_rng(0)
  shapes = {"wide": (40, 30), "thin": (4, 3)}
  params = {"student": {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}}
  lost = {}
  for name in ("uniform", "erdos_renyi_kernel", "global"):
    options = PruneConfig(sparsity=0.75, prune_method="one_shot", prune_distribution=name)
    tx = optax.chain(optax.sgd(0.0), prune.transform(options, 10, seed=0))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params, grad=zero)
    found = optax.apply_updates(params, updates)["student"]
    lost[name] = {k: float(np.mean(np.asarray(x) == 0)) for k, x in found.items()}
    total = sum(lost[name][k] * np.prod(shapes[k]) for k in shapes)
    assert total == pytest.approx(0.75 * 1212, abs=1)
  assert lost["uniform"] == {"wide": 0.75, "thin": 0.75}
  assert lost["erdos_renyi_kernel"]["thin"] == 0
  assert lost["global"]["wide"] > 0.7


@pytest.mark.parametrize("family", ["sasrec", "gru4rec"])
def test_a_student_starts_as_some_layers_of_its_teacher(tmp_path, family):
  config = tiny.train_config(family)
  deep = dataclasses.replace(config, model=dataclasses.replace(config.model, layers=3))
  train.run(deep, tmp_path / "teacher")
  teacher = stored.load_model(tmp_path / "teacher", flag="--")
  options = PruneConfig(sparsity=0.0, keep_layers=(0, 2))
  params, sizes = prune.shrink(teacher, options)
  name = "layer_" if family == "gru4rec" else "block_"
  assert sizes["num_layers"] == 2
  jax.tree.map(np.testing.assert_array_equal, params[f"{name}1"], teacher.params[f"{name}2"])
  assert f"{name}2" not in params
  run = prune.Config(
    str(tmp_path / "teacher"), str(tmp_path / "teacher"), prune=options, fit=tiny.FIT
  )
  result = prune.run(run, tmp_path / "student")
  assert result["sizes"]["num_layers"] == 2
  with pytest.raises(ValueError, match=r"--keep_layers=0,7: no layers \[7\]"):
    prune.shrink(teacher, dataclasses.replace(options, keep_layers=(0, 7)))


def test_train_bits_are_checked(tmp_path):
  with pytest.raises(ValueError, match="--train_bits=5"):
    train.run(tiny.train_config(train_bits=5), tmp_path)
