"""Decoders with more rows in their tables than there are tokens: those are never seen."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import cache_teacher, distill, generate, problems, stored, texts, train
from experiments.config import DistillConfig, ModelConfig
from experiments.teachers import join_teachers
from kdjax import models
from kdjax.models import hub
from kdjax.train import teacher_cache

FIT = dataclasses.replace(tiny.FIT, epochs=1, learning_rate=0.01)
SIZES = {"max_length": 16, "dim": 8, "num_layers": 1, "num_heads": 2, "tied": False}
NAMES, PADDING = ("plain", "padded"), 16


def data_of(folder):
  return dataclasses.replace(tiny.TEXTS, tokenizer=str(folder / "plain"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """One decoder as it is, and with rows beyond its tokens that would win every softmax.

  `plain` and `padded` are checkpoint folders; `run_plain` and `run_padded` workdirs of teachers.
  """
  folder = tmp_path_factory.mktemp("models")
  words = texts.tokenizer(tiny.TEXTS)
  sizes = SIZES | {"vocab_size": words.get_vocab_size()}
  one = jnp.ones([1, 1], jnp.int32)
  batch = {"tokens": one, "segments": one, "positions": 0 * one}
  plain = jax.jit(models.make_decoder(**sizes).init)(jax.random.key(0), batch)
  plain = jax.tree.map(lambda x: 3 * x, plain)
  padding = 50 * jax.random.normal(jax.random.key(1), [PADDING, SIZES["dim"]])
  longer = lambda table: {"embedding": jnp.concatenate([table["embedding"], padding])}  # noqa: E731
  tables = {name: longer(plain[name]) for name in ("token_embedding", "output_embedding")}
  padded = {**plain, **tables}
  for name, params in zip(NAMES, (plain, padded), strict=True):
    own = sizes | {"vocab_size": len(params["token_embedding"]["embedding"])}
    hub.save(folder / name, hub.Checkpoint("llama", "decoder", own, params, {}))
    (folder / name / "tokenizer.json").write_text(words.to_str())
    run = folder / f"run_{name}"
    run.mkdir()
    stored.save_model(run, "decoder", own, params, data_of(folder))
    (run / "tokenizer.json").write_text(words.to_str())
  return folder


def both(folders, run):
  """What `run` gives of the plain model's name, and of the padded one's."""
  return [run(name) for name in NAMES]


@pytest.mark.parametrize(
  "options",
  [
    {"distill_losses": ("kl:1", "reverse_kl:1")},
    {"distill_loss": "kl"},
    {"cache_top_k": 5},
  ],
  ids=lambda options: next(iter(options)),
)
def test_a_padded_teacher_teaches_as_the_plain_one(folders, tmp_path, options):
  def learned(name):
    config = tiny.distill_config(folders / f"run_{name}", "decoder", FIT, **options)
    distill.run(dataclasses.replace(config, data=data_of(folders)), tmp_path / name)
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    return {k: v for k, v in json.loads(lines[-1]).items() if k.startswith(("train/", "valid/"))}

  plain, padded = both(folders, learned)
  assert plain
  assert padded == pytest.approx(plain, rel=1e-5)


def test_losses_and_logits_are_equal(folders):
  task = problems.make_task(data_of(folders), "decoder")

  def said(name):
    teacher = stored.load_model(folders / f"run_{name}", flag="--teacher")
    stored.check_teacher(teacher, task, data_of(folders))
    apply, params, arrays = join_teachers(task, FIT, DistillConfig(), [teacher])
    batch = {field: jnp.asarray(values[:2]) for field, values in arrays.items()}
    return jax.nn.softmax(jax.jit(apply)(params, batch).logits.dense())

  plain, padded = both(folders, said)
  assert plain.shape[-1] == task.sizes["vocab_size"]
  np.testing.assert_array_equal(plain, padded)


def test_cached_targets_are_equal(folders, tmp_path):
  def kept(name):
    config = cache_teacher.Config(
      str(folders / f"run_{name}"), "decoder", top_k=7, samples=3, values="float32",
      progress=False, data=data_of(folders),
    )  # fmt: skip
    cache_teacher.run(config, tmp_path / name)
    return np.asarray(teacher_cache.read(tmp_path / name)[1])

  np.testing.assert_array_equal(*both(folders, kept))


def test_a_student_starts_without_the_padding(folders, tmp_path):
  def trained(name):
    data = dataclasses.replace(data_of(folders), tokenizer=str(folders / name))
    model = ModelConfig("decoder", checkpoint=str(folders / name), dropout=0.0)
    return train.run(train.Config(data, model, FIT), tmp_path / name)

  plain, padded = both(folders, trained)
  assert padded["sizes"] == plain["sizes"]
  assert padded["quality"] == plain["quality"]


@pytest.mark.parametrize("flag", ["checkpoint", "model_dir"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_padding_is_never_written(folders, tmp_path, flag, temperature):
  def written(name):
    model = str(folders / (f"run_{name}" if flag == "model_dir" else name))
    config = generate.Config(
      **{flag: model}, count=16, prompt_tokens=3, texts_per_call=16, temperature=temperature,
      progress=False, data=data_of(folders),
    )  # fmt: skip
    generate.run(config, tmp_path / name)
    return texts.load(
      dataclasses.replace(tiny.TEXTS, dataset=str(tmp_path / name)), labels=False
    ).parts["train"].texts  # fmt: skip

  plain, padded = both(folders, written)
  assert plain == padded


def test_a_teacher_of_another_vocabulary_is_named(folders, tmp_path):
  """A run that keeps no tokenizer, so that nothing says which of its rows are tokens."""
  saved = stored.load_model(folders / "run_plain", flag="--teacher")
  sizes = saved.sizes | {"vocab_size": 400}
  stored.save_model(tmp_path, "decoder", sizes, saved.params, saved.data)
  teacher = stored.load_model(tmp_path, flag="--teacher")
  task = problems.make_task(data_of(folders), "decoder")
  with pytest.raises(ValueError, match="vocab_size is 400, here 320"):
    stored.check_teacher(teacher, task, data_of(folders))


def test_a_checkpoint_of_too_few_tokens_is_named(folders, tmp_path):
  data = dataclasses.replace(tiny.TEXTS, vocab_size=350)
  config = generate.Config(checkpoint=str(folders / "plain"), progress=False, data=data)
  (tmp_path / "tokenizer.json").write_text(texts.tokenizer(data).to_str())
  config = dataclasses.replace(
    config, data=dataclasses.replace(data, tokenizer=str(tmp_path / "tokenizer.json"))
  )
  with pytest.raises(ValueError, match="knows 320 tokens, but --tokenizer gives 3"):
    generate.run(config, tmp_path / "run")
