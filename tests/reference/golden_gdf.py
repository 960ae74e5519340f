"""Stability's own sampler (`gdf`) over a denoiser of one line, with the noises that it drew.

    git clone https://github.com/Stability-AI/StableCascade UPSTREAM
    python golden_gdf.py UPSTREAM tests/fixtures/diffusion/gdf_sampling.safetensors
"""

import sys

import torch
from safetensors.torch import save_file

sys.path.insert(0, sys.argv[1])
import gdf  # noqa: E402

SHAPE, STEPS, CFG = (2, 4, 3, 5), 6, 3.0
RUNS = {"plain": dict(shift=1, cfg_rho=0), "rescaled": dict(shift=1, cfg_rho=0.7), "shifted": dict(shift=2, cfg_rho=0)}


def denoiser(x, r, bias):
    """Any function of latents, timestep and condition."""
    return torch.tanh(0.7 * x + bias[:, None, None, None]) * (0.5 + r[:, None, None, None])


out = {"bias": torch.tensor([0.3, -0.2])}
for name, run in RUNS.items():
    torch.manual_seed(7)
    process = gdf.GDF(
        schedule=gdf.CosineSchedule(clamp_range=[0.0001, 0.9999]), input_scaler=gdf.VPScaler(),
        target=gdf.EpsilonTarget(), noise_cond=gdf.CosineTNoiseCond(), loss_weight=None,
    )
    start, noises, fed, steps = torch.randn(SHAPE), [], [], []
    real = torch.randn_like
    torch.randn_like = lambda x: noises.append(real(x)) or noises[-1]

    def model(x, r, bias):
        fed.append(r[:1])
        return denoiser(x, r, bias)

    for x0, x, pred in process.sample(
        model, {"bias": out["bias"]}, SHAPE, timesteps=STEPS, cfg=CFG, x_init=start, **run
    ):
        steps.append((x, pred))
    torch.randn_like = real
    out[f"{name}.start"] = start
    out[f"{name}.noise"] = torch.stack(noises)
    out[f"{name}.fed"] = torch.cat(fed)
    out[f"{name}.latents"] = torch.stack([x for x, _ in steps])
    out[f"{name}.pred"] = torch.stack([pred for _, pred in steps])
save_file({name: tensor.contiguous() for name, tensor in out.items()}, sys.argv[2])
