"""The fast way to run a model: `engine` runs packed rows, `scorer` takes texts in any order, `scores` is what it gives.

Nothing is imported here, so that names of options are known without loading torch.
"""

PRECISIONS = ("auto", "fp32", "fp64")
"""`auto` is the fastest that stays within 1e-5 of float64; today that is fp32."""
