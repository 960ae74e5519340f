"""PyTorch's, diffusers' and scipy's side of every measurement of `benches/ppd`: the same shapes, weights and numbers.

    python benches/torch/twin.py --list
    python benches/torch/twin.py --export DIR              # the models and inputs that step, sample and encode share
    python benches/torch/twin.py step sample --inputs DIR --threads 2

Prints one JSON object a measurement, in the form that `benches/ppd` prints. Eager mode, float32, no torch.compile.
"""

import argparse
import json
import os
import resource
import time

WARM = 2


def timed(reps, call):
    """Seconds of each of `reps` calls after those that warm up, and what the first gave."""
    first = call()
    for _ in range(WARM - 1):
        call()
    seconds = []
    for _ in range(reps):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return seconds, first


def peak_bytes(device):
    """The most memory the process has held: the GPU's where it computes, else the process's own."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def circumstances(tensor):
    """What a tensor says of its precision and device, and torch of its threads."""
    import torch

    dtype = {torch.float32: "f32", torch.bfloat16: "bf16"}[tensor.dtype]
    return {"dtype": dtype, "threads": torch.get_num_threads(), "device": tensor.device.type}


# ── Stage C ──

PAIRS, SIDE, STEPS = 16, 16, 30
TEXT_TOKENS, USER_TOKENS, TOKEN_WIDTH = 77, 8, 128
BLOCKS = ["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]


class UserBranch:
    """softmax(QK)V over [self; text] + softmax(QK_u)V_u, then to_out (the paper's Eq. 7)."""

    def __init__(self, name, parameters, user):
        self.name, self.parameters, self.user = name, parameters, user

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        import torch.nn.functional as F

        batch, channels, height, width = hidden_states.shape
        xs = hidden_states.view(batch, channels, height * width).transpose(1, 2)

        def heads(tensor):
            return tensor.view(batch, -1, attn.heads, channels // attn.heads).transpose(1, 2)

        query = heads(attn.to_q(xs))
        key, value = heads(attn.to_k(encoder_hidden_states)), heads(attn.to_v(encoder_hidden_states))
        out = F.scaled_dot_product_attention(query, key, value)
        if self.user["tokens"] is not None:
            key = heads(F.linear(self.user["tokens"], self.parameters[self.name + "__k"]))
            value = heads(F.linear(self.user["tokens"], self.parameters[self.name + "__v"]))
            out = out + F.scaled_dot_product_attention(query, key, value)
        out = attn.to_out[0](out.transpose(1, 2).reshape(batch, -1, channels))
        return out.transpose(1, 2).reshape(batch, channels, height, width)


class StageC:
    """A small Stage C of all block types with its user branch, and the inputs of one batch; made by seed 0."""

    def __init__(self):
        import torch
        from diffusers import DDPMWuerstchenScheduler
        from diffusers.models import StableCascadeUNet
        from diffusers.models.unets.unet_stable_cascade import SDCascadeAttnBlock

        generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(*shape, generator=generator)

        self.unet = StableCascadeUNet(
            in_channels=16, out_channels=16, timestep_ratio_embedding_dim=64, patch_size=1,
            conditioning_dim=128, block_out_channels=[128, 256], num_attention_heads=[2, 4],
            down_num_layers_per_block=[2, 1], up_num_layers_per_block=[1, 2],
            down_blocks_repeat_mappers=[1, 1], up_blocks_repeat_mappers=[1, 1],
            block_types_per_layer=[BLOCKS, BLOCKS], clip_text_in_channels=128, clip_text_pooled_in_channels=128,
            clip_image_in_channels=64, clip_seq=4, kernel_size=3, dropout=[0.1, 0.1], self_attn=True,
            timestep_conditioning_type=["sca", "crp"], switch_level=[False],
        ).eval()
        with torch.no_grad():
            for _, parameter in self.unet.named_parameters():
                matrix = parameter.ndim in (2, 4) and parameter.shape[0] > 1
                scale = 0.7 / parameter[0].numel() ** 0.5 if matrix else 0.05
                parameter.copy_(draw(*parameter.shape) * scale)
        self.unet.requires_grad_(False)
        self.adapter, self.user = torch.nn.ParameterDict(), {"tokens": None}
        for name, module in self.unet.named_modules():
            if isinstance(module, SDCascadeAttnBlock):
                name, width = name.replace(".", "_"), module.attention.to_q.out_features
                key, value = draw(width, TOKEN_WIDTH) / TOKEN_WIDTH**0.5, draw(width, TOKEN_WIDTH) * 0.02
                self.adapter[name + "__k"] = torch.nn.Parameter(key)
                self.adapter[name + "__v"] = torch.nn.Parameter(value)
                module.attention.set_processor(UserBranch(name, self.adapter, self.user))
        latents = (PAIRS, 16, SIDE, SIDE)
        self.inputs = {"x0w": draw(*latents), "x0l": draw(*latents), "eps": draw(*latents)}
        self.inputs["r"] = torch.rand(PAIRS, generator=generator).clamp(0.02, 0.98)
        self.inputs["text"] = draw(PAIRS, TEXT_TOKENS, 128)
        self.inputs["pooled"] = draw(PAIRS, 1, 128)
        self.inputs["img"] = torch.zeros(PAIRS, 1, 64)
        self.inputs["user"] = draw(PAIRS, USER_TOKENS, TOKEN_WIDTH)
        noises = torch.Generator().manual_seed(1)
        self.inputs["noise"] = torch.stack([torch.randn(latents, generator=noises) for _ in range(STEPS)])
        self.scheduler = DDPMWuerstchenScheduler()

    def export(self, folder):
        from safetensors.torch import save_file

        self.unet.save_pretrained(folder)
        adapter = {name.replace("__", "."): value.detach() for name, value in self.adapter.items()}
        save_file(adapter, os.path.join(folder, "adapters.safetensors"))
        save_file(self.inputs, os.path.join(folder, "inputs.safetensors"))
        encoding = {name: value.contiguous() for name, value in encoder().state_dict().items()}
        save_file(encoding, os.path.join(folder, "effnet_encoder.safetensors"))

    def assert_exported(self, folder):
        """The other side reads the exported tensors: they must be these."""
        import torch
        from safetensors.torch import load_file

        exported = load_file(os.path.join(folder, "inputs.safetensors"))
        for name, value in self.inputs.items():
            if name not in exported or not torch.equal(exported[name], value):
                raise SystemExit(f"{folder}: {name} is not what this version draws; export the folder again")

    def shape(self):
        inputs = {"latent": "x0w", "text": "text", "user": "user"}
        return {name: list(self.inputs[key].shape) for name, key in inputs.items()} | circumstances(self.inputs["x0w"])


def twice(tensor):
    import torch

    return torch.cat([tensor, tensor])


def step(arguments, cached=False):
    import torch
    import torch.nn.functional as F

    model = StageC()
    model.assert_exported(arguments.inputs)
    inputs, beta = model.inputs, 2000.0
    optimiser = torch.optim.AdamW(model.adapter.parameters(), lr=1e-5)
    losses, known = [], {}

    def call():
        noise = inputs["eps"]
        with torch.no_grad():
            noised = [model.scheduler.add_noise(inputs[name], noise, inputs["r"]) for name in ("x0w", "x0l")]
            noised, target, timestep = torch.cat(noised), twice(noise), twice(inputs["r"])
            conditions = {
                "clip_text_pooled": twice(inputs["pooled"]),
                "clip_text": twice(inputs["text"]),
                "clip_img": twice(inputs["img"]),
            }
            if not (cached and "reference" in known):
                model.user["tokens"] = None
                reference = model.unet(noised, timestep, **conditions).sample
                known["reference"] = (reference - target).pow(2).mean(dim=[1, 2, 3])
        model.user["tokens"] = twice(inputs["user"])
        predicted = model.unet(noised, timestep, **conditions).sample
        chosen, rejected = (predicted - target).pow(2).mean(dim=[1, 2, 3]).chunk(2)
        reference_chosen, reference_rejected = known["reference"].chunk(2)
        inside = (chosen - rejected) - (reference_chosen - reference_rejected)
        loss = -F.logsigmoid(-0.5 * beta * inside).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.adapter.parameters(), 1e9)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())

    seconds, _ = timed(arguments.reps, call)
    return model.shape(), seconds, losses[:3]


def sample(arguments):
    import torch

    model = StageC()
    model.assert_exported(arguments.inputs)
    inputs = model.inputs
    nothing = {name: torch.zeros_like(inputs[name]) for name in ("text", "pooled", "user")}

    @torch.no_grad()
    def call():
        latents, scale = inputs["x0w"].clone(), 4.0
        model.scheduler.set_timesteps(arguments.steps)
        noises = torch.Generator().manual_seed(1)
        conditions = {
            "clip_text_pooled": torch.cat([inputs["pooled"], nothing["pooled"]]),
            "clip_text": torch.cat([inputs["text"], nothing["text"]]),
            "clip_img": twice(inputs["img"]),
        }
        model.user["tokens"] = torch.cat([inputs["user"], nothing["user"]])
        for timestep in model.scheduler.timesteps[:-1]:
            timestep = timestep.expand(PAIRS)
            predicted = model.unet(twice(latents), twice(timestep), **conditions).sample
            conditional, unconditional = predicted.chunk(2)
            guided = torch.lerp(unconditional, conditional, scale)
            latents = model.scheduler.step(guided, timestep, latents, generator=noises).prev_sample
        return latents

    seconds, latents = timed(arguments.reps, call)
    shape = model.shape() | {"steps": arguments.steps}
    return shape, seconds, [latents.square().mean().item()]


# ── the full-size Stage C on a GPU ──


class FullStageC:
    """The 3.6 B Stage C: random weights, bf16, SDPA, adapters in single precision."""

    WIDTH = 2048

    def __init__(self, device):
        import torch
        from diffusers.models import StableCascadeUNet
        from diffusers.models.unets.unet_stable_cascade import SDCascadeAttnBlock

        width = self.WIDTH
        with torch.device("meta"):
            unet = StableCascadeUNet(
                in_channels=16, out_channels=16, timestep_ratio_embedding_dim=64, patch_size=1, conditioning_dim=width,
                block_out_channels=[width, width], num_attention_heads=[32, 32], down_num_layers_per_block=[8, 24],
                up_num_layers_per_block=[24, 8], down_blocks_repeat_mappers=[1, 1], up_blocks_repeat_mappers=[1, 1],
                block_types_per_layer=[BLOCKS, BLOCKS], clip_text_in_channels=1280, clip_text_pooled_in_channels=1280,
                clip_image_in_channels=768, clip_seq=4, kernel_size=3, dropout=[0.1, 0.1], self_attn=True,
                timestep_conditioning_type=["sca", "crp"], switch_level=[False],
            )
        self.unet = unet.to(torch.bfloat16).to_empty(device=device).eval().requires_grad_(False)
        self.count = 0
        with torch.no_grad():
            for parameter in self.unet.parameters():
                matrix = parameter.ndim in (2, 4) and parameter.shape[0] > 1
                parameter.normal_(0, 0.7 / parameter[0].numel() ** 0.5 if matrix else 0.05)
                self.count += parameter.numel()
        self.projector = torch.nn.Parameter(torch.randn(4 * width, 3584, device=device) / 3584**0.5)
        self.adapter, self.user = torch.nn.ParameterDict(), {"tokens": None}
        for name, module in self.unet.named_modules():
            if isinstance(module, SDCascadeAttnBlock):
                name = name.replace(".", "_")
                key = torch.randn(width, width, device=device) / width**0.5
                self.adapter[name + "__k"] = torch.nn.Parameter(key)
                self.adapter[name + "__v"] = torch.nn.Parameter(torch.zeros(width, width, device=device))
                module.attention.set_processor(HalfBranch(name, self.adapter, self.user))
        self.parameters = [self.projector, *self.adapter.parameters()]

    def errors(self, noised, r, conditions, target, users):
        """Of each image under the given users; under none, the reference's."""
        import torch
        import torch.nn.functional as F

        tokens = None
        if users is not None:
            tokens = twice(F.linear(users, self.projector).view(-1, 4, self.WIDTH)).to(torch.bfloat16)
        self.user["tokens"] = tokens
        predicted = self.unet(noised.to(torch.bfloat16), r, **conditions).sample
        return (predicted.float() - target).pow(2).mean(dim=[1, 2, 3])


class HalfBranch(UserBranch):
    """The user branch, with the adapter's tensors brought to the model's precision."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        import torch

        half = {key: self.parameters[self.name + key].to(torch.bfloat16) for key in ("__k", "__v")}
        return UserBranch("", half, self.user)(attn, hidden_states, encoder_hidden_states)


def full_step(arguments, cached=False):
    """PPD's step of the full-size Stage C."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMWuerstchenScheduler

    device, pairs = f"cuda:{arguments.gpu}", arguments.pairs
    torch.manual_seed(0)
    model, scheduler = FullStageC(device), DDPMWuerstchenScheduler()
    optimiser = torch.optim.AdamW(model.parameters, lr=1e-5)

    def draw(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device=device).to(dtype)

    latents, noise = [draw(pairs, 16, 24, 24) for _ in range(2)], draw(pairs, 16, 24, 24)
    text, pooled, image = draw(pairs, 77, 1280), draw(pairs, 1, 1280), torch.zeros_like(draw(pairs, 1, 768))
    users = draw(pairs, 3584, dtype=torch.float32)
    timesteps = (torch.arange(pairs, device=device) + 0.5) / pairs
    known = {}

    def back(part):
        """Forward and backward of one micro-batch."""
        r, target = twice(timesteps[part]), twice(noise[part]).float()
        conditions = {"clip_text": twice(text[part]), "clip_text_pooled": twice(pooled[part]), "clip_img": twice(image[part])}
        with torch.no_grad():
            noised = torch.cat([scheduler.add_noise(x[part], noise[part], timesteps[part]) for x in latents])
            if not (cached and part.start in known):
                known[part.start] = model.errors(noised, r, conditions, target, None)
        chosen, rejected = model.errors(noised, r, conditions, target, users[part]).chunk(2)
        reference_chosen, reference_rejected = known[part.start].chunk(2)
        inside = -500.0 * ((chosen - rejected) - (reference_chosen - reference_rejected))
        (-F.logsigmoid(inside).sum() / pairs).backward()

    def call():
        for start in range(0, pairs, arguments.micro_batch):
            back(slice(start, min(start + arguments.micro_batch, pairs)))
        torch.nn.utils.clip_grad_norm_(model.parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        torch.cuda.synchronize()

    seconds, _ = timed(arguments.reps, call)
    shape = {"latent": [pairs, 16, 24, 24], "text": [pairs, 85, 2048], "user": [pairs, 4, 2048], "parameters": model.count}
    return shape | {"forward_flops": FULL_FORWARD_FLOPS, "dtype": "bf16", "device": "cuda"}, seconds, []


# Of one image: 64 blocks of an MLP, the four maps of attention, and its products; as benches/ppd/full.rs reckons it.
FULL_FORWARD_FLOPS = 2.0 * 64 * (12.0 * 2048 * 2048 * 576 + 2.0 * 576 * (576 + 85) * 2048)


# ── pictures ──

PICTURES, REWARD_SIDE, CODEC_SIDE = 8, 224, 768
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def preprocess(arguments):
    """Pillow's bicubic resize of whole pictures, the centre's crop and CLIP's constants, on one thread."""
    import numpy
    import torch
    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    shape = [PICTURES, 768, 1024, 3]
    pixels = ((numbers(shape, 1).numpy() + 1) * 128).astype(numpy.uint8)
    pictures = [Image.fromarray(picture) for picture in pixels]
    resize = transforms.Resize(REWARD_SIDE, interpolation=transforms.InterpolationMode.BICUBIC)
    normalize = transforms.Normalize(CLIP_MEAN, CLIP_STD)
    whole = transforms.Compose([resize, transforms.CenterCrop(REWARD_SIDE), transforms.ToTensor(), normalize])
    seconds, out = timed(arguments.reps, lambda: torch.stack([whole(picture) for picture in pictures]))
    return {"pictures": shape, "side": REWARD_SIDE} | circumstances(out), seconds, [out.square().mean().item()]


def encoder():
    """Stage C's encoder: EfficientNetV2-S and Stability's map to latents, with random weights and true running statistics."""
    import torch
    from torchvision.models import efficientnet_v2_s

    torch.manual_seed(0)
    mapper = torch.nn.Sequential(torch.nn.Conv2d(1280, 16, 1, bias=False), torch.nn.BatchNorm2d(16, affine=False))
    model = torch.nn.Sequential()
    model.add_module("backbone", efficientnet_v2_s(weights=None).features)
    model.add_module("mapper", mapper)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        # As after a training: what passes each norm has mean 0 and deviation 1.
        model.train()(torch.randn(4, 3, 128, 128))
    return model.eval()


def encode(arguments):
    import torch

    model, shape = encoder(), [2, 3, CODEC_SIDE, CODEC_SIDE]
    pixels = numbers(shape, 2)
    with torch.no_grad():
        seconds, out = timed(arguments.reps, lambda: model(pixels))
    return {"pixels": shape} | circumstances(out), seconds, [out.square().mean().item()]


# ── operations ──

BATCH, WIDTH, HEADS, TEXT, USER = 32, 256, 4, 85, 8


def numbers(shape, salt):
    """The same numbers in [−1, 1) as the other side's: a multiplicative hash of the index."""
    import math

    import numpy
    import torch

    index = numpy.arange(math.prod(shape), dtype=numpy.uint32)
    mixed = index ^ numpy.uint32(salt * 0x9E3779B9 & 0xFFFFFFFF)
    hashed = (mixed.astype(numpy.uint64) * 2654435761 & 0xFFFFFFFF).astype(numpy.uint32)
    values = (hashed >> 8).astype(numpy.float32) / numpy.float32(8388608.0) - numpy.float32(1.0)
    return torch.from_numpy(values).reshape(shape)


def forward_and_backward(arguments, shape, variables, op):
    """Forward and backward of `op` on variables of the given shapes; the gradient of the sum of squares goes back."""
    inputs = [numbers(shape, salt).requires_grad_() for salt, shape in enumerate(variables, 1)]

    def call():
        for tensor in inputs:
            tensor.grad = None
        out = op(*inputs)
        out.square().sum().backward()
        return out.detach(), inputs[0].grad.clone()

    seconds, (out, gradient) = timed(arguments.reps, call)
    means = [tensor.double().square().mean().item() for tensor in (out, gradient)]
    return shape | circumstances(out), seconds, means


ROWS, POSITIONS, HIDDEN = [BATCH, SIDE, SIDE, WIDTH], [BATCH, SIDE * SIDE, WIDTH], [BATCH, SIDE * SIDE, 4 * WIDTH]


def linear(arguments):
    import torch.nn.functional as F

    weight, bias = numbers([4 * WIDTH, WIDTH], 11), numbers([4 * WIDTH], 12)
    shape = {"input": POSITIONS, "weight": list(weight.shape)}
    return forward_and_backward(arguments, shape, [POSITIONS], lambda xs: F.linear(xs, weight, bias))


def channels_first(op):
    """Stage C's convolutions take channels first, and diffusers keeps its pictures so: the input is made that way."""
    return lambda xs: op(xs.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def pointwise_conv(arguments):
    import torch.nn.functional as F

    weight, bias = numbers([WIDTH, WIDTH // 2], 11), numbers([WIDTH], 12)
    rows = [BATCH, SIDE, SIDE, WIDTH // 2]
    convolution = channels_first(lambda xs: F.conv2d(xs, weight[:, :, None, None], bias))
    return forward_and_backward(arguments, {"input": rows, "weight": list(weight.shape)}, [rows], convolution)


def depthwise_conv(arguments):
    import torch.nn.functional as F

    weight, bias = numbers([WIDTH, 1, 3, 3], 11), numbers([WIDTH], 12)
    convolution = channels_first(lambda xs: F.conv2d(xs, weight, bias, padding=1, groups=WIDTH))
    return forward_and_backward(arguments, {"input": ROWS, "weight": list(weight.shape)}, [ROWS], convolution)


def layer_norm(arguments):
    import torch.nn.functional as F

    return forward_and_backward(
        arguments, {"input": ROWS}, [ROWS], lambda xs: F.layer_norm(xs, (WIDTH,), eps=1e-6)
    )


def response():
    """diffusers' GlobalResponseNorm with the bench's weights."""
    import torch

    gamma, beta = numbers([4 * WIDTH], 11), numbers([4 * WIDTH], 12)

    def call(xs):
        norms = torch.norm(xs, p=2, dim=1, keepdim=True)
        return gamma * (xs * (norms / (norms.mean(dim=-1, keepdim=True) + 1e-6))) + beta + xs

    return call


def grn(arguments):
    return forward_and_backward(arguments, {"input": HIDDEN}, [HIDDEN], response())


def gelu_grn(arguments):
    import torch.nn.functional as F

    normalised = response()
    return forward_and_backward(arguments, {"input": HIDDEN}, [HIDDEN], lambda xs: normalised(F.gelu(xs)))


def gelu(arguments):
    import torch.nn.functional as F

    return forward_and_backward(arguments, {"input": HIDDEN}, [HIDDEN], F.gelu)


def modulate(arguments):
    scale, shift = numbers([BATCH, WIDTH], 11)[:, None], numbers([BATCH, WIDTH], 12)[:, None]
    return forward_and_backward(
        arguments, {"input": POSITIONS}, [POSITIONS], lambda xs: xs * (1 + scale) + shift
    )


def attention(arguments):
    import torch
    import torch.nn.functional as F

    rows, text_shape, user_shape = [BATCH, SIDE * SIDE, 3 * WIDTH], [BATCH, TEXT, 2 * WIDTH], [BATCH, USER, 2 * WIDTH]
    text = numbers(text_shape, 11)

    def heads(tensor):
        return tensor.reshape(BATCH, -1, HEADS, WIDTH // HEADS).transpose(1, 2)

    def both(qkv, user):
        query, key, value = qkv.chunk(3, dim=-1)
        text_key, text_value = text.chunk(2, dim=-1)
        user_key, user_value = user.chunk(2, dim=-1)
        key, value = torch.cat([key, text_key], dim=1), torch.cat([value, text_value], dim=1)
        query = heads(query)
        out = F.scaled_dot_product_attention(query, heads(key), heads(value))
        out = out + F.scaled_dot_product_attention(query, heads(user_key), heads(user_value))
        return out.transpose(1, 2).reshape(BATCH, -1, WIDTH)

    shape = {"qkv": rows, "text": text_shape, "user": user_shape, "heads": HEADS}
    return forward_and_backward(arguments, shape, [rows, user_shape], both)


def squared_error(arguments):
    rows = [BATCH, 16, 4 * SIDE, 4 * SIDE]
    target = numbers(rows, 11)
    return forward_and_backward(
        arguments, {"input": rows}, [rows], lambda xs: (xs - target).pow(2).mean(dim=[1, 2, 3])
    )


# ── statistics ──


def bca(arguments):
    """scipy's BCa of the mean of all rows, on one thread; it knows no clusters."""
    import numpy
    from scipy import stats

    rows, resamples = 4896, 10_000
    index = numpy.arange(rows, dtype=numpy.uint64)
    values = ((index * 2654435761 & 0xFFFFFFFF) >> 8).astype(numpy.float64) / 16777216.0
    seed = iter(range(1, 1000))

    def call():
        rng = numpy.random.default_rng(next(seed))
        stats.bootstrap((values,), numpy.mean, n_resamples=resamples, method="BCa", rng=rng)
        return values.mean()

    seconds, mean = timed(arguments.reps, call)
    shape = {"rows": rows, "resamples": resamples, "dtype": "f64", "threads": 1, "device": "cpu"}
    return shape, seconds, [float(mean)]


BENCHES = {
    "step": step,
    "step-cached": lambda arguments: step(arguments, cached=True),
    "sample": sample,
    "preprocess": preprocess,
    "encode": encode,
    "linear": linear,
    "pointwise-conv": pointwise_conv,
    "depthwise-conv": depthwise_conv,
    "layer-norm": layer_norm,
    "grn": grn,
    "gelu": gelu,
    "gelu-grn": gelu_grn,
    "modulate": modulate,
    "attention": attention,
    "squared-error": squared_error,
    "bca": bca,
    # On a GPU, and only where asked for by name.
    "full-step": full_step,
    "full-step-cached": lambda arguments: full_step(arguments, cached=True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="the measurements, all where none is named")
    parser.add_argument("--list", action="store_true", help="print their names")
    parser.add_argument("--export", metavar="DIR", help="write the model and inputs that step and sample share")
    parser.add_argument("--inputs", metavar="DIR", help="that folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=5, help="measured repetitions, after those that warm up")
    parser.add_argument("--gpu", type=int, default=0, help="the GPU of the full-size measurements")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a full-size step")
    parser.add_argument("--micro-batch", type=int, default=4, help="pairs of each of its micro-batches")
    parser.add_argument("--steps", type=int, default=STEPS, help="sampler steps")
    arguments = parser.parse_args()
    if arguments.list:
        return print("\n".join(BENCHES))
    if arguments.export:
        return StageC().export(arguments.export)
    unknown = [name for name in arguments.names if name not in BENCHES]
    if unknown:
        raise SystemExit(f"unknown measurement {unknown[0]!r}; --list prints the known ones")
    for name in arguments.names or [name for name in BENCHES if not name.startswith("full-")]:
        if not name.startswith("bca"):
            import torch

            torch.set_num_threads(arguments.threads)
        shape, seconds, check = BENCHES[name](arguments)
        peak = peak_bytes(shape["device"])
        line = {"bench": name, "program": "torch", "shape": shape, "seconds": seconds, "check": check}
        print(json.dumps(line | {"peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
