"""Training DiT: settings, EMA, the loop, checkpoints, and the run that puts them together."""

import os

# Threads that wait for each other sleep instead of spinning: beside other work, training on a CPU is many times faster.
# OpenMP reads this as torch is imported. A script that imports torch before this package sets it by itself.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
