"""Loads an adapter of `ppd` into diffusers' StableCascadeUNet, and holds what it gives against `ppd generate --trace`.

    python user_adapter.py PRIOR ADAPTER.safetensors 0.5,0.2,0.3 IN.safetensors TRACE.safetensors --prompt TEXT...

PRIOR is a folder in the layout of stabilityai/stable-cascade-prior; IN holds `init` and `noise` as `--latents` takes them.
"""
import argparse
import json

import torch
from safetensors import safe_open
from torch.nn import functional as F


class UserAttention:
    """An attention processor: the block's own attention, and beside it one over the user's tokens (IP-Adapter)."""

    def __init__(self, to_k, to_v, tokens):
        self.key, self.value = F.linear(tokens, to_k), F.linear(tokens, to_v)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        batch, _, height, width = hidden_states.shape
        heads = lambda xs: xs.expand(batch, -1, -1).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        query = heads(attn.to_q(hidden_states.flatten(2).transpose(1, 2)))
        attend = lambda key, value: F.scaled_dot_product_attention(query, heads(key), heads(value))
        out = attend(attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)) + attend(self.key, self.value)
        out = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return out.transpose(1, 2).unflatten(2, (height, width))


def set_user(unet, path, user):
    """`user`: the coordinates that the adapter was trained with, as a tensor (1, width)."""
    with safe_open(path, "pt") as file:
        config, blocks = (json.loads(file.metadata()[key]) for key in ("config", "blocks"))
        bias = file.get_tensor("user_projector.bias") if "user_projector.bias" in file.keys() else None
        tokens = F.linear(user, file.get_tensor("user_projector.weight"), bias)
        tokens = tokens.unflatten(1, (config["num_tokens"], config["token_width"]))
        for number, (name, _) in enumerate(blocks):
            maps = (file.get_tensor(f"ip_adapter.{number}.{leaf}.weight") for leaf in ("to_k_ip", "to_v_ip"))
            unet.get_submodule(name).attention.set_processor(UserAttention(*maps, tokens))


if __name__ == "__main__":
    import diffusers.schedulers.scheduling_ddpm_wuerstchen as scheduling
    from diffusers import StableCascadePriorPipeline
    from safetensors.torch import load_file, save_file

    parser = argparse.ArgumentParser()
    for name in ("prior", "adapter", "user", "given", "trace"):
        parser.add_argument(name)
    parser.add_argument("--prompt", nargs="+")
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    parser.add_argument("--save", help="write diffusers' latents after each step here")
    arguments = parser.parse_args()
    given, trace = load_file(arguments.given), load_file(arguments.trace)
    pipe = StableCascadePriorPipeline.from_pretrained(arguments.prior)
    pipe.set_progress_bar_config(disable=True)
    user = torch.tensor([[float(number) for number in arguments.user.split(",")]])
    steps = []

    def run():
        steps.clear()
        drawn = iter([*given["noise"], torch.zeros_like(given["init"])])  # The last step draws, and uses nothing.
        scheduling.randn_tensor = lambda *_, **__: next(drawn)
        pipe(prompt=arguments.prompt, latents=given["init"], num_inference_steps=len(trace["epsilon"]),
             guidance_scale=arguments.guidance_scale, height=int(given["init"].shape[2] * 42.67),
             width=int(given["init"].shape[3] * 42.67),
             callback_on_step_end=lambda p, i, t, k: (steps.append(k["latents"].clone()), k)[1])
        return torch.stack(steps)

    base = run()
    set_user(pipe.prior, arguments.adapter, user)
    with_user = run()
    ours = trace["latents"][1:]
    for step in range(len(ours)):
        difference, effect = (with_user - ours)[step].abs().max(), (with_user - base)[step].abs().max()
        print(f"step {step}: largest difference to ppd {difference:.2e}; the user changed {effect:.2e}")
    print(f"largest difference {(with_user - ours).abs().max():.2e} of latents up to {ours.abs().max():.2f}")
    if arguments.save:
        save_file({"latents": with_user}, arguments.save)
