"""Tests are small: one thread each is as fast as several, and stays so beside other work."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the processes that tests start
