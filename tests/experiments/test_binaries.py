import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import (
  compress,
  distill,
  evaluate,
  families,
  prune,
  quantize,
  report,
  stored,
  train,
)
from experiments.config import PruneConfig
from kdjax import quant
from kdjax.report import ResultError

FAMILIES = (
  *("sasrec", "bert4rec", "gru4rec", "two_tower", "mf", "ncf", "mlp", "resnet", "speech_gru"),
  *("bert", "text_gru", "text_cnn", "static", "decoder"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_distils(trained, tmp_path, family):
  teacher = trained(family)
  result = distill.run(tiny.distill_config(teacher, family), tmp_path / "student")
  metric = result["quality"][result["metric"]]["value"]
  assert 0 <= metric <= 1 or (family == "decoder" and -6 < metric < 0)
  assert result["size"]["bytes"] == (tmp_path / "student" / "model.safetensors").stat().st_size
  big = json.loads((teacher / "result.json").read_text())
  assert result["size"]["parameters"] < big["size"]["parameters"]
  lines = (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()
  assert len(lines) == tiny.FIT.epochs
  assert any(name.startswith("train/distill") for name in json.loads(lines[0]))


def test_a_long_short_term_memory_is_trained_pruned_and_quantized(trained, tmp_path):
  config = tiny.distill_config(trained("bert"), "text_gru")
  model = dataclasses.replace(config.model, cell="lstm")
  made = distill.run(dataclasses.replace(config, model=model), tmp_path / "lstm")
  assert made["sizes"]["cell"] == "lstm"
  half = PruneConfig(sparsity=0.5, keep_mlp=0.5, keep_dim=0.5, mask_every=1)
  small = prune.run(
    prune.Config(str(tmp_path / "lstm"), prune=half, fit=tiny.FIT), tmp_path / "small"
  )
  assert small["size"]["parameters"] < made["size"]["parameters"]
  quantize.run(quantize.Config(str(tmp_path / "small")), tmp_path / "int8")
  other = dataclasses.replace(model, model="static")
  with pytest.raises(ValueError, match="--cell=lstm does not fit --model=static; use text_gru"):
    distill.run(dataclasses.replace(config, model=other), tmp_path / "wrong")


def test_texts_are_grouped_by_length(tmp_path):
  result = train.run(tiny.train_config("static", group_by_length=True), tmp_path / "run")
  assert result["training"]["steps"] > 1
  for family, options in (("sasrec", {}), ("static", {"stream": True})):
    config = tiny.train_config(family, group_by_length=True, **options)
    with pytest.raises(ValueError, match=r"--group_by_length is for classes of texts"):
      train.run(config, tmp_path / f"wrong-{family}")


def test_frozen_parameters_stay(trained, tmp_path):
  config = tiny.train_config(freeze=("item_embedding", "block_0/attention"))
  train.run(config, tmp_path / "frozen")
  free, kept = (
    stored.load_model(folder, flag="--").params
    for folder in (trained("sasrec"), tmp_path / "frozen")
  )
  first = families.make_model("sasrec", stored.load_model(tmp_path / "frozen", flag="--").sizes)
  rows = {name: jnp.zeros([1, 4], jnp.int32) for name in ("items", "segments", "positions")}
  start = first.init(jax.random.split(jax.random.key(0), 3)[0], rows)
  for path, same in (
    (("item_embedding",), True), (("block_0", "attention"), True), (("block_0", "up"), False)
  ):  # fmt: skip
    of = lambda tree, path=path: functools.reduce(lambda at, key: at[key], path, tree)  # noqa: E731
    equal = jax.tree.all(jax.tree.map(jnp.array_equal, of(kept), of(start)))
    assert equal == same
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, of(free), of(start)))
  with pytest.raises(ValueError, match=r"--freeze=blocks: there are block_0, "):
    train.run(tiny.train_config(freeze=("blocks",)), tmp_path / "wrong")


@pytest.mark.parametrize("family", ["sasrec", "mlp", "resnet", "bert"])
def test_families_prune_and_quantize(trained, tmp_path, family):
  teacher = trained(family)
  options = PruneConfig(sparsity=0.6, keep_mlp=0.5, mask_every=1)
  config = prune.Config(str(teacher), str(teacher), prune=options, fit=tiny.FIT)
  pruned = prune.run(config, tmp_path / "pruned")
  assert pruned["training"]["sparsity"] == pytest.approx(0.6, abs=0.02)
  before = json.loads((teacher / "result.json").read_text())["size"]
  assert pruned["size"]["parameters"] < before["parameters"]
  int8 = quantize.run(quantize.Config(str(tmp_path / "pruned")), tmp_path / "int8")
  assert int8["size"]["bytes"] < pruned["size"]["bytes"] < before["bytes"]
  params = stored.load_model(tmp_path / "int8", flag="--").params
  leaves = jax.tree.leaves(params, is_leaf=quant.is_qtensor)
  assert any(quant.is_qtensor(leaf) for leaf in leaves)
  config = quantize.Config(str(tmp_path / "pruned"), bits=4, rest_dtype="float16")
  int4 = quantize.run(config, tmp_path / "int4")
  assert int4["size"]["bytes"] < int8["size"]["bytes"]
  config = dataclasses.replace(config, affine=True, group=2)
  affine = quantize.run(config, tmp_path / "affine")
  # What was pruned is still 0; what was small may have become it.
  assert affine["size"]["nonzero"] <= pruned["size"]["nonzero"]


def test_compress_writes_table_plots_and_models_and_is_resumable(tmp_path, capsys):
  config = tiny.compress_config(alone_dropout=0.1)
  result = compress.run(config, tmp_path)
  dropouts = [
    json.loads((tmp_path / f"{stage}-seed1" / "config.json").read_text())["model"]["dropout"]
    for stage in ("alone", "distilled")
  ]
  assert dropouts == [0.1, tiny.STUDENT.dropout]
  names = [row["name"] for row in result["rows"]]
  assert names == [
    "teacher",
    *(n for n in ("alone", "distilled", "+ pruned", "+ int8") for _ in "01"),
  ]
  table = (tmp_path / "table.md").read_text()
  assert table.count("\n") == 2 + 5
  for column in (
    "ndcg@10",
    "gap recovered",
    "parameters",
    "MB",
    "MACs",
    "p50",
    "p99",
    "requests/s",
  ):
    assert column in table
  assert table in capsys.readouterr().out
  for plot in ("quality_bytes", "quality_latency", "training"):
    assert (tmp_path / "plots" / f"{plot}.png").read_bytes()[:4] == b"\x89PNG"
  for row in result["rows"]:
    assert row["size"]["bytes"] > 0
    assert row["cost"]["latency_p50_ms"] <= row["cost"]["latency_p99_ms"]
  agreement = next(row for row in result["rows"] if row["name"] == "distilled")["agreement"]
  assert set(agreement) == {"overlap@10", "kl", "kendall@10"}
  # A stage that is done is not done again; one that is lost is.
  (tmp_path / "result.json").unlink()
  shutil.rmtree(tmp_path / "int8-seed1")
  shutil.rmtree(tmp_path / "evaluation")
  stamp = (tmp_path / "teacher" / "result.json").stat().st_mtime_ns
  again = compress.run(config, tmp_path)
  assert (tmp_path / "teacher" / "result.json").stat().st_mtime_ns == stamp
  quality = [[row["quality"] for row in r["rows"]] for r in (result, again)]
  assert quality[0] == quality[1]


def test_the_same_seed_gives_the_same_model_and_another_seed_another(trained, tmp_path):
  config = tiny.train_config()
  train.run(config, tmp_path / "again")
  train.run(tiny.train_config(seed=1), tmp_path / "other")
  same, again, other = (
    stored.load_model(path, flag="--").params
    for path in (trained(), tmp_path / "again", tmp_path / "other")
  )
  equal = lambda a, b: all(  # noqa: E731
    np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )
  assert equal(same, again)
  assert not equal(same, other)


@pytest.mark.parametrize(
  "options",
  [
    {"stream": True}, {"accumulate": 2}, {"dtype": "bfloat16"}, {"logits_dtype": "bfloat16"},
    {"parallel": "pmap", "data_devices": 2}, {"data_devices": 2, "model_devices": 4},
    {"fsdp_devices": 2, "model_devices": 2, "data_devices": 2, "accumulate": 2},
    {"label_loss": "sampled_softmax"}, {"label_loss": "bpr"}, {"label_loss": "bce"},
    {"label_loss": "nce"},
    {"optimizer": "lion", "schedule": "cosine", "clip_norm": 1.0, "weight_decay": 0.1},
  ],
  ids=lambda options: next(iter(options)) + "=" + str(next(iter(options.values()))),
)  # fmt: skip
def test_training_options(tmp_path, options):
  result = train.run(tiny.train_config(**options), tmp_path)
  assert result["training"]["steps"] > 0


def test_kept_queries_give_the_student_of_the_live_teacher(trained, tmp_path):
  for cached in (False, True):
    config = tiny.distill_config(trained(), cache_queries=cached, hint_weight=0.1)
    distill.run(config, tmp_path / str(cached))
  lines = [json.loads((tmp_path / str(c) / "metrics.jsonl").read_text().splitlines()[-1])
           for c in (False, True)]  # fmt: skip
  for name in ("train/cross_entropy", "train/distill_kl", "train/hint", "train/loss"):
    assert lines[0][name] == pytest.approx(lines[1][name], rel=1e-4)
  with pytest.raises(ValueError, match="--cache_queries"):
    distill.run(tiny.distill_config(trained("mf"), "mf", cache_queries=True), tmp_path / "mf")


def test_inherited_tables_are_where_training_starts(trained, tmp_path):
  fit = dataclasses.replace(tiny.FIT, epochs=1, learning_rate=0.0)
  config = tiny.distill_config(trained(), inherit_tables=True, fit=fit)
  distill.run(config, tmp_path)
  table = stored.load_model(tmp_path, flag="--").params["item_embedding"]["embedding"]
  wide = stored.load_model(trained(), flag="--").params["item_embedding"]["embedding"]
  # What 8 of 16 columns keep is most of the table, and nothing is added to it.
  kept = np.linalg.norm(table) ** 2 / np.linalg.norm(wide) ** 2
  assert 0.5 < kept <= 1 + 1e-5


@pytest.mark.parametrize("loss", ["kl", "mse", "bernoulli_kl"])
def test_distillation_losses_with_a_hint(trained, tmp_path, loss):
  config = tiny.distill_config(trained(), distill_loss=loss, hint_weight=0.1, temperature=2.0)
  distill.run(config, tmp_path)
  line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
  assert {f"train/distill_{loss}", "train/hint", "train/cross_entropy"} <= set(line)
  params = stored.load_model(tmp_path, flag="--").params
  assert "helpers" not in params
  assert "student" not in params


def test_evaluate_and_report(trained, tmp_path, capsys):
  distill.run(tiny.distill_config(trained()), tmp_path / "student")
  config = evaluate.Config(
    models=(str(trained()), str(tmp_path / "student")), names=("teacher", "small"), requests=3,
    batches=2, sampled_negatives=5,
  )  # fmt: skip
  result = evaluate.run(config, tmp_path / "eval")
  assert {"difference", "low", "high", "p_value"} <= set(result["rows"][1]["against_teacher"])
  assert all(name.startswith("sampled5_") for name in result["rows"][1]["sampled"])
  readme = tmp_path / "README.md"
  readme.write_text("before\n<!-- begin t -->\nold\n<!-- end t -->\nafter\n")
  report.run(
    report.Config(runs=(str(tmp_path / "eval"),), markdown=str(readme), block="t"),
    tmp_path / "report",
  )
  assert "| small |" in readme.read_text()
  assert "old" not in readme.read_text()
  assert (tmp_path / "report" / "quality_bytes.png").exists()
  assert "| small |" in capsys.readouterr().out


def test_a_workdir_of_other_flags_is_refused(trained):
  with pytest.raises(stored.WorkdirError, match=r"--seed was 0, is 7"):
    train.run(tiny.train_config(seed=7), trained())


@pytest.mark.parametrize("make", [
  lambda folder: distill.run(tiny.distill_config(folder / "nothing"), folder / "x"),
  lambda folder: quantize.run(quantize.Config(str(folder / "nothing")), folder / "x"),
  lambda folder: prune.run(prune.Config(str(folder / "nothing")), folder / "x"),
  lambda folder: evaluate.run(evaluate.Config((str(folder / "nothing"),)), folder / "x"),
])  # fmt: skip
def test_a_missing_model_names_the_flag(tmp_path, make):
  with pytest.raises(stored.WorkdirError, match=r"--(teacher|model_dir|models): no model"):
    make(tmp_path)


def test_a_missing_result_is_named(tmp_path):
  with pytest.raises(ResultError, match="nothing"):
    report.run(report.Config(runs=(str(tmp_path / "nothing"),)), tmp_path / "x")


def test_a_teacher_of_another_task_or_catalogue_is_refused(trained, tmp_path):
  with pytest.raises(ValueError, match="pair task"):
    distill.run(tiny.distill_config(trained("mf")), tmp_path / "a")
  config = tiny.distill_config(trained())
  other = dataclasses.replace(tiny.DATA, synthetic_items=30)
  with pytest.raises(ValueError, match="num_items"):
    distill.run(dataclasses.replace(config, data=other), tmp_path / "b")


def test_a_teacher_of_another_split_is_refused(trained, tmp_path):
  config = tiny.distill_config(trained())
  other = dataclasses.replace(tiny.DATA, min_sequence=5)
  with pytest.raises(ValueError, match="another split: --min_sequence was 4, is 5"):
    distill.run(dataclasses.replace(config, data=other), tmp_path)
  # How much of a history a model sees is its own affair.
  longer = dataclasses.replace(tiny.DATA, all_windows=False)
  distill.run(dataclasses.replace(config, data=longer), tmp_path / "b")


def test_the_length_of_training_is_fixed_where_it_matters(tmp_path):
  train.run(tiny.train_config(), tmp_path / "done")
  with pytest.raises(stored.WorkdirError, match="--epochs was 2, is 4"):
    train.run(tiny.train_config(epochs=4), tmp_path / "done")
  train.run(tiny.train_config(schedule="cosine"), tmp_path / "cosine")
  (tmp_path / "cosine" / "result.json").unlink()
  with pytest.raises(stored.WorkdirError, match="--epochs was 2, is 4"):
    train.run(tiny.train_config(schedule="cosine", epochs=4), tmp_path / "cosine")


def test_flags_that_do_not_fit_are_refused(trained, tmp_path):
  with pytest.raises(ValueError, match="--label_loss=cross_entropy does not fit --model=mf"):
    train.run(tiny.train_config("mf", label_loss="cross_entropy"), tmp_path / "a")
  config = tiny.train_config()
  odd = dataclasses.replace(config, model=dataclasses.replace(config.model, heads=3))
  with pytest.raises(ValueError, match="--heads=3 does not divide --dim=16"):
    train.run(odd, tmp_path / "b")
  with pytest.raises(ValueError, match="the student has no feature 'nope'; it has"):
    distill.run(
      tiny.distill_config(trained(), hint_weight=1.0, hint_features="nope:query"), tmp_path / "c"
    )
  with pytest.raises(ValueError, match="--keep_heads"):
    prune.run(
      prune.Config(str(trained("gru4rec")), prune=PruneConfig(keep_heads=0.5)), tmp_path / "d"
    )
  with pytest.raises(ValueError, match="all 0"):
    distill.run(
      tiny.distill_config(trained(), label_weight=0.0, distill_weight=0.0), tmp_path / "e"
    )


def test_a_binary_runs_by_flags_and_errors_in_one_line(tmp_path):
  log = tmp_path / "log.csv"
  lines = [f"u{u},i{(u * 7 + t * (1 + u % 3)) % 30},{t}" for u in range(40) for t in range(9)]
  log.write_text("who,what,when\n" + "\n".join(lines) + "\n")
  arguments = (
    f"--workdir={tmp_path / 'run'}", f"--dataset={log}", "--user_column=who", "--item_column=what",
    "--timestamp_column=when", "--epochs=2", "--dim=8", "--layers=1", "--noprogress",
    "--max_length=8", "--batch_size=8", f"--compile_cache={tmp_path / 'programs'}",
  )  # fmt: skip
  done = tiny.binary("train", *arguments)
  assert "users 40 | items 30 | interactions 360" in done.stdout
  assert "test ndcg@10" in done.stdout
  assert (tmp_path / "run" / "ids").is_dir()
  assert list((tmp_path / "programs").iterdir())
  training = json.loads((tmp_path / "run" / "result.json").read_text())["training"]
  assert 0 < training["first_call_seconds"] < training["seconds"]
  failed = tiny.binary("train", *arguments, "--dim=16", check=False)
  assert failed.returncode == 1
  assert failed.stderr.splitlines()[-1].startswith("error: ")
  assert "--dim was 8, is 16" in failed.stderr
  assert "Traceback" not in failed.stderr
  missing = tiny.binary(
    "train", f"--workdir={tmp_path / 'y'}", "--dataset=no/such/log", check=False
  )
  assert missing.returncode == 1
  assert "no/such/log" in missing.stderr


@pytest.mark.parametrize("job", ["train", "compress"])
def test_help_reads_well(job):
  shown = tiny.binary(job, "--help", check=False).stdout
  assert "--" in shown
  assert "An interaction log" in shown or "interaction log" in shown
  assert "learning_rate" in shown


def test_changing_only_the_length_of_training_goes_on(tmp_path):
  train.run(tiny.train_config(), tmp_path)
  (tmp_path / "result.json").unlink()
  longer = train.run(tiny.train_config(epochs=4, patience=None), tmp_path)
  assert longer["training"]["steps"] > 2
