"""Hugging Face folders as teachers of every task of texts, and as what students start from."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny

from experiments import (
  cache_teacher,
  compress,
  distill,
  evaluate,
  families,
  pretrained,
  problems,
  prune,
  retrieval,
  starts,
  stored,
  texts,
  train,
)
from experiments.config import DataConfig, DistillConfig, ModelConfig, PruneConfig
from kdjax.data.errors import DataError
from kdjax.models import hub, make_bert, make_decoder

FIT = dataclasses.replace(tiny.FIT, epochs=1, tensorboard=False)
MASKED = dataclasses.replace(tiny.TEXTS, objective="masked")
SEARCH = DataConfig(
  synthetic_users=24, synthetic_items=40, max_length=12, query_length=6, vocab_size=300,
  mined_negatives=3, rerank=12,
)  # fmt: skip
# Tables longer than the vocabulary, as they often are.
BERT = {"vocab_size": 330, "max_length": 48, "dim": 8, "num_layers": 1, "num_heads": 2}
DECODER = BERT | {"tied": False}
ROWS = {name: jnp.ones([1, 4], jnp.int32) for name in ("tokens", "segments", "positions")}
GRU = ModelConfig("text_gru", dim=8, layers=1)
SMALL = ModelConfig("decoder", dim=8, layers=1, heads=2)
STATIC = ModelConfig("bi_encoder", encoder="static", dim=8)


def write(folder, words, head, model_type="bert", config=None, **sizes):
  """A random model in a folder, as transformers would leave it there."""
  family = "bert" if model_type == "bert" else "decoder"
  sizes = {**(BERT if family == "bert" else DECODER), "head": head, **sizes}
  make = make_bert if family == "bert" else make_decoder
  params = jax.jit(make(**sizes).init)(jax.random.key(3), ROWS)
  params = jax.tree.map(lambda x: 3 * x, params)
  hub.save(folder, hub.Checkpoint(model_type, family, sizes, params, {}))
  if config:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
  if words is not None:
    (folder / "tokenizer.json").write_text(words.to_str())
  return folder, params


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A folder of every kind, and its params."""
  root, words = tmp_path_factory.mktemp("folders"), texts.tokenizer(tiny.TEXTS)
  asked = retrieval.tokenizer(SEARCH)
  named = {"id2label": {"0": "GOOD", "1": "BAD"}, "label2id": {"GOOD": 0, "BAD": 1}}
  return {
    "classifier": write(root / "classifier", words, "labels", config=named),
    "three": write(root / "three", words, "labels", num_labels=3),
    "tokens": write(root / "tokens", words, "tokens"),
    "decoder": write(root / "decoder", words, "tokens", "llama"),
    "sentences": write(root / "sentences", asked, "pool", pooling="first"),
    "pairs": write(root / "pairs", asked, "labels", num_labels=1),
    "bare": write(root / "bare", None, "tokens", "llama"),
  }


def student(folder, workdir, model, data, **options):
  config = distill.Config(
    (str(folder),), dataclasses.replace(data, tokenizer=str(folder)), model,
    DistillConfig(**options), FIT,
  )  # fmt: skip
  result = distill.run(config, workdir)
  return result, json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize(
  ("kind", "model", "data", "family", "losses"),
  [
    ("classifier", GRU, tiny.TEXTS, "bert", ("kl:0.5",)),
    ("tokens", dataclasses.replace(SMALL, model="bert"), MASKED, "bert", ("kl:0.5",)),
    ("decoder", SMALL, tiny.TEXTS, "decoder", ("kl:0.5", "hint@query:0.1")),
    ("sentences", STATIC, SEARCH, "bi_encoder", ("kl:0.5", "margin_mse:0.1")),
    ("pairs", STATIC, SEARCH, "cross_encoder", ("kl:0.5", "margin_mse:0.1")),
  ],
  ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_kind_of_folder_teaches(folders, tmp_path, kind, model, data, family, losses):
  folder, params = folders[kind]
  data = dataclasses.replace(data, tokenizer=str(folder))
  saved = stored.load_teacher(folder, data, model.model, flag="--teacher")
  assert saved.family == family
  own = stored.load_teacher(str(folder), data, model.model, flag="--teacher").params
  assert jax.tree.structure(own) == jax.tree.structure(params)
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(own))
  np.testing.assert_array_equal(own["block_0"]["up"]["kernel"], params["block_0"]["up"]["kernel"])
  result, logged = student(folder, tmp_path, model, data, distill_losses=losses)
  assert np.isfinite(logged["train/kl"])
  assert logged["train/kl"] > 0
  assert result["family"] == model.model


def test_a_folder_is_not_written_to(folders, tmp_path):
  """What it says is kept in memory, or where --scores_dir says."""
  folder, _ = folders["pairs"]
  before = sorted(folder.iterdir())
  for number, kept in enumerate(("", str(tmp_path / "kept"))):
    options = {"distill_losses": ("kl:0.5",), "scores_dir": kept}
    student(folder, tmp_path / str(number), STATIC, SEARCH, **options)
  assert sorted(folder.iterdir()) == before
  assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_teachers_logits_are_those_of_its_folder_on_the_vocabulary_and_classes(folders):
  batch = {**ROWS, "tokens": jnp.asarray([[5, 9, 2, 7]]), "positions": jnp.arange(4)[None]}

  def said(kind, model, data):
    saved = stored.load_teacher(folders[kind][0], data, model, flag="--teacher")
    own = families.make_model(saved.family, saved.sizes).apply(saved.params, batch).logits
    found = hub.load(folders[kind][0])
    make = make_bert if found.family == "bert" else make_decoder
    return own, make(**found.sizes).apply(found.params, batch).logits

  # The data's classes are bad and good, the folder's labels the other way round.
  own, whole = said("classifier", "bert", tiny.TEXTS)
  np.testing.assert_allclose(own, whole[:, ::-1], atol=1e-6)
  for kind, model, data in (("decoder", "decoder", tiny.TEXTS), ("tokens", "bert", MASKED)):
    own, whole = (logits.dense() for logits in said(kind, model, data))
    assert (own.shape[-1], whole.shape[-1]) == (320, 330)
    np.testing.assert_allclose(own, whole[..., :320], atol=1e-5)


def test_the_other_binaries_take_folders(folders, tmp_path, capsys):
  folder = folders["decoder"][0]
  data = dataclasses.replace(tiny.TEXTS, tokenizer=str(folder))
  config = cache_teacher.Config(
    str(folder), "decoder", top_k=20, values="float32", progress=False, data=data
  )
  cache_teacher.run(config, tmp_path / "cache")
  config = distill.Config(
    (), data, SMALL, DistillConfig(teacher_cache=str(tmp_path / "cache")), FIT
  )
  distill.run(config, tmp_path / "student")
  options = PruneConfig(sparsity=0.5, mask_every=1)
  config = prune.Config(str(tmp_path / "student"), str(folder), prune=options, fit=FIT)
  prune.run(config, tmp_path / "pruned")
  models = (str(folder), str(tmp_path / "pruned"))
  judged = evaluate.run(evaluate.Config(models, requests=2, batches=1), tmp_path / "eval")
  first, second = judged["rows"]
  assert (first["job"], second["job"]) == ("pretrained", "prune")
  assert first["size"]["bytes"] == (folder / "model.safetensors").stat().st_size
  assert first["quality"]["perplexity"]["value"] > 1
  assert 0 <= second["agreement"]["overlap@10"] <= 1
  assert "decoder" in capsys.readouterr().out
  with pytest.raises(ValueError, match="folders alone: add the workdir of a trained model"):
    evaluate.run(evaluate.Config((str(folder),)), tmp_path / "alone")


def test_the_main_job_takes_a_folder(folders, tmp_path, capsys):
  folder = folders["classifier"][0]
  config = dataclasses.replace(
    tiny.compress_config(teacher_dir=str(folder)),
    seeds=(0,),
    data=dataclasses.replace(tiny.TEXTS, tokenizer=str(folder)),
    student=GRU,
    student_fit=FIT,
    recovery_fit=FIT,
    prune=PruneConfig(sparsity=0.5, mask_every=1),
  )
  rows = compress.run(config, tmp_path)["rows"]
  assert [row["name"] for row in rows] == [*compress.LABELS.values()]
  assert rows[-1]["size"]["bytes"] < rows[0]["size"]["bytes"]
  capsys.readouterr()


def test_a_decoder_of_other_tokens_teaches_by_universal_logits_alone(folders, tmp_path):
  other = dataclasses.replace(tiny.TEXTS, vocab_size=310)
  config = distill.Config(
    (str(folders["decoder"][0]),), other, SMALL,
    DistillConfig(distill_losses=("universal_logit:1",)), FIT,
  )  # fmt: skip
  distill.run(config, tmp_path / "student")
  last = json.loads((tmp_path / "student" / "metrics.jsonl").read_text().splitlines()[-1])
  assert last["train/universal_logit"] > 0
  live = dataclasses.replace(config, distill=DistillConfig(distill_losses=("kl:1",)))
  with pytest.raises(DataError, match=r"tokenizer\.json, or --distill_losses=univers"):
    distill.run(live, tmp_path / "live")


@pytest.mark.parametrize(
  ("kind", "model", "data", "message"),
  [
    ("three", "text_gru", tiny.TEXTS, r"tells 3 labels, the data have 2 \(bad, good\); train it"),
    ("tokens", "bert", tiny.TEXTS, "has no weights for the head labels; train it first: exper"),
    ("classifier", "bert", MASKED, "has no weights for the head tokens"),
    ("three", "bi_encoder", SEARCH, "tells 3 labels; a teacher of search encodes sentences"),
    ("decoder", "text_gru", tiny.TEXTS, "is a llama and cannot teach --model=text_gru: bert for"),
    ("classifier", "decoder", tiny.TEXTS, "is a bert and cannot teach --model=decoder"),
    ("sentences", "sasrec", tiny.DATA, "cannot teach --model=sasrec: .* experiments.embed"),
    ("bare", "decoder", tiny.TEXTS, "tokenizer.json: no such file"),
    ("sentences", "bi_encoder", dataclasses.replace(SEARCH, max_length=49), "than the 48 posit"),
  ],
)  # fmt: skip
def test_folders_that_cannot_teach_are_named(folders, kind, model, data, message):
  with pytest.raises(ValueError, match=message):
    stored.load_teacher(folders[kind][0], data, model, flag="--teacher")


def test_a_folder_is_no_workdir(folders, tmp_path):
  folder = str(folders["decoder"][0])
  with pytest.raises(stored.WorkdirError, match=r"--model_dir=.* is a Hugging Face folder, where"):
    prune.run(prune.Config(folder), tmp_path)


def test_other_tokens_than_the_teachers_are_refused(folders, tmp_path):
  other = dataclasses.replace(tiny.TEXTS, vocab_size=310)
  config = distill.Config((str(folders["classifier"][0]),), other, GRU, DistillConfig(), FIT)
  with pytest.raises(DataError, match=r"has other tokens than --tokenizer='' gives; use --tok"):
    distill.run(config, tmp_path)


def test_a_fine_tuned_head_is_kept_where_the_labels_agree(folders, capsys):
  def started(kind, data=tiny.TEXTS):
    folder, params = folders[kind]
    data = dataclasses.replace(data, tokenizer=str(folder))
    model = ModelConfig("bert", checkpoint=str(folder))
    task = problems.make_task(data, "bert")
    sizes = families.model_sizes(model, task)
    fresh = make_bert(**sizes).init(jax.random.key(0), {n: x[:1] for n, x in task.arrays.items()})
    start = starts.start_from(model, data, sizes, fresh)
    assert jax.tree.structure(start) == jax.tree.structure(fresh)
    return start, params, fresh, capsys.readouterr().out

  start, params, _, said = started("classifier")
  np.testing.assert_array_equal(start["head"]["kernel"], params["head"]["kernel"])
  np.testing.assert_array_equal(
    start["classifier"]["kernel"], params["classifier"]["kernel"][:, ::-1]
  )
  assert "labels by name" in said
  # Of other labels the pooler stays, and what does not is said.
  start, params, fresh, said = started("three")
  np.testing.assert_array_equal(start["head"]["kernel"], params["head"]["kernel"])
  np.testing.assert_array_equal(start["classifier"]["kernel"], fresh["classifier"]["kernel"])
  assert "fresh: classifier; left out: classifier (3 labels, here 2)" in said
  start, params, fresh, said = started("tokens")
  np.testing.assert_array_equal(start["head"]["kernel"], fresh["head"]["kernel"])
  assert "fresh: classifier, head; left out: cls.predictions.bias" in said


def test_a_pooler_without_a_classifier_is_kept(folders, tmp_path):
  """As in a folder of a plain BERT, whose pooler is no part of its sentence embeddings."""
  folder, params = write(tmp_path / "whole", texts.tokenizer(tiny.TEXTS), "labels")
  path = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  kept = {n.removeprefix("bert."): x for n, x in tensors.items() if n.startswith("bert.")}
  safetensors.numpy.save_file(kept, path)
  sizes = {**BERT, "vocab_size": 320, "head": "labels", "num_labels": 2}
  own, said = pretrained.params_of(str(folder), "bert", sizes)
  assert set(params) - set(own) == {"classifier"}
  np.testing.assert_array_equal(own["head"]["kernel"], params["head"]["kernel"])
  assert said == ""
  with pytest.raises(hub.HubError, match=r"missing: classifier\.bias"):
    hub.load(folder)


def test_a_classifier_goes_on_by_its_own_head(folders, tmp_path):
  folder = folders["classifier"][0]
  data = dataclasses.replace(tiny.TEXTS, tokenizer=str(folder))
  fit = dataclasses.replace(FIT, learning_rate=0.0)
  model = ModelConfig("bert", checkpoint=str(folder))
  result = train.run(train.Config(data, model, fit), tmp_path / "same")
  judged = evaluate.run(
    evaluate.Config((str(folder), str(tmp_path / "same")), requests=2, batches=1), tmp_path / "e"
  )
  first, second = (row["quality"]["accuracy"]["value"] for row in judged["rows"])
  assert first == second == result["quality"]["accuracy"]["value"]
  assert judged["rows"][1]["agreement"]["kl"] == pytest.approx(0, abs=1e-5)
