"""Command lines: parse, validate, build, run, report."""

import signal
import sys

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # `python -m pipelines.NAME` begins; until it attends to Ctrl-C, that ends it like other programs.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from torchmoji_core.memory import have_arrow_use_malloc

have_arrow_use_malloc()  # here, since Arrow looks once, when it is imported
