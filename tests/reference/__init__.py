"""Slow, obvious implementations that the fast ones are held against. Nothing outside the tests imports them."""
