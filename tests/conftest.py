"""Two workers share two cores: a library's own threads would only wait for each other."""

import os

# Read by OpenMP when a library first loads, here and in the commands that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
