"""Command lines: parse, validate, build, run, report."""

import os
import signal
import sys

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # `python -m pipelines.NAME` begins; until it attends to Ctrl-C, that ends it like other programs.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from torchmoji_core.memory import have_arrow_use_malloc

# NumPy's and SciPy's would start a thread for each core, and each of these look for work for a tenth of a second.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
have_arrow_use_malloc()  # here, since Arrow looks once, when it is imported
