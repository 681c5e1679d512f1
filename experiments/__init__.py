"""One binary a job; each is `run(config, workdir) -> dict` and `python -m experiments.<job>`."""
