from __future__ import annotations

import torch

torch.set_num_threads(1)  # tiny inputs: a second thread costs more than it gives, above all on a busy machine
