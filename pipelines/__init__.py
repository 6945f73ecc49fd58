"""Command lines: parse, validate, build, run, report."""
