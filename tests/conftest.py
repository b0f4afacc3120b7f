import torch

# The networks here are far too small to share among cores, which only wait for each other.
torch.set_num_threads(1)
