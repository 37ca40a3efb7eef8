import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))     # the modules, from anywhere
torch.set_num_threads(1)                                 # of no use to tensors this small
