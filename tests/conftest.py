"""Property tests draw the same examples every time and have no deadline: a busy machine is no failure.

Everything runs in one thread: the nets are small, and two processes test at once (`-n 0`: one).
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
