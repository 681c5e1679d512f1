"""Collects finished runs into one table and its plots, and rewrites tables in Markdown files.

python -m experiments.report --workdir=runs/report --runs=runs/demo,runs/mine
python -m experiments.report --workdir=runs/report --runs=benchmarks/results/movielens-1m \
  --markdown=README.md --block=movielens-1m
"""
