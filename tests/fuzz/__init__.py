"""Fuzzing: `python -m tests.fuzz` (`make fuzz`) looks for inputs that break a promise of the readers or tokenizer."""
