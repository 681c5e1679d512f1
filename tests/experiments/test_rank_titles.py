"""A language model's rankings of titles, kept, and learned by a small recommender."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments import distill, problems, rank_titles, rankings, train
from experiments.config import DataConfig, DistillConfig
from kdjax.data.errors import DataError
from kdjax.data.tokens import encode, load_tokenizer, train_tokenizer
from kdjax.models import hub, make_decoder
from kdjax.train.writers import read_jsonl

SIZES = {"vocab_size": 300, "max_length": 64, "dim": 8, "num_layers": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A log with titles, a decoder with its tokenizer, a first model, and rankings."""
  folder = tmp_path_factory.mktemp("log")
  rng = np.random.default_rng(0)
  lines = [f"{user} {item}" for user in range(30) for item in rng.permutation(24)[:7]]
  (folder / "log.txt").write_text("\n".join(lines) + "\n")
  titles = [f"{'red' if i % 2 else 'blue'} thing {i}" for i in range(24)]
  table = "\n".join(f"{i}\t{title}" for i, title in enumerate(titles))
  (folder / "titles.tsv").write_text(f"item\ttitle\n{table}\n")
  tokenizer = train_tokenizer(titles, vocab_size=300)
  rows = encode(tokenizer, ["a"], max_length=4)
  params = make_decoder(**SIZES).init(jax.random.key(0), rows)
  hub.save(folder / "decoder", hub.Checkpoint("llama", "decoder", SIZES, params, {}))
  (folder / "decoder" / "tokenizer.json").write_text(tokenizer.to_str())
  data = DataConfig(
    dataset=str(folder / "log.txt"), items_path=str(folder / "titles.tsv"), max_length=8
  )
  train.run(train.Config(data, tiny.TEACHER, tiny.FIT), folder / "first")
  config = rank_titles.Config(
    checkpoint=str(folder / "decoder"),
    candidates_from=str(folder / "first"),
    candidates=4,
    history=2,
    prompt="{history}, then",
    prompt_tokens=40,
    title_tokens=8,
    users_per_call=4,
    progress=False,
    data=data,
  )
  result = rank_titles.run(config, folder / "ranked")
  assert result["users"] == 30
  return folder, config


def test_scores_are_likelihoods_of_titles_after_the_history(made):
  folder, config = made
  found = rankings.read(folder / "ranked")
  dataset = problems.load_data(config.data)
  user = dataset.user_ids.cast(str).to_list().index(found.users[5])
  split = dataset.split.train
  known = split.items[split.offsets[user] : split.offsets[user + 1] - 1][-2:]
  titles = dataset.items["title"].to_list()
  tokenizer = load_tokenizer(folder / "decoder")
  tokenizer.no_truncation()
  prompt = config.prompt.format(history="; ".join(titles[item] for item in known))
  first = tokenizer.encode(prompt).ids[:-1]  # Without the end.
  wanted = tokenizer.encode(" thing 1", add_special_tokens=False).ids
  assert first[0] == tokenizer.token_to_id("[CLS]")
  assert tokenizer.token_to_id("[SEP]") not in first + wanted
  loaded = hub.load(folder / "decoder", head="tokens")
  model = make_decoder(**loaded.sizes)
  for item, score in zip(found.items[5], found.scores[5], strict=True):
    name = titles[dataset.item_ids.cast(str).to_list().index(item)]
    answer = tokenizer.encode(" " + name, add_special_tokens=False).ids[:8]
    tokens = jnp.array([first + answer])
    batch = {
      "tokens": tokens,
      "segments": jnp.ones_like(tokens),
      "positions": jnp.arange(tokens.shape[1])[None],
    }
    logits = model.apply(loaded.params, batch).logits.dense()[0]
    logits = logits[:, : tokenizer.get_vocab_size()]  # Rows that stand for no token have no share.
    log_probs = jax.nn.log_softmax(logits)[len(first) - 1 : -1]
    expected = np.mean(log_probs[np.arange(len(answer)), np.array(answer)])
    np.testing.assert_allclose(score, expected, atol=1e-4)
  assert (np.diff(found.scores) <= 0).all()


def test_a_stopped_run_goes_on_and_its_users_can_be_few(made, monkeypatch):
  folder, config = made
  few = dataclasses.replace(config, users=9)
  whole = rank_titles.run(few, folder / "few")
  kept = rankings.read(folder / "few")
  assert set(kept.users) <= set(rankings.read(folder / "ranked").users)
  assert whole["users"] == len(kept.users) == 9
  for name in ("result.json", rankings.FILE):
    (folder / "few" / name).unlink()
  monkeypatch.setattr(rank_titles, "_likelihoods", None)  # Nothing is scored again.
  assert rank_titles.run(few, folder / "few") == whole
  for old, new in zip(kept, rankings.read(folder / "few"), strict=True):
    np.testing.assert_array_equal(old, new)


def test_rankings_lie_where_the_last_label_is(made):
  folder, config = made
  task = problems.make_task(config.data, "sasrec")
  dataset = problems.load_data(config.data)
  found = rankings.read(folder / "ranked")
  rows = rankings.rows_of(found, dataset, task)
  names = dataset.item_ids.cast(str).to_list()
  last = {}
  split = dataset.split.train
  for user in range(dataset.num_users):
    last[str(dataset.user_ids[user])] = split.items[split.offsets[user + 1] - 1]
  seen = 0
  for row, places in enumerate(rows["ranked_places"]):
    for n, place in enumerate(places):
      if place >= 0:
        listed = [names[i] for i in rows["ranked_ids"][row, n]]
        (user,) = [
          user
          for user, items, scores in zip(*found, strict=True)
          if items.tolist() == listed and (scores == rows["ranked_scores"][row, n]).all()
        ]
        assert task.arrays["labels"][row, place] == last[user]
        seen += 1
  assert seen == 30


def test_a_student_learns_what_was_ranked(made, tmp_path):
  folder, config = made
  fit = dataclasses.replace(tiny.FIT, epochs=20, learning_rate=0.03, patience=None)
  options = DistillConfig(
    label_weight=0.0, cached_rankings=str(folder / "ranked"), ranking_weight=1.0
  )
  student = distill.Config((), config.data, tiny.STUDENT, options, fit)
  distill.run(student, tmp_path / "student")
  lines = read_jsonl(tmp_path / "student" / "metrics.jsonl")
  losses = [line["train/cached_ranking"] for line in lines if "train/cached_ranking" in line]
  assert losses[-1] < 0.7 * losses[0]


def test_what_is_wrong_is_named(made, tmp_path):
  folder, config = made
  wrong = [
    (dataclasses.replace(config, checkpoint=""), ValueError, "--checkpoint: give the folder"),
    (dataclasses.replace(config, prompt="next:"), ValueError, "has no {history}"),
    (dataclasses.replace(config, candidates=20), ValueError, "--candidates=20 of 24 items"),
    (dataclasses.replace(config, candidates_from=""), ValueError, "--candidates_from: no model"),
    (dataclasses.replace(config, checkpoint=str(folder / "first")), ValueError, "is a sasrec"),
  ]
  for number, (bad, error, said) in enumerate(wrong):
    with pytest.raises(error, match=said):
      rank_titles.run(bad, tmp_path / str(number))
  options = DistillConfig(cached_rankings=str(tmp_path / "none.npz"))
  with pytest.raises(DataError, match=r"none.npz: no users, items and scores"):
    distill.run(distill.Config((), config.data, tiny.STUDENT, options, tiny.FIT), tmp_path / "a")
  found = rankings.read(folder / "ranked")
  strange = found._replace(items=np.full_like(found.items, "x"))
  rankings.write(tmp_path / "strange.npz", strange)
  options = DistillConfig(cached_rankings=str(tmp_path / "strange.npz"))
  with pytest.raises(ValueError, match="the log has no item 'x'"):
    distill.run(distill.Config((), config.data, tiny.STUDENT, options, tiny.FIT), tmp_path / "b")
  masked = dataclasses.replace(tiny.STUDENT, model="bert4rec")
  with pytest.raises(ValueError, match="--cached_rankings fit causal sequence models"):
    distill.run(distill.Config((), config.data, masked, options, tiny.FIT), tmp_path / "c")
