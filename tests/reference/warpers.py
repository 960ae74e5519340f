"""What transformers' logits warpers keep, and with which probabilities.

    python warpers.py FILE.json [SEED]
"""
import json
import sys

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

torch.manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
cases = []
for temperature in [0.3, 0.7, 1.0, 1.6]:
    for top_p in [0.2, 0.5, 0.9, 1.0]:
        logits = torch.randn(1, 12) * 2
        warped = TemperatureLogitsWarper(temperature)(None, logits)
        if top_p < 1:
            warped = TopPLogitsWarper(top_p)(None, warped)
        probabilities = torch.softmax(warped, -1)
        cases.append({"temperature": temperature, "top_p": top_p, "logits": logits[0].tolist(),
                      "probabilities": probabilities[0].tolist()})
with open(sys.argv[1], "w") as file:
    json.dump(cases, file, indent=0)
    file.write("\n")
