"""LLaVA-OneVision in the layout of llava-hf/llava-onevision-qwen2-*-ov-hf, tiny, against transformers 4.49.

Weights follow from their names (seeded.py); stored are the config files, two images, and what the reference computes.
The tokenizer is that of `make_tokenizers.py`: its folder is the first argument.
"""
import json
import os
import shutil
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessor,
                          LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor, Qwen2Config, Qwen2TokenizerFast,
                          SiglipVisionConfig)

import seeded

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "llava_onevision")
SIDE, PATCH = 28, 14
CHAT = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
        "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}"
        "{% endfor %}{{'<|im_end|>'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def picture(height, width, k):
    y, x = np.mgrid[0:height, 0:width]
    channels = [127 + 120 * np.sin(x / (3 + k)), 127 + 120 * np.cos(y / (4 + k)), (x * 7 + y * 3 + 31 * k) % 256]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def grey_levels(pixels):
    """Bytes that the normalised pixels stand for."""
    levels = torch.round((pixels * 0.5 + 0.5) * 255)
    assert torch.allclose(levels / 255 * 2 - 1, pixels, atol=1e-6)
    return levels.to(torch.uint8)


def squared(image):
    """The paper's layout: LLaVA-NeXT's "pad"."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((SIDE, SIDE), Image.BICUBIC)


def main():
    os.makedirs(FOLDER, exist_ok=True)
    tokenizer = Qwen2TokenizerFast.from_pretrained(sys.argv[1])
    ids = tokenizer.convert_tokens_to_ids
    pinpoints = [[SIDE * i, SIDE * j] for i in range(1, 5) for j in range(1, 5)]
    vision = SiglipVisionConfig(hidden_size=16, image_size=SIDE, patch_size=PATCH, intermediate_size=40,
                                num_attention_heads=2, num_hidden_layers=2, hidden_act="gelu_pytorch_tanh")
    vision.vision_use_head = False
    text = Qwen2Config(vocab_size=len(tokenizer) + 7, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
                       rope_theta=1000000.0, tie_word_embeddings=False, bos_token_id=ids("<|endoftext|>"),
                       eos_token_id=ids("<|im_end|>"))
    config = LlavaOnevisionConfig(vision_config=vision, text_config=text, image_token_index=ids("<image>"),
                                  video_token_index=ids("<video>"), vision_aspect_ratio="anyres_max_9",
                                  image_grid_pinpoints=pinpoints)
    config._attn_implementation = "eager"
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    seeded.save(os.path.join(FOLDER, "tensors.json"), seeded.fill(model))
    images = LlavaOnevisionImageProcessor(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=pinpoints,
                                          image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = LlavaOnevisionProcessor(
        image_processor=images, tokenizer=tokenizer, num_image_tokens=(SIDE // PATCH) ** 2,
        video_processor=LlavaOnevisionVideoProcessor(size={"height": SIDE, "width": SIDE}),
        vision_feature_select_strategy="full", chat_template=CHAT)
    saved = os.path.join(FOLDER, "saved")
    model.save_pretrained(saved)
    processor.save_pretrained(saved)
    for name in ["config.json", "generation_config.json", "preprocessor_config.json", "chat_template.json",
                 "tokenizer.json"]:
        shutil.move(os.path.join(saved, name), os.path.join(FOLDER, name))
    shutil.rmtree(saved)

    # Sides whose padding is odd, so that the last tile is short of a row; and one that is laid out in fewer features.
    wide, large = picture(25, 61, 0), picture(100, 90, 2)
    wide.save(os.path.join(FOLDER, "wide.png"))
    large.save(os.path.join(FOLDER, "large.png"))
    prompts = {"wide": ("<|im_start|>user <image>\nDescribe the image.<|im_end|><|im_start|>assistant\n", [wide]),
               "both": ("<|im_start|>user One <image> is better than <image>.\nWhy?<|im_end|>"
                        "<|im_start|>assistant\n", [large, wide])}
    stored = {}

    def keep(name, out, generated):
        # Of one case every layer, of the others the last.
        states = torch.stack(out.hidden_states)[:, 0]
        stored[f"{name}.hidden_states"] = states if name == "wide" else states[-1:]
        stored[f"{name}.logits"] = out.logits[0, -1]
        stored[f"{name}.generated"] = generated.sequences[0, -8:]
        stored[f"{name}.last_step"] = torch.stack([h[0, -1] for h in generated.hidden_states[-1]])

    options = dict(max_new_tokens=8, do_sample=False, eos_token_id=10**6, output_hidden_states=True,
                   return_dict_in_generate=True)
    with torch.no_grad():
        for name, (prompt, pictures) in prompts.items():
            given = processor(text=prompt, images=pictures, return_tensors="pt")
            stored[f"{name}.input_ids"] = given["input_ids"][0]
            for i, pixels in enumerate(given["pixel_values"]):
                tiles = pixels[pixels.flatten(1).abs().sum(1) > 0]  # what fills the batch up is zero
                stored[f"{name}.pixels.{i}"] = grey_levels(tiles)
            keep(name, model(**given, output_hidden_states=True), model.generate(**given, **options))
        # The base-only layout has no processor in 4.49: its parts, put together by hand.
        prompt, pictures = prompts["both"]
        levels = torch.stack([torch.from_numpy(np.asarray(squared(p)).copy()).permute(2, 0, 1) for p in pictures])
        pixels = levels.to(torch.float32) / 255 * 2 - 1
        features = model.multi_modal_projector(model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1])
        features = torch.cat([torch.cat([f, model.image_newline[None]]) for f in features])
        each = "<image>" * (features.shape[0] // len(pictures))
        tokens = tokenizer(prompt.replace("<image>", each), return_tensors="pt")["input_ids"]
        embeds = model.get_input_embeddings()(tokens)
        embeds[tokens == config.image_token_index] = features
        stored["base_only.input_ids"], stored["base_only.pixels"] = tokens[0], levels
        language = model.language_model
        mask = torch.ones_like(tokens)
        keep("base_only", language(inputs_embeds=embeds, output_hidden_states=True),
             language.generate(inputs_embeds=embeds, attention_mask=mask, **options))
    stored = {name: value.to(torch.int32) if value.dtype == torch.int64 else value.contiguous()
              for name, value in stored.items()}
    save_file(stored, os.path.join(FOLDER, "golden.safetensors"))
    conversation = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                    {"role": "user", "content": [{"type": "image"}, {"type": "image"},
                                                 {"type": "text", "text": "Which?"}]}]
    with open(os.path.join(FOLDER, "chat.json"), "w") as f:
        json.dump({"rendered": processor.apply_chat_template(conversation, add_generation_prompt=True),
                   "prompts": {name: prompt for name, (prompt, _) in prompts.items()}}, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
