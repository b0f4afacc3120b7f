"""Settings for all tests, those of the notebooks included, whose kernels inherit them."""

import os

# The networks here are far too small to share among cores, which only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
