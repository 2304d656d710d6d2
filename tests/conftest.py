"""What all tests share: few threads (the suite runs in parallel) and deterministic torch."""

import torch

torch.set_num_threads(1)
