"""Checkpoint folders of decoders: transformers' own (tests/golden/transformers_decoder.py)."""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from hub_files import GOLDEN as ALL
from hub_files import (
  batch_of,
  cases,
  change,
  check_decoder,
  check_greedy,
  check_round_trip,
  rewrite,
  run,
  same,
  tensors,
)

from kdjax.models import hub, make_decoder
from kdjax.models.decoder import Decoder

ROOT = ALL / "transformers_decoder"
GOLDEN = dict(np.load(ROOT / "outputs.npz", allow_pickle=False))
CASES = cases(ROOT)
MASK = GOLDEN["mask"] == 1
WRITERS = [name for name in CASES if name != "gpt2_body"]


@pytest.fixture
def folder(tmp_path, request):
  """A copy of a checkpoint to spoil."""
  return pathlib.Path(shutil.copytree(ROOT / request.param, tmp_path / "copy"))


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_and_logits_are_those_of_transformers(name):
  check_decoder(ROOT / name, GOLDEN, name)


@pytest.mark.parametrize("name", WRITERS)
def test_greedy_texts_are_those_of_transformers(name):
  check_greedy(ROOT / name, GOLDEN, name)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shard", [10**9, 3000])
def test_what_is_saved_is_what_was_loaded(name, shard, tmp_path):
  check_round_trip(ROOT / name, tmp_path / "new", shard)


@pytest.mark.parametrize("name", WRITERS)
def test_a_student_made_here_is_saved_and_read(name, tmp_path):
  """Smaller than its teacher, and without a config to lean on."""
  teacher = hub.load(ROOT / name)
  smaller = {"num_layers": 1, "mlp_dim": 12}
  for key in ("window", "rope_theta", "rope_factor"):
    if isinstance(size := teacher.sizes.get(key), tuple):
      smaller[key] = size[0]
  sizes = teacher.sizes | smaller
  model = make_decoder(**sizes)
  params = model.init(jax.random.key(0), batch_of(GOLDEN))
  hub.save(tmp_path, teacher._replace(sizes=sizes, params=params, config={}))
  found = hub.load(tmp_path)
  assert same(found.params, params)
  for i in range(1):
    assert Decoder(**found.sizes).of_block(i) == Decoder(**sizes).of_block(i)


def test_the_body_is_read_as_an_encoder():
  checkpoint = hub.load(ROOT / "llama", head="pool")
  assert checkpoint.left == ("lm_head.weight",)
  found = run(checkpoint, GOLDEN).logits
  last = GOLDEN["llama_hidden_2"][np.arange(3), MASK.sum(1) - 1]
  expected = last / np.linalg.norm(last, axis=-1, keepdims=True)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_parts_of_a_tensor_go_to_their_devices(folder):
  mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))

  def sharding(path, shape):
    return NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - 1), "model"))

  whole, parts = hub.load(folder), hub.load(folder, sharding=sharding)
  kernel = parts.params["block_0"]["attention"]["value"]["kernel"]
  assert kernel.addressable_shards[1].data.shape == (16, 4)
  assert same(whole.params, parts.params)


@pytest.mark.parametrize("folder", ["gpt2"], indirect=True)
def test_buffers_of_older_folders_are_left(folder):
  before = hub.load(folder)
  rewrite(folder, lambda t: t.update({"transformer.h.0.attn.bias": np.ones([1, 1, 4, 4], bool)}))
  found = hub.load(folder)
  assert found.left == ("transformer.h.0.attn.bias",)
  assert same(found.params, before.params)
  rewrite(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"]}))
  assert same(hub.load(folder).params, before.params)
  rewrite(folder, lambda t: t.update({"lm_head.weight": 1 + t["transformer.wte.weight"]}))
  with pytest.raises(hub.HubError, match=r"lm_head.weight differs from transformer.wte.weight"):
    hub.load(folder)


@pytest.mark.parametrize("folder", ["llama_3"], indirect=True)
def test_rotary_positions_as_configs_said_before(folder):
  sizes = hub.load(folder).sizes
  said = json.loads((folder / "config.json").read_text())["rope_parameters"]
  theta = said.pop("rope_theta")
  change(folder, rope_parameters=None, rope_theta=theta, rope_scaling=said)
  assert hub.load(folder).sizes == sizes
  assert sizes["rope_bands"] == (1.0, 4.0, 32)


@pytest.mark.parametrize("folder", ["gemma3_text"], indirect=True)
def test_gemma_3_as_configs_said_before(folder):
  sizes = hub.load(folder).sizes
  assert sizes["rope_theta"] == (100.0, 1000.0)
  assert sizes["window"] == (3, None)
  change(
    folder,
    rope_parameters=None,
    layer_types=None,
    rope_theta=1000.0,
    rope_local_base_freq=100.0,
    rope_scaling={"rope_type": "linear", "factor": 8.0},
    sliding_window_pattern=2,
  )
  assert hub.load(folder).sizes == sizes


@pytest.mark.parametrize(
  ("folder", "config", "message"),
  [
    ("llama", {"model_type": "falcon"}, "model_type 'falcon': there are bert, .* llama, "),
    ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn': there are default"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "'factor' is missing"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "only 1 is known"),
    ("llama", {"hidden_size": None}, "'hidden_size' is missing"),
    ("llama", {"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens"),
    ("llama", {"attention_bias": True}, r"missing: model.layers.0.self_attn.k_proj.bias"),
    ("llama", {"num_key_value_heads": 4}, r"k_proj.weight is \[8, 16\], .* says \[16, 16\]"),
    ("qwen2_window", {"layer_types": ["full_attention"]}, "layer_types .*: 2 of sliding"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False is not known, only True"),
    ("gpt2", {"n_layer": 1}, "left over: transformer.h.1.attn.c_attn.bias"),
  ],
  indirect=["folder"],
)
def test_configs_that_do_not_fit_are_named(folder, config, message):
  change(folder, **config)
  with pytest.raises(hub.HubError, match=message):
    hub.load(folder)


def test_what_a_config_cannot_say_is_refused(tmp_path):
  checkpoint = hub.load(ROOT / "llama")
  windowed = checkpoint._replace(sizes=checkpoint.sizes | {"window": 3})
  with pytest.raises(hub.HubError, match="of a llama cannot say window=3"):
    hub.save(tmp_path, windowed)
  assert not tensors(tmp_path)
