"""Command lines: parse, validate, build, run, report."""

from torchmoji_core.memory import have_arrow_use_malloc

have_arrow_use_malloc()  # here, since Arrow looks once, when it is imported
