"""Each differentiable operation on its own: arguments, results and gradients, in single precision.

Every argument is a number that bf16 holds exactly, so the same results are the ones that half precision has to round to.
"""
import math
import os
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

sys.path.insert(0, os.path.dirname(__file__))
from common import out, randn

B, N, C = 2, 12, 8
HEIGHT, WIDTH = 3, 4
kept = {}


def exact(*shape, seed, scale=1.0):
    return (scale * randn(*shape, seed=seed)).bfloat16().float()


def case(name, function, **arguments):
    """Stores arguments, result, the gradient that comes back, and the arguments' gradients."""
    for argument in arguments.values():
        argument.requires_grad_()
    y = function(**arguments)
    dy = exact(*y.shape, seed=1000 + len(kept))
    y.backward(dy)
    for argument, value in arguments.items():
        kept[f"{name}.{argument}"] = value.detach()
        kept[f"{name}.d_{argument}"] = value.grad
    kept[f"{name}.y"], kept[f"{name}.dy"] = y.detach(), dy


def grn(x, gamma, beta):
    # diffusers' GlobalResponseNorm, over positions in a row.
    norm = torch.norm(x, p=2, dim=1, keepdim=True)
    return gamma * (x * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))) + beta + x


def depthwise(x, weight, bias):
    picture = x.transpose(1, 2).reshape(B, C, HEIGHT, WIDTH)
    return F.conv2d(picture, weight, bias, padding=1, groups=C).flatten(2).transpose(1, 2)


def heads(x, count):
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def attention(qkv, text, user):
    q, k, v = (heads(part, 2) for part in qkv.chunk(3, dim=-1))
    (text_k, text_v), (user_k, user_v) = ((heads(part, 2) for part in both.chunk(2, dim=-1)) for both in (text, user))
    scale = 1 / math.sqrt(q.shape[-1])

    def attend(keys, values):
        return (q @ keys.transpose(-1, -2) * scale).softmax(dim=-1) @ values

    y = attend(torch.cat([k, text_k], 2), torch.cat([v, text_v], 2)) + attend(user_k, user_v)
    return y.transpose(1, 2).flatten(2)


case("linear", lambda x, weight, bias: F.linear(x, weight, bias),
     x=exact(B, N, C, seed=1), weight=exact(24, C, seed=2, scale=0.25), bias=exact(24, seed=3))
case("pointwise", lambda x, weight, bias: F.conv2d(
    x.transpose(1, 2).reshape(B, C, HEIGHT, WIDTH), weight[:, :, None, None], bias).flatten(2).transpose(1, 2),
    x=exact(B, N, C, seed=4), weight=exact(8, C, seed=5, scale=0.25), bias=exact(8, seed=6))
case("depthwise", depthwise, x=exact(B, N, C, seed=7), weight=exact(C, 1, 3, 3, seed=8), bias=exact(C, seed=9))
case("layer-norm", lambda x, weight, bias: F.layer_norm(x, (C,), weight, bias, 1e-6),
     x=exact(B, N, C, seed=10), weight=exact(C, seed=11), bias=exact(C, seed=12))
case("grn", grn, x=exact(B, N, C, seed=13), gamma=exact(C, seed=14), beta=exact(C, seed=15))
case("gelu-grn", lambda x, gamma, beta: grn(F.gelu(x), gamma, beta),
     x=exact(B, N, C, seed=16), gamma=exact(C, seed=17), beta=exact(C, seed=18))
case("gelu", lambda x: F.gelu(x), x=exact(B, N, C, seed=19, scale=2.0))
case("modulate", lambda x, scale, shift: x * (1 + scale[:, None]) + shift[:, None],
     x=exact(B, N, C, seed=20), scale=exact(B, C, seed=21), shift=exact(B, C, seed=22))
case("squared-error", lambda x, target: F.mse_loss(x, target, reduction="none").flatten(1).mean(1),
     x=exact(B, N, C, seed=23), target=exact(B, N, C, seed=24))
case("attention", attention, qkv=exact(B, N, 3 * C, seed=25), text=exact(B, 5, 2 * C, seed=26), user=exact(B, 3, 2 * C, seed=27))
case("self-attention", lambda qkv: F.scaled_dot_product_attention(
    *(heads(part, 2) for part in qkv.chunk(3, dim=-1)), is_causal=True).transpose(1, 2).flatten(2),
    qkv=exact(B, N, 3 * C, seed=28))
save_file({name: tensor.contiguous() for name, tensor in kept.items()}, os.path.join(out("ops"), "ops.safetensors"))
