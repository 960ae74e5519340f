"""Weights that a fixture need not store: every value follows from its tensor's name.

`tests/suite/seeded.rs` makes the same numbers, bit for bit: SplitMix64 seeded with FNV-1a of the name draws 24 bits for
each element, u = draw / 2^23 - 1 in [-1, 1), and the value is offset + scale * u in single precision.
A `tensors.json` beside a fixture maps each name to [shape, scale, offset].
"""
import json

import numpy as np
import torch


def draw(name, shape):
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = ((state ^ byte) * 0x100000001B3) % 2**64
    count = int(np.prod(shape, dtype=np.int64))
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, count + 1, dtype=np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = (z >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
    return u.reshape(shape)


def tensor(name, shape, scale=1.0, offset=0.0):
    return torch.from_numpy(np.float32(offset) + np.float32(scale) * draw(name, shape))


def rule(name, shape):
    """A scale and an offset under which a network's signal neither dies nor grows."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return 0.5, 1.0
    if leaf == "running_mean":
        return 0.3, 0.0
    if len(shape) == 1 and leaf == "weight":
        return 0.3, 1.0  # a norm
    if len(shape) <= 1 or leaf in ("gamma", "beta"):
        return 0.3, 0.0
    if "embedding" in name and "patch" not in name:
        return 0.5, 0.0
    return float(np.float32((3.0 / np.prod(shape[1:])) ** 0.5)), 0.0


@torch.no_grad()
def fill(model, rename=lambda name: name):
    """Fills a model's floating tensors; returns what belongs into tensors.json. `rename` gives the checkpoint's key."""
    index = {}
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        key, shape = rename(name), list(value.shape)
        if key == "logit_scale":
            continue
        scale, offset = rule(key, shape)
        value.copy_(tensor(key, shape, scale, offset).reshape(value.shape))
        index[key] = [shape, scale, offset]
    return index


def save(path, index):
    with open(path, "w") as f:
        json.dump(index, f, separators=(",", ":"))
        f.write("\n")
