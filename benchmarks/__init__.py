"""Speed, memory and reproductions; every script writes its figures to `benchmarks/results`."""
