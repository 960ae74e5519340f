"""What `ppd score --reward` must print: the public reward models' own preprocessing, networks and formulas on tiny, seeded
weights in their checkpoints' layouts, with pictures of several sizes and kinds, and a prompt that is too long.

Run with two arguments: the folder of fixtures to write (tests/fixtures/rewards) and a folder with a CLIP and a BERT
vocabulary (make_tokenizers.py). Weights are not stored: seeded.py.
"""
import csv
import hashlib
import json
import os
import pickle
import sys

import numpy as np
import open_clip.transform
import torch
import torch.nn.functional as F
import torchvision.transforms as T
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from PIL import Image
from torch import nn
from transformers import (BertTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTokenizerFast,
                          CLIPVisionConfig)
from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

import seeded

OUT, VOCABULARIES = sys.argv[1:3]
SIZE = 28
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def folder(name):
    path = os.path.join(OUT, name)
    os.makedirs(path, exist_ok=True)
    return path


def write(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")


# ------------------------------------------------------------------ pictures
def noise(name, height, width, channels=3):
    return ((seeded.draw(name, (height, width, channels)) + 1) * 128).astype(np.uint8)


def smooth(height, width):
    yy, xx = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [128 + 100 * np.sin(xx / 7 + yy / 11), 128 + 90 * np.cos(xx * yy / 200), (xx * 4 + yy * 3) % 256]
    return np.clip(np.stack(waves, -1), 0, 255).astype(np.uint8)


pictures = folder("pictures")
Image.fromarray(smooth(41, 28)).save(f"{pictures}/tall.png", optimize=True)
Image.fromarray(smooth(31, 47)).convert("L").save(f"{pictures}/grey.png", optimize=True)
alpha = np.concatenate([smooth(33, 33), noise("alpha", 33, 33, 1)], -1)
Image.fromarray(alpha).save(f"{pictures}/clear.png", optimize=True)
Image.fromarray(smooth(64, 90)).quantize(24).save(f"{pictures}/palette.png", optimize=True)
rows = [
    ("pictures/tall.png", "a red square on a wooden table"),
    ("pictures/grey.png", "Oil painting of a dog, 8k"),
    ("pictures/clear.png", " ".join(["a photo of a cat in a field of flowers"] * 12)),
    ("pictures/palette.png", "the user prefers minimal composition"),
    ("pictures/tall.png", ""),
]
with open(f"{OUT}/pairs.csv", "w", newline="") as f:
    writer = csv.writer(f, lineterminator="\n")
    writer.writerow(["image", "prompt"])
    writer.writerows(rows)
# To RGB first, as transformers and HPS v2 have it; open_clip and ImageReward do so after the resize, which for palettes and
# transparency resizes other numbers.
stored = [Image.open(os.path.join(OUT, path)) for path, _ in rows]
images = [image.convert("RGB") for image in stored]
prompts = [prompt for _, prompt in rows]

# ------------------------------------------------------------------ Pillow's resizes, by digest
filters = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}
resizes = []
for (height, width), (to_height, to_width) in [((97, 143), (40, 52)), ((33, 47), (160, 144)), ((64, 64), (64, 31)),
                                               ((5, 3), (9, 9)), ((56, 57), (56, 56)), ((200, 9), (7, 80))]:
    source = Image.fromarray(noise(f"{height}x{width}", height, width))
    for name, kind in filters.items():
        resized = source.resize((to_width, to_height), kind)
        digest = hashlib.sha256(resized.tobytes()).hexdigest()
        resizes.append([height, width, to_height, to_width, name, digest])
write(f"{OUT}/resizes.json", resizes)

# ------------------------------------------------------------------ scores
scores = {}
clip_tokenizer = CLIPTokenizerFast.from_pretrained(os.path.join(VOCABULARIES, "clip_tokenizer"))
vocabulary = len(clip_tokenizer)


@torch.no_grad()
def open_clip_layout():
    out = folder("open_clip")
    vision = dict(image_size=SIZE, layers=2, width=32, head_width=8, patch_size=7)
    text = dict(context_length=77, vocab_size=vocabulary, width=32, heads=4, layers=2)
    write(f"{out}/open_clip_config.json", {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text},
                                           "preprocess_cfg": {"mean": MEAN, "std": STD}})
    model = CLIP(embed_dim=16, vision_cfg=CLIPVisionCfg(**vision), text_cfg=CLIPTextCfg(**text)).eval()
    index = seeded.fill(model)
    index["logit_scale"] = [[], 0.0, 4.6052]
    seeded.save(f"{out}/tensors.json", index)
    ids = []
    for prompt in prompts:
        row = clip_tokenizer(prompt, truncation=True, max_length=77)["input_ids"]
        ids.append(row + [0] * (77 - len(row)))
    texts = F.normalize(model.encode_text(torch.tensor(ids)), dim=-1)
    own = open_clip.transform.image_transform(SIZE, is_train=False, mean=MEAN, std=STD)
    # HPS v2's transform.py: numbers are resized, not bytes.
    hps = T.Compose([T.ToTensor(),
                     T.Resize(SIZE, interpolation=T.InterpolationMode.BICUBIC, antialias=True), T.CenterCrop(SIZE),
                     T.Normalize(MEAN, STD)])
    for name, transform, shown in [("clip", own, stored), ("hps-v2.1", hps, images)]:
        pixels = torch.stack([transform(image) for image in shown])
        scores[name] = 100 * (F.normalize(model.encode_image(pixels), dim=-1) * texts).sum(-1)


@torch.no_grad()
def hugging_face_layout():
    out = folder("hugging_face")
    config = CLIPConfig.from_text_vision_configs(
        CLIPTextConfig(vocab_size=vocabulary, hidden_size=32, intermediate_size=64, projection_dim=16, num_hidden_layers=2,
                       num_attention_heads=4, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=1),
        CLIPVisionConfig(hidden_size=32, intermediate_size=64, projection_dim=16, num_hidden_layers=2, num_attention_heads=4,
                         image_size=SIZE, patch_size=7), projection_dim=16)
    config.to_json_file(f"{out}/config.json")
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor.to_json_file(f"{out}/preprocessor_config.json")
    model = CLIPModel(config).eval()
    index = seeded.fill(model)
    index["logit_scale"] = [[], 0.0, 4.6052]
    model.logit_scale.fill_(4.6052)
    tokens = clip_tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    image_features = F.normalize(model.get_image_features(pixel_values=pixels), dim=-1)
    texts = F.normalize(model.get_text_features(**tokens), dim=-1)
    scores["pick-score"] = model.logit_scale.exp() * (texts * image_features).sum(-1)
    seeded.save(f"{out}/tensors.json", index)

    head = nn.Sequential(nn.Linear(16, 24), nn.Dropout(0.2), nn.Linear(24, 12), nn.Dropout(0.2), nn.Linear(12, 8),
                         nn.Dropout(0.1), nn.Linear(8, 4), nn.Linear(4, 1)).eval()
    index = seeded.fill(head, lambda name: f"layers.{name}")
    scores["aesthetic"] = head(image_features)[:, 0]
    seeded.save(f"{folder('aesthetic')}/tensors.json", index)


def vision_name(name):
    """From transformers' names to those of ImageReward.pt."""
    name = name.replace("embeddings.class_embedding", "cls_token").replace("embeddings.position_embedding", "pos_embed")
    name = name.replace("embeddings.patch_embedding", "patch_embed.proj").replace("post_layernorm", "norm")
    name = name.replace("encoder.layers.", "blocks.").replace("self_attn.projection", "attn.proj")
    name = name.replace("self_attn", "attn").replace("layer_norm", "norm")
    return "blip.visual_encoder." + name


@torch.no_grad()
def image_reward():
    out = folder("image_reward")
    source = os.path.join(VOCABULARIES, "bert_tokenizer", "vocab.txt")
    with open(source) as f, open(f"{out}/vocab.txt", "w") as copy:
        copy.write(f.read())
    tokenizer = BertTokenizer(source, do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    med = {"architectures": ["BertModel"], "hidden_act": "gelu", "hidden_size": 32, "intermediate_size": 64,
           "layer_norm_eps": 1e-12, "max_position_embeddings": 64, "model_type": "bert", "num_attention_heads": 4,
           "num_hidden_layers": 2, "pad_token_id": 0, "add_type_embeddings": False, "vocab_size": len(tokenizer),
           "encoder_width": 24, "add_cross_attention": True}
    write(f"{out}/med_config.json", med)
    vision = BlipVisionModel(BlipVisionConfig(hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                                              image_size=SIZE, patch_size=7, hidden_act="gelu", layer_norm_eps=1e-6)).eval()
    text = BlipTextModel(BlipTextConfig(vocab_size=len(tokenizer), hidden_size=32, encoder_hidden_size=24,
                                        intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                                        max_position_embeddings=64, hidden_act="gelu", layer_norm_eps=1e-12,
                                        is_decoder=True), add_pooling_layer=False).eval()
    head = nn.Sequential(nn.Linear(32, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64),
                         nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)).eval()
    index = seeded.fill(vision, vision_name)
    index |= seeded.fill(text, lambda name: f"blip.text_encoder.{name}")
    index |= seeded.fill(head, lambda name: f"mlp.layers.{name}")
    seeded.save(f"{out}/tensors.json", index)
    # ImageReward's `_transform`.
    transform = T.Compose([T.Resize(SIZE, interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(SIZE),
                           lambda image: image.convert("RGB"), T.ToTensor(), T.Normalize(MEAN, STD)])
    pixels = torch.stack([transform(image) for image in stored])
    tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    states = text(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, is_decoder=False,
                  encoder_hidden_states=vision(pixels).last_hidden_state).last_hidden_state
    scores["image-reward"] = (head(states[:, 0])[:, 0] - 0.16717362830052426) / 1.0333394966054072


open_clip_layout()
hugging_face_layout()
image_reward()
write(f"{OUT}/scores.json", {name: [float(value) for value in values] for name, values in scores.items()})


# ------------------------------------------------------------------ pickles
pickles = folder("pickles")
base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
torch.save({"epoch": 3, "name": "tiny", "state_dict": {"plain": base, "turned": base.t(), "part": base[1:, 2:],
                                                       "half": base.half(), "brain": base.bfloat16(),
                                                       "count": torch.tensor(7), "weight": nn.Parameter(base * 2)}},
           f"{pickles}/nested.pt")


class Code:
    def __reduce__(self):
        return os.system, ("touch was-run",)


torch.save({"state_dict": {"plain": base}, "extra": Code()}, f"{pickles}/code.pt")
with open(f"{pickles}/bare.pt", "wb") as f:
    pickle.dump({"extra": Code()}, f)
