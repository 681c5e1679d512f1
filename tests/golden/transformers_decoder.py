"""Makes transformers_decoder/: tiny checkpoints of transformers, and what its models compute.

The package is no dependency of kdjax. Run it where it is installed:
python tests/golden/transformers_decoder.py
(transformers 5.23.0, torch 2.13.0, numpy; on CPU). Weights are drawn from a seed, wider than
transformers starts with, so that no part of a model vanishes in rounding.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers as t

ROOT = pathlib.Path(__file__).parent / "transformers_decoder"
COMMON = dict(
  vocab_size=23,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  intermediate_size=24,
  max_position_embeddings=64,
  bos_token_id=1,
  eos_token_id=2,
  pad_token_id=0,
)
LLAMA3 = dict(
  rope_type="llama3",
  rope_theta=50.0,
  factor=4.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=32,
)
GPT2 = dict(vocab_size=23, n_positions=32, n_embd=16, n_layer=2, n_head=2)
GPT2 |= dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
SLIDES = dict(use_sliding_window=True, sliding_window=3, max_window_layers=1)
GEMMA = COMMON | dict(head_dim=8)
GEMMA3_ROPE = {
  "full_attention": {"rope_theta": 1000.0, "rope_type": "linear", "factor": 8.0},
  "sliding_attention": {"rope_theta": 100.0, "rope_type": "default"},
}
WINDOWS = dict(sliding_window=3, query_pre_attn_scalar=5)
CASES = {
  "gpt2": (t.GPT2LMHeadModel, t.GPT2Config(**GPT2)),
  "gpt2_body": (t.GPT2Model, t.GPT2Config(**GPT2, n_inner=20)),
  "llama": (t.LlamaForCausalLM, t.LlamaConfig(**COMMON)),
  "llama_3": (
    t.LlamaForCausalLM,
    t.LlamaConfig(
      **COMMON,
      rope_parameters=LLAMA3,
      tie_word_embeddings=True,
      attention_bias=True,
      mlp_bias=True,
    ),
  ),
  "mistral": (t.MistralForCausalLM, t.MistralConfig(**COMMON, sliding_window=3, head_dim=6)),
  "qwen2": (t.Qwen2ForCausalLM, t.Qwen2Config(**COMMON, tie_word_embeddings=True)),
  "qwen2_window": (t.Qwen2ForCausalLM, t.Qwen2Config(**COMMON, **SLIDES)),
  "qwen3": (t.Qwen3ForCausalLM, t.Qwen3Config(**COMMON, head_dim=8)),
  "gemma": (t.GemmaForCausalLM, t.GemmaConfig(**GEMMA)),
  "gemma2": (t.Gemma2ForCausalLM, t.Gemma2Config(**GEMMA, **WINDOWS)),
  "gemma3_text": (
    t.Gemma3ForCausalLM,
    t.Gemma3TextConfig(
      **GEMMA,
      **WINDOWS,
      rope_parameters=GEMMA3_ROPE,
      layer_types=["sliding_attention", "full_attention"],
    ),
  ),
}


def inputs(seed=5):
  """Tokens of three rows, two of which are padded."""
  tokens = np.random.default_rng(seed).integers(3, 23, (3, 7))
  return {"tokens": tokens, "mask": np.array([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4])}


def make(name, seed):
  """The model of a case."""
  torch.manual_seed(seed)
  kind, config = CASES[name]
  config._attn_implementation = "eager"  # The only one that knows caps.
  model = kind(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  return model


def outputs_of(name, model, given):
  """Hidden states, logits and greedy texts by the names that they have in the file."""
  tokens, mask = given["tokens"], given["mask"]
  rows = {"input_ids": torch.tensor(tokens * mask), "attention_mask": torch.tensor(mask)}
  with torch.no_grad():
    outputs = model(**rows, output_hidden_states=True)
  found = {f"{name}_hidden_{i}": hidden.numpy() for i, hidden in enumerate(outputs.hidden_states)}
  if "logits" not in outputs:
    return found
  found[f"{name}_logits"] = outputs.logits.numpy()
  # Every prompt on its own, without its padding: greedy, until token 2 or 8 of them.
  for row, length in enumerate(mask.sum(1)):
    prompt = torch.tensor(tokens[row : row + 1, :length])
    with torch.no_grad():
      written = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False
      )
    found[f"{name}_written_{row}"] = written[0, length:].numpy()
  return found


def main():
  """Writes the folders and the outputs."""
  shutil.rmtree(ROOT, ignore_errors=True)
  ROOT.mkdir()
  values = inputs()
  for seed, name in enumerate(CASES):
    model = make(name, seed)
    values |= outputs_of(name, model, values)
    model.save_pretrained(ROOT / name)
    (ROOT / name / "generation_config.json").unlink(missing_ok=True)
  np.savez(ROOT / "outputs.npz", version=np.array(t.__version__), **values)


if __name__ == "__main__":
  main()
