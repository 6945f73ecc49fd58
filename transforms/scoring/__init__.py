"""Tweets in, record batches of scores out."""
