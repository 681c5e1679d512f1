"""Masked language models by flags, what starts from them, LoRA and two-stage distillation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import tiny

from experiments import (
  adapters,
  augment_texts,
  block_terms,
  distill,
  families,
  masked_language,
  prepared,
  problems,
  prune,
  starts,
  stored,
  teachers,
  texts,
  train,
)
from experiments.config import DistillConfig, ModelConfig
from experiments.loss_flags import LossSpec
from experiments.validation import LOSS, make_valid_loss
from kdjax import lora, tree
from kdjax.data.errors import DataError
from kdjax.models import hub, make_bert
from kdjax.reduce import totals
from kdjax.train import teacher_queries
from kdjax.train.objective import Term
from kdjax.train.writers import read_jsonl
from kdjax.types import Outputs

MASKED = dataclasses.replace(tiny.TEXTS, objective="masked")
MODEL = ModelConfig("bert", dim=16, layers=1, heads=2)
SMALL = ModelConfig("bert", dim=8, layers=1, heads=2)
TWO = dataclasses.replace(tiny.FIT, tensorboard=False, learning_rate=1e-2, warmup_steps=0)
FIT = dataclasses.replace(TWO, epochs=1)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "pretrained"
  train.run(train.Config(MASKED, MODEL, TWO), folder)
  return folder


@pytest.fixture(scope="module")
def small(pretrained, tmp_path_factory):
  """A narrower student of the masked model."""
  entries = ("kl:0.5", "hint@blocks:0.1", "attention_mse@blocks:1", "hint@embedding:0.1")
  config = distill.Config(
    (str(pretrained),), MASKED, SMALL, DistillConfig(distill_losses=entries), FIT
  )
  folder = tmp_path_factory.mktemp("runs") / "small"
  return config, folder, distill.run(config, folder)


@pytest.fixture(scope="module")
def adapted(pretrained, tmp_path_factory):
  """A classifier from the masked model, by adapters of rank 2; stopped after an epoch, gone on."""
  folder = tmp_path_factory.mktemp("runs") / "adapted"
  fit = dataclasses.replace(TWO, lora_rank=2, lora_alpha=4.0, patience=None)
  config = train.Config(tiny.TEXTS, dataclasses.replace(MODEL, start=str(pretrained)), fit)
  train.run(dataclasses.replace(config, fit=dataclasses.replace(fit, epochs=1)), folder)
  (folder / "result.json").unlink()
  return config, folder, train.run(config, folder)


def params_of(folder):
  return dict(tree.leaves_with_path(stored.load_model(folder, flag="--").params))


def rows_of(labels, length=200, vocabulary=50):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, vocabulary, (40, length)).astype(np.int32)
  tokens[:, -20:] = -1
  return {"tokens": tokens, "labels": labels}


def test_fifteen_percent_are_hidden_in_three_ways():
  ordinary = np.arange(50) >= 5
  rows = rows_of(None)
  found = jax.jit(
    lambda tokens, key: masked_language.hide({"tokens": tokens}, key, ordinary=ordinary, hidden=3)
  )(rows["tokens"], jax.random.key(0))
  before, after = rows["tokens"], np.asarray(found["tokens"])
  places, labels = np.asarray(found["places"]), np.asarray(found["labels"])
  told = labels >= 0
  free = ordinary[np.maximum(before, 0)] & (before >= 0)
  np.testing.assert_array_equal(told.sum(axis=1), np.round(0.15 * free.sum(axis=1)))
  at = np.take_along_axis(before, places, axis=1)
  np.testing.assert_array_equal(labels[told], at[told])
  assert ordinary[labels[told]].all()
  hidden = np.zeros(before.shape, bool)
  np.put_along_axis(hidden, places, told, axis=1)
  assert hidden.sum() == told.sum()  # No place twice.
  np.testing.assert_array_equal(after[~hidden], before[~hidden])
  seen, was = after[hidden], before[hidden]
  assert np.mean(seen == 3) == pytest.approx(0.8, abs=0.04)
  assert np.mean(seen == was) == pytest.approx(0.1 + 0.1 / 45, abs=0.03)
  assert ordinary[seen[seen != 3]].all()


def test_perplexity_is_that_of_the_saved_model(pretrained):
  result = json.loads((pretrained / "result.json").read_text())
  saved = stored.load_model(pretrained, flag="--")
  model = make_bert(**saved.sizes)
  words = texts.tokenizer(MASKED)
  rows = texts.encode_alone(words, texts.load(MASKED).parts["test"].texts, max_length=12)
  ordinary = np.array([i >= 4 for i in range(words.get_vocab_size())])  # Four special tokens.
  batch = masked_language.hide(
    rows, jax.random.key(0), ordinary=ordinary, hidden=words.token_to_id("[MASK]"), kept=0.0,
    swapped=0.0,
  )  # fmt: skip
  predict = jax.jit(lambda batch: model.apply(saved.params, batch).logits.dense())
  logits = np.asarray(predict(batch), np.float64)
  log_probs = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
  nats, right = [], []
  for row, (places, labels) in enumerate(zip(batch["places"], batch["labels"], strict=True)):
    assert labels[0] >= 0
    nats += [-log_probs[row, p, t] for p, t in zip(places, labels, strict=True) if t >= 0]
    right.append(np.argmax(log_probs[row, places[0]]) == labels[0])
  quality = result["quality"]
  assert quality["pseudo_perplexity"]["value"] == pytest.approx(np.exp(np.mean(nats)), rel=1e-4)
  assert quality["accuracy"]["value"] == pytest.approx(np.mean(right))
  assert quality["pseudo_perplexity"]["value"] < 0.8 * len(ordinary)  # Less than by chance.


def test_masked_students_learn_from_masked_teachers(small, tmp_path):
  config, folder, result = small
  line = read_jsonl(folder / "metrics.jsonl")[-1]
  names = ("cross_entropy", "kl", "hint@blocks", "attention_mse@blocks", "hint@embedding")
  assert all(np.isfinite(line[f"train/{name}"]) for name in names)
  assert result["training"]["decided_by"] == "log_likelihood"
  assert result["size"]["parameters"] < 8000
  with pytest.raises(ValueError, match="--objective=masked does not fit --model=static; use bert"):
    train.run(train.Config(MASKED, ModelConfig("static"), FIT), tmp_path / "x")
  with pytest.raises(ValueError, match="learns the text task; both must be of one task"):
    distill.run(dataclasses.replace(config, data=tiny.TEXTS), tmp_path / "y")


def test_losses_are_taken_at_the_hidden_tokens(pretrained):
  task = problems.make_task(MASKED, "bert")
  saved = stored.load_model(pretrained, flag="--")
  # The teacher's own predictions: nothing is left to learn from it.
  own = task.distill_term(DistillConfig(), FIT)

  @jax.jit
  def values(rows):
    batch = task.augment(FIT)(rows, jax.random.key(1))
    outputs = make_bert(**saved.sizes).apply(saved.params, batch)
    loss = task.label_term(FIT, 1.0).loss(outputs, None, batch).compute()
    kl = own.loss(outputs, outputs, batch).compute()
    return loss, kl, outputs.logits.dense(), batch["places"], batch["labels"]

  loss, kl, logits, places, labels = map(
    np.asarray, values({name: jnp.asarray(x[:3]) for name, x in task.arrays.items()})
  )
  logits = np.take_along_axis(logits, places[..., None], axis=1).astype(np.float64)
  log_probs = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
  nats = -np.take_along_axis(log_probs, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
  assert loss == pytest.approx(nats[labels >= 0].mean(), rel=1e-5)
  assert kl == pytest.approx(0, abs=1e-5)


def test_two_stages_from_a_wider_teacher(adapted, small, tmp_path, capsys):
  """The student of the masked model learns features, then predictions, the latter by adapters."""
  teacher = (str(adapted[1]),)
  entries = ("hint@blocks:1", "attention_mse@blocks:1", "hint@embedding:1")
  inner = DistillConfig(label_weight=0.0, distill_weight=0.0, distill_losses=entries)
  model = dataclasses.replace(SMALL, start=str(small[1]))
  config = distill.Config(teacher, tiny.TEXTS, model, inner, TWO)
  first = distill.run(config, tmp_path / "first")
  lines = read_jsonl(tmp_path / "first" / "metrics.jsonl")
  values = [line[f"valid/{LOSS}"] for line in lines]
  assert first["training"]["decided_by"] == LOSS
  assert first["training"]["best_valid"] == max(values) > values[0]
  for line in lines:  # The weights are 1.
    parts = sum(line[f"valid/{entry.split(':')[0]}"] for entry in entries)
    assert line[f"valid/{LOSS}"] == pytest.approx(-parts, rel=1e-5)
  capsys.readouterr()
  start = dataclasses.replace(SMALL, start=str(tmp_path / "first"))
  fit = dataclasses.replace(FIT, lora_rank=1, lora_select=("attention/query", "block_0/up"))
  second = distill.Config(teacher, tiny.TEXTS, start, DistillConfig(cache_queries=True), fit)
  result = distill.run(second, tmp_path / "second")
  assert result["training"]["decided_by"] == "accuracy"
  before, after = params_of(tmp_path / "first"), params_of(tmp_path / "second")
  said = capsys.readouterr().out
  assert f"{len(before)} of {len(before)} arrays are its own; others: none" in said
  assert "LoRA of rank 1: 56 parameters train, " in said  # 8 + 8 and 8 + 32.
  changed = {path for path in before if not np.array_equal(before[path], after[path])}
  assert changed == {("block_0", "attention", "query", "kernel"), ("block_0", "up", "kernel")}


def test_adapters_that_do_not_fit_are_refused(pretrained, tmp_path):
  params = stored.load_model(pretrained, flag="--").params

  def refuse(message, fresh=None, **options):
    fit = dataclasses.replace(FIT, **{"lora_rank": 1, **options})
    with pytest.raises(ValueError, match=message):
      adapters.make_student(fit, params, jax.random.key(0), fresh=fresh)

  refuse("--lora_select=keys: there are block_0/attention/key, ", lora_select=("keys",))
  refuse("--lora_rank: rank=99 does not fit", lora_rank=99)
  refuse("--lora_rank adapts a model that is trained already", fresh=params)
  config = prune.Config(str(pretrained), fit=dataclasses.replace(FIT, lora_rank=1))
  with pytest.raises(ValueError, match="--lora_rank does not fit pruning"):
    prune.run(config, tmp_path)


def test_padding_counts_for_nothing():
  task = problems.make_task(tiny.TEXTS, "bert")
  (term,) = task.flag_terms(
    DistillConfig(distill_losses=("hint@a:1",)), FIT, num_teachers=1, num_steps=1
  )
  rng = np.random.default_rng(0)
  own, other = (jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32) for _ in "ab")
  segments = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]])
  batch = {"segments": segments, "labels": jnp.array([0, 1])}
  params = {"kernel": jnp.eye(3), "bias": jnp.zeros([3])}
  outputs = [Outputs(jnp.zeros([2, 2]), {"a": x}) for x in (own, other)]
  value = term.loss(params, *outputs, batch).compute()
  real = np.asarray(segments) > 0
  expected = np.mean(np.mean((np.asarray(own) - np.asarray(other)) ** 2, axis=-1)[real])
  assert float(value) == pytest.approx(expected, rel=1e-5)


def test_validation_losses_are_means_over_all_rows():
  x = np.random.default_rng(0).normal(size=(101, 3)).astype(np.float32)
  apply = lambda params, batch, *, key=None: Outputs(batch["x"] @ params, {})  # noqa: E731
  term = Term("square", lambda s, t, b: totals(jnp.square(s.logits) * b["double"]), 0.5)
  bank = Term("bank", lambda *args: 1.0, memory=object())
  augment = lambda batch, key, step: {**batch, "double": jnp.full(len(batch["x"]), 2.0)}  # noqa: E731
  valid_loss = make_valid_loss(apply, [term, bank], None, {"x": x}, augment, 10)
  params = jnp.array([1.0, -2.0, 0.5])
  expected = 2 * np.mean((x.astype(np.float64) @ np.array([1.0, -2.0, 0.5])) ** 2)
  found = valid_loss({"student": params, "helpers": {}}, None)
  assert found["square"] == pytest.approx(expected, rel=1e-5)
  assert found[LOSS] == pytest.approx(-0.5 * expected, rel=1e-5)
  with pytest.raises(ValueError, match="bank: no validation row"):
    make_valid_loss(apply, [bank], None, {"x": x}, augment, 10)


def test_adapters_are_all_that_changes(pretrained, adapted):
  _, folder, result = adapted
  before, after = params_of(pretrained), params_of(folder)
  assert set(after) - set(before) == {("classifier", "kernel"), ("classifier", "bias")}
  changed, factors = set(), 0
  for path, leaf in after.items():
    if path[0] in ("head", "classifier"):
      factors += leaf.size  # Fresh: these train as they are.
    elif path[-1] == "kernel":
      ranks = np.linalg.svd(np.asarray(leaf - before[path], np.float64), compute_uv=False)
      assert ranks[1] > 1e-6
      assert ranks[2] < 1e-5 * ranks[0] + 1e-7  # Rank 2, and rounding.
      factors += 2 * sum(leaf.shape)
      changed.add(path)
    else:
      np.testing.assert_array_equal(leaf, before[path])
  assert len(changed) == 6
  # The pooling layer is another than that of the masked tokens, though of its shape.
  assert not np.allclose(after["head", "kernel"], before["head", "kernel"], atol=0.1)
  sizes = {"trained": factors, "frozen": sum(x.size for p, x in after.items() if p[0] != "head")}
  sizes["frozen"] -= sum(x.size for p, x in after.items() if p[0] == "classifier")
  assert result["training"]["parameters"] == sizes


def test_a_stopped_run_with_adapters_ends_the_same(adapted, tmp_path):
  config, folder, _ = adapted
  train.run(config, tmp_path)
  for one, other in zip(params_of(folder).values(), params_of(tmp_path).values(), strict=True):
    np.testing.assert_array_equal(one, other)


def test_merged_is_what_the_two_branches_give():
  params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)}
  factors = lora.init(params, jax.random.key(0), rank=2)
  factors["kernel"]["b"] = jax.random.normal(jax.random.key(1), (2, 6))
  x = np.random.default_rng(1).normal(size=(5, 8))
  a, b = (np.asarray(factors["kernel"][name], np.float64) for name in "ab")
  expected = x @ np.asarray(params["kernel"], np.float64) + 2.0 * (x @ a) @ b
  merged = lora.merge(params, factors, scale=2.0)["kernel"]
  np.testing.assert_allclose(x @ np.asarray(merged), expected, atol=1e-5)


def test_kept_logits_are_those_of_the_live_teacher(adapted):
  task = problems.make_task(tiny.TEXTS, "bert")
  saved = stored.load_model(adapted[1], flag="--")
  apply = make_bert(**saved.sizes).apply
  kept = teachers.cache_queries(task, FIT, apply, saved.params)
  rows = {name: jnp.asarray(values[:9]) for name, values in task.arrays.items()}
  live = jax.jit(apply)(saved.params, rows)
  np.testing.assert_allclose(kept[:9], live.logits, rtol=1e-5, atol=1e-5)
  cached = jax.jit(teacher_queries.with_queries(apply))(
    saved.params, {**rows, teacher_queries.NAME: kept[:9] + 1}
  )
  np.testing.assert_array_equal(cached.logits, kept[:9] + 1)
  np.testing.assert_allclose(cached.features["query"], live.features["query"], atol=1e-6)


def test_what_does_not_fit_a_start_is_named(pretrained, tmp_path):
  def refuse(message, error=ValueError, data=tiny.TEXTS, start=pretrained):
    model = dataclasses.replace(MODEL, start=str(start))
    with pytest.raises(error, match=message):
      starts.start_from(model, data, {"head": "labels"}, {"block_0": {"x": jnp.zeros([2])}})

  refuse("none of its arrays has a path and shape")
  refuse("--start: no model.safetensors", error=stored.WorkdirError, start=tmp_path)
  other = dataclasses.replace(tiny.TEXTS, vocab_size=300)
  refuse("has other tokens", error=DataError, data=other)
  split = dataclasses.replace(tiny.TEXTS, test_fraction=0.2, tokenizer=str(pretrained))
  refuse("another split of the data: --test_fraction was 0.1, is 0.2", data=split)
  config = distill.Config(
    (str(pretrained),), MASKED, dataclasses.replace(MODEL, start=str(pretrained)),
    DistillConfig(inherit_tables=True), FIT,
  )  # fmt: skip
  with pytest.raises(ValueError, match="--inherit_tables: tables start from --start already"):
    distill.run(config, tmp_path / "e")


def test_a_checkpoint_brings_its_own_head_for_masked_tokens(pretrained, tmp_path):
  saved = stored.load_model(pretrained, flag="--")
  sizes = {**saved.sizes, "num_types": 2, "dropout": 0.1}
  params = {**saved.params, "type_embedding": {"embedding": np.zeros([2, 16], np.float32)}}
  for head in ("tokens", "pool"):
    own = {name: x for name, x in params.items() if head == "tokens" or name not in (
      "head", "head_norm", "token_bias")}  # fmt: skip
    checkpoint = hub.Checkpoint("bert", "bert", {**sizes, "head": head}, own, {})
    hub.save(tmp_path / head, checkpoint)
    assert hub.heads_in(tmp_path / head) == (("pool", "tokens") if head == "tokens" else ("pool",))
    model = ModelConfig("bert", checkpoint=str(tmp_path / head))
    data = dataclasses.replace(MASKED, tokenizer=str(pretrained))
    task = problems.make_task(data, "bert")
    found = families.model_sizes(model, task)
    assert found["head"] == "tokens"
    fresh = make_bert(**found).init(jax.random.key(0), {n: x[:1] for n, x in task.arrays.items()})
    start = texts.start_from(model, found, fresh)
    same = np.array_equal(start["head"]["kernel"], params["head"]["kernel"])
    assert same == (head == "tokens")
    # With adapters, a head that the checkpoint has not is trained whole.
    fit = dataclasses.replace(FIT, lora_rank=1)
    student = adapters.make_student(fit, start, jax.random.key(0), fresh=fresh)
    assert student.frozen(("base", "head", "kernel"), None) == same
    assert student.frozen(("base", "block_0", "up", "kernel"), None)
    assert not student.frozen(("adapters", "block_0", "up", "kernel", "a"), None)
    assert ("head" in student.start["adapters"]) == same
    np.testing.assert_array_equal(
      start["block_0"]["up"]["kernel"], params["block_0"]["up"]["kernel"]
    )


def test_copies_say_their_texts_in_other_words(pretrained, tmp_path):
  config = augment_texts.Config(
    str(pretrained), copies=3, share=0.5, candidates=5, progress=False, data=tiny.TEXTS
  )
  result = augment_texts.run(config, tmp_path / "more")
  dataset = texts.load(tiny.TEXTS)
  train_part = dataset.parts["train"]
  made = pl.read_parquet(tmp_path / "more" / "train.parquet")
  count = len(train_part.texts)
  assert made["text"].to_list()[:count] == list(train_part.texts)
  assert result["written"] == len(made) > 2 * count
  vocabulary = {word for text in train_part.texts for word in text.split()}
  chunk = pl.read_parquet(next((tmp_path / "more" / "chunks").iterdir())).rows()
  words = texts.tokenizer(tiny.TEXTS)
  tokens = {word: len(words.encode(word).ids) - 2 for word in vocabulary}
  places = [
    (old, new)
    for text, copies in zip(train_part.texts, chunk, strict=True)
    for copy in copies
    if sum(tokens[word] for word in text.split()) <= 10  # The model sees all of it.
    for old, new in zip(text.split(), copy.split(), strict=True)
  ]
  changed = [new for old, new in places if old != new]
  share = np.mean([old != new for old, new in places if tokens[old] == 1])
  assert share == pytest.approx(0.5, abs=0.06)
  assert all(old == new or tokens[old] == 1 for old, new in places)
  assert len(changed) > 100
  assert all(new.isalpha() for new in changed)
  assert np.mean([new in vocabulary for new in changed]) > 0.5  # Whole words, learned by merges.
  classes = {text: label for text, label in zip(train_part.texts, train_part.labels, strict=True)}
  extra = iter(made.rows()[count:])
  for text, copies in zip(train_part.texts, chunk, strict=True):
    for copy in (new for new in dict.fromkeys(copies) if new != text):
      assert next(extra) == (copy, dataset.classes[classes[text]])
  # It goes on, and ends the same; a text's copies depend on its number alone.
  again = dataclasses.replace(config, progress=True)
  (tmp_path / "more" / "result.json").unlink()
  next((tmp_path / "more" / "chunks").iterdir()).unlink()
  augment_texts.run(again, tmp_path / "more")
  assert pl.read_parquet(tmp_path / "more" / "train.parquet").equals(made)
  writer = augment_texts.load_writer(config)
  assert augment_texts.rewrite(writer, train_part.texts[7:9], config, first=7) == chunk[7:9]
  # A student of the copies may learn from a teacher of the texts: their test parts are the same.
  data = dataclasses.replace(tiny.TEXTS, dataset=str(tmp_path / "more"))
  other = texts.load(data)
  assert other.parts["test"].texts == dataset.parts["test"].texts
  assert other.parts["valid"].texts == dataset.parts["valid"].texts
  assert prepared.split_of(data) == prepared.split_of(tiny.TEXTS)
  (tmp_path / "static").mkdir()
  stored.save_model(tmp_path / "static", "static", {}, {"x": jnp.zeros([2])}, tiny.TEXTS)
  for message, options in (
    ("give one of --model_dir and --checkpoint", {"model_dir": ""}),
    ("a static that tells no hidden tokens", {"model_dir": str(tmp_path / "static")}),
  ):
    with pytest.raises(ValueError, match=message):
      augment_texts.run(dataclasses.replace(config, **options), tmp_path / message[:8])


def test_words_of_other_tokenizers():
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

  words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "film", "good", "##ing", "##s", "!", "7"]
  lib = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
  lib.normalizer, lib.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
  lib.decoder = decoders.WordPiece()
  lib.add_special_tokens(words[:5])
  kinds = augment_texts.word_kinds(lib)
  assert kinds.tolist() == [0] * 5 + [1, 1, 2, 2, 0, 0]
  text = "Good films, a film! 7 (good) good-film good"
  found = augment_texts._words(lib.encode(text), text, kinds)
  assert [text[word.start : word.stop] for word in found] == ["Good", "film", "good"]
  assert masked_language.mask_id(lib) == 3
  with pytest.raises(DataError, match=r"neither \[MASK\] nor <mask>"):
    masked_language.mask_id(Tokenizer(models.WordPiece({"a": 0}, unk_token="a")))


def test_texts_without_labels_have_a_tokenizer(tmp_path):
  (tmp_path / "plain.csv").write_text("text,year\n" + "a film of words,1999\n" * 12)
  data = dataclasses.replace(MASKED, dataset=str(tmp_path / "plain.csv"))
  assert texts.tokenizer(data).get_vocab_size() > 256
  with pytest.raises(DataError, match="no column label"):
    texts.load(data)


def test_blocks_are_named_of_both_or_neither():
  task = problems.make_task(tiny.TEXTS, "bert")
  for entry, message in (
    ("hint@blocks=block_0:1", "blocks stands for those of both models"),
    ("crd@blocks:1", "crd fits no blocks"),
  ):
    with pytest.raises(ValueError, match=message):
      task.flag_terms(DistillConfig(distill_losses=(entry,)), FIT, num_teachers=1, num_steps=1)
  spec = LossSpec("hint", 1.0, None, "blocks", "blocks")
  own, other = (
    Outputs(None, {f"block_{i}{part}": None for i in range(count) for part in ("", "_values")})
    for count in (2, 6)
  )
  assert block_terms._pairs(spec, own, other) == {"block_0": "block_2", "block_1": "block_5"}
  with pytest.raises(ValueError, match="'hint@blocks': the student has 6 blocks, the teacher only"):
    block_terms._pairs(spec, other, own)
  with pytest.raises(ValueError, match="'hint@blocks': the student has no blocks"):
    block_terms._pairs(spec, Outputs(None, {"layer_0": None}), own)
