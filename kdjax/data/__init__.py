"""Logs in, histories out."""
