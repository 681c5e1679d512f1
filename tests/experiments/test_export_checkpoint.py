"""Trained text models as Hugging Face folders, which give what the models gave."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import export_checkpoint, families, problems, stored
from experiments.config import DataConfig, ModelConfig
from kdjax import quant
from kdjax.data.tokens import load_tokenizer
from kdjax.models import hub, make_bert, make_decoder
from kdjax.types import FactoredLogits

MASKED = dataclasses.replace(tiny.TEXTS, objective="masked")
SEARCH = DataConfig(
  synthetic_users=24, synthetic_items=40, max_length=12, query_length=6, vocab_size=300,
  mined_negatives=3,
)  # fmt: skip
SMALL = ModelConfig(dim=8, layers=2, heads=2)


def made(folder, model, data, *, bits=32, **more):
  """A workdir of a model that has learned nothing."""
  folder.mkdir()
  model = dataclasses.replace(SMALL, **model)
  task = problems.make_task(data, model.model)
  sizes = families.model_sizes(model, task) | more
  rows = {name: jnp.asarray(values[:1]) for name, values in task.arrays.items()}
  params = jax.jit(families.make_model(model.model, sizes).init)(jax.random.key(0), rows)
  params = jax.tree.map(lambda x: 3 * x + 0.1, params)
  params = quant.quantize_params(params) if bits == 8 else params
  stored.save_model(folder, model.model, sizes, params, data)
  problems.describe_data(data, model.model, folder)
  return folder


@pytest.mark.parametrize(
  ("model", "data", "bits", "kind"),
  [
    ({"model": "bert"}, tiny.TEXTS, 8, "bert"),
    ({"model": "bert"}, MASKED, 32, "bert"),
    ({"model": "decoder"}, tiny.TEXTS, 8, "llama"),
    ({"model": "bi_encoder"}, SEARCH, 32, "bert"),
    ({"model": "cross_encoder"}, SEARCH, 32, "bert"),
  ],
  ids=["classifier", "masked", "decoder", "sentences", "pairs"],
)
def test_a_folder_gives_what_the_model_gave(tmp_path, model, data, bits, kind):
  workdir = made(tmp_path / "run", model, data, bits=bits)
  folder = tmp_path / "folder"
  result = export_checkpoint.run(export_checkpoint.Config(str(workdir)), folder)
  assert result["model_type"] == kind
  assert result["bytes"] == (folder / "model.safetensors").stat().st_size
  saved, found = stored.load_model(workdir, flag="--"), hub.load(folder)
  tokens = jnp.asarray([[5, 9, 2, 7, 11], [3, 8, 4, -1, -1]])
  batch = {
    "tokens": tokens,
    "segments": (tokens >= 0).astype(jnp.int32),
    "positions": jnp.broadcast_to(jnp.arange(5)[None], (2, 5)),
  }
  own = families.make_model(saved.family, saved.sizes).apply
  expected = own(quant.dequantize_params(saved.params), batch).logits
  make = make_decoder if kind == "llama" else make_bert
  logits = make(**found.sizes).apply(found.params, batch).logits
  if isinstance(expected, FactoredLogits):
    expected, logits = (x.dense()[np.asarray(tokens) >= 0] for x in (expected, logits))
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  words = problems.tokenizer_of(data, saved.family)
  kept = load_tokenizer(folder)
  assert kept.get_vocab() == words.get_vocab()
  assert kept.truncation is None
  said = json.loads((folder / "config.json").read_text())
  if model["model"] == "decoder":
    assert said["eos_token_id"] == words.token_to_id("[SEP]")
  if model["model"] == "bert" and data is tiny.TEXTS:
    assert said["id2label"] == {"0": "bad", "1": "good"}
  # And it teaches as it is, saying the same.
  data = dataclasses.replace(data, tokenizer=str(folder))
  teacher = stored.load_teacher(folder, data, saved.family, flag="--teacher")
  assert teacher.family == saved.family
  task = problems.make_task(data, teacher.family)
  rows = {name: jnp.asarray(values[:3]) for name, values in task.arrays.items()}
  said = [
    families.make_model(x.family, x.sizes).apply(quant.dequantize_params(x.params), rows).logits
    for x in (saved, teacher)
  ]
  if isinstance(said[0], FactoredLogits):
    real = np.asarray(rows["segments"]) > 0
    said = [logits.dense()[real] for logits in said]
  np.testing.assert_allclose(*said, atol=1e-5)


@pytest.mark.parametrize(
  ("model", "data", "more", "message"),
  [
    ({"model": "static"}, tiny.TEXTS, {}, "is a static, for which .* one for bert, decoder"),
    ({"model": "bi_encoder", "encoder": "static"}, SEARCH, {}, "is a bi_encoder of a static"),
    ({"model": "bert"}, tiny.TEXTS, {"mlp_dim": (4, 8)}, r"bert cannot say mlp_dim=\(4, 8\)"),
  ],
)
def test_models_without_such_a_form_are_named(tmp_path, model, data, more, message):
  workdir = made(tmp_path / "run", model, data, **more)
  with pytest.raises(ValueError, match=message):
    export_checkpoint.run(export_checkpoint.Config(str(workdir)), tmp_path / "folder")


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["bert", "decoder"])
def test_transformers_reads_the_folder(tmp_path, family):
  transformers = pytest.importorskip("transformers", reason="make full installs transformers")
  torch = pytest.importorskip("torch", reason="make full installs torch")
  workdir = made(tmp_path / "run", {"model": family}, tiny.TEXTS)
  folder = tmp_path / "folder"
  export_checkpoint.run(export_checkpoint.Config(str(workdir)), folder)
  words, said = problems.tokenizer_of(tiny.TEXTS, family), "a good film"
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  ids = tokenizer(said)["input_ids"]
  words.no_truncation()
  assert ids == words.encode(said).ids
  assert tokenizer.pad_token == "[PAD]"
  kinds = {"bert": "AutoModelForSequenceClassification", "decoder": "AutoModelForCausalLM"}
  model = getattr(transformers, kinds[family]).from_pretrained(folder).eval()
  with torch.no_grad():
    theirs = model(input_ids=torch.tensor([ids])).logits.numpy()
  tokens = jnp.asarray([ids])
  batch = {"tokens": tokens, "segments": jnp.ones_like(tokens)}
  batch["positions"] = jnp.arange(len(ids))[None]
  saved = stored.load_model(workdir, flag="--")
  logits = families.make_model(saved.family, saved.sizes).apply(saved.params, batch).logits
  ours = logits.dense() if isinstance(logits, FactoredLogits) else logits
  np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_run_is_not_written_over(tmp_path):
  workdir = made(tmp_path / "run", {"model": "bert"}, tiny.TEXTS)
  (workdir / "config.json").write_text("{}")
  config = export_checkpoint.Config(str(workdir))
  with pytest.raises(stored.WorkdirError, match="holds a run; give a --workdir of its own"):
    export_checkpoint.run(config, workdir)
