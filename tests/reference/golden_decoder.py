"""Stable Cascade's decoder as diffusers runs it, the EfficientNet encoder, and the previewer, by weights that follow from
their names (`seeded.py`): only configs, shapes and outputs are stored.

    GOLDEN_ROOT=golden python golden_decoder.py ../fixtures/decoder
"""
import json
import os
import sys
from functools import partial

import numpy as np
import torch
import torchvision
from diffusers import DDPMWuerstchenScheduler, StableCascadeDecoderPipeline
from diffusers.models import StableCascadeUNet
from diffusers.pipelines.wuerstchen import PaellaVQModel
import diffusers.schedulers.scheduling_ddpm_wuerstchen as scheduling
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from torchvision.transforms.v2 import functional as transforms
from transformers import CLIPTextModelWithProjection, CLIPTokenizerFast

import seeded

torch.set_num_threads(2)
OUT = sys.argv[1]
PRIOR = os.path.join(os.environ.get("GOLDEN_ROOT", "golden"), "stable_cascade_prior/repo")
PROMPTS = ["a red square on a wooden table", "Oil painting of a dog, 8k"]


def put(name, value):
    os.makedirs(os.path.dirname(os.path.join(OUT, name)), exist_ok=True)
    with open(os.path.join(OUT, name), "w") as f:
        json.dump(value, f, separators=(",", ":"))
        f.write("\n")


def store(name, model):
    index = seeded.fill(model.eval())
    os.makedirs(os.path.join(OUT, name), exist_ok=True)
    seeded.save(os.path.join(OUT, name, "tensors.json"), index)
    if hasattr(model, "config"):
        put(f"{name}/config.json", {k: v for k, v in model.config.items() if not k.startswith("_") or k == "_class_name"})
    return model


ct = ["SDCascadeResBlock", "SDCascadeTimestepBlock"]
cta = ct + ["SDCascadeAttnBlock"]
unet = store("decoder", StableCascadeUNet(
    in_channels=4, out_channels=4, timestep_ratio_embedding_dim=64, patch_size=2, conditioning_dim=24,
    block_out_channels=[8, 12, 16], num_attention_heads=[-1, 3, 2], down_num_layers_per_block=[1, 1, 2],
    up_num_layers_per_block=[1, 2, 1], down_blocks_repeat_mappers=[1, 1, 2], up_blocks_repeat_mappers=[3, 2, 1],
    block_types_per_layer=[ct, ct, cta], clip_text_in_channels=None, clip_text_pooled_in_channels=24,
    clip_image_in_channels=None, clip_seq=4, effnet_in_channels=16, pixel_mapper_in_channels=3, kernel_size=3,
    dropout=[0, 0, 0.1], self_attn=True, timestep_conditioning_type=["sca"], switch_level=None))
vq = store("vqgan", PaellaVQModel(embed_dim=16, bottleneck_blocks=2, num_vq_embeddings=32, latent_channels=4))
# The pipeline's pictures should be neither black nor white: the last layer is weak, around grey.
index = json.load(open(os.path.join(OUT, "vqgan/tensors.json")))
for leaf, (scale, offset) in {"weight": (0.03, 0.0), "bias": (0.1, 0.5)}.items():
    name = f"out_block.0.{leaf}"
    index[name][1:] = [scale, offset]
    vq.get_parameter(name).data.copy_(seeded.tensor(name, index[name][0], scale, offset))
seeded.save(os.path.join(OUT, "vqgan/tensors.json"), index)

stored = {}
with torch.no_grad():
    # 26x22 latents are 13x11 patches, then 6x5, then 3x2: every level's size is odd once.
    sample, r = seeded.tensor("unet.sample", [2, 4, 26, 22]), torch.tensor([1.0, 0.33])
    pooled, effnet = seeded.tensor("unet.pooled", [2, 1, 24]), seeded.tensor("unet.effnet", [2, 16, 3, 2])
    stored["unet.out"] = unet(sample, r, clip_text_pooled=pooled, effnet=effnet).sample
    latents, picture = seeded.tensor("vq.latents", [1, 4, 5, 4]), seeded.tensor("vq.picture", [1, 3, 20, 16], 0.5, 0.5)
    stored["vq.decode"] = vq.decode(latents).sample
    stored["vq.decode_quantized"] = vq.decode(latents, force_not_quantize=False).sample
    stored["vq.encode"] = vq.encode(picture, return_dict=False)[0]

# The pipeline, its noise handed in.
pipe = StableCascadeDecoderPipeline(
    decoder=unet, tokenizer=CLIPTokenizerFast.from_pretrained(os.path.join(PRIOR, "tokenizer")),
    text_encoder=CLIPTextModelWithProjection.from_pretrained(os.path.join(PRIOR, "text_encoder")).eval(),
    scheduler=DDPMWuerstchenScheduler(), vqgan=vq)
pipe.set_progress_bar_config(disable=True)
put("model_index.json", {"_class_name": "StableCascadeDecoderPipeline", "latent_dim_scale": pipe.config.latent_dim_scale})
put("scheduler/scheduler_config.json", {"_class_name": "DDPMWuerstchenScheduler", "s": 0.008, "scaler": 1.0})
for run, scale, negative in [("plain", 0.0, None), ("guided", 1.5, ["cluttered", "low contrast"])]:
    drawn, steps = iter(range(9)), []
    scheduling.randn_tensor = lambda shape, **_: seeded.tensor(f"pipeline.noise.{next(drawn)}", list(shape), 1.7)
    embeddings = seeded.tensor("pipeline.embeddings", [2, 16, 1, 3], 1.7)
    start = seeded.tensor("pipeline.start", [2, 4, int(1 * 10.67), int(3 * 10.67)], 1.7)
    images = pipe(
        image_embeddings=embeddings, prompt=PROMPTS, negative_prompt=negative, num_inference_steps=2, guidance_scale=scale,
        latents=start, output_type="pil",
        callback_on_step_end=lambda p, i, t, k: (steps.append(k["latents"].clone()), k)[1]).images
    stored[f"{run}.latents"] = torch.stack(steps)
    stored[f"{run}.image"] = torch.from_numpy(np.asarray(images[1]).copy())


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        c, d = (8, 8, 8, 16, 16, 16, 24), (1, 2, 2, 1, 2, 2)
        stages = [(FusedMBConvConfig, 1, 1), (FusedMBConvConfig, 4, 2), (FusedMBConvConfig, 4, 2),
                  (MBConvConfig, 4, 2), (MBConvConfig, 6, 1), (MBConvConfig, 6, 2)]
        stages = [kind(e, 3, s, c[i], c[i + 1], d[i]) for i, (kind, e, s) in enumerate(stages)]
        norm = partial(nn.BatchNorm2d, eps=1e-3)
        self.backbone = EfficientNet(stages, dropout=0.2, last_channel=32, norm_layer=norm).features
        self.mapper = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16, affine=False))


class Previewer(nn.Module):
    def __init__(self, inputs=16, hidden=16, outputs=3):
        super().__init__()
        layers = []

        def layer(layer, width):
            layers.extend([layer, nn.GELU(), nn.BatchNorm2d(width)])

        layer(nn.Conv2d(inputs, hidden, 1), hidden)
        layer(nn.Conv2d(hidden, hidden, 3, padding=1), hidden)
        for wide, narrow in [(hidden, hidden // 2), (hidden // 2, hidden // 4), (hidden // 4, hidden // 4)]:
            layer(nn.ConvTranspose2d(wide, narrow, 2, 2), narrow)
            layer(nn.Conv2d(narrow, narrow, 3, padding=1), narrow)
        layers.append(nn.Conv2d(hidden // 4, outputs, 1))
        self.blocks = nn.Sequential(*layers)


encoder, previewer = store("effnet_encoder", Encoder()), store("previewer", Previewer())
with torch.no_grad():
    # A picture that shrinks, and one that grows; both are cut.
    for name, (height, width) in [("shrunk", (90, 121)), ("grown", (61, 50))]:
        picture = (seeded.tensor(f"encoder.{name}", [height, width, 3]) * 127.5 + 127.5).to(torch.uint8)
        xs = transforms.to_dtype(transforms.to_image(Image.fromarray(picture.numpy())), torch.float32, scale=True)
        xs = transforms.center_crop(transforms.resize(xs, [64], antialias=True), [64, 64])
        xs = transforms.normalize(xs, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        stored[f"encoder.{name}.prepared"] = xs[:, ::13].contiguous()
        stored[f"encoder.{name}.latents"] = encoder.mapper(encoder.backbone(xs[None]))
    xs = seeded.tensor("encoder.uneven", [1, 3, 75, 101], 2.0)
    stored["encoder.uneven.latents"] = encoder.mapper(encoder.backbone(xs))
    stored["previewer.out"] = previewer.blocks(seeded.tensor("previewer.latents", [1, 16, 2, 3], 1.7))
for name, value in stored.items():
    print(name, list(value.shape), f"{value.float().mean():.3f} {value.float().std():.3f}")
save_file({name: value.contiguous() for name, value in stored.items()}, os.path.join(OUT, "golden.safetensors"))
