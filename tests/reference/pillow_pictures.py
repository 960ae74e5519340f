"""Small pictures in every mode and layout, and what Pillow, and open_clip's transform, make of them.

    python pillow_pictures.py FILE.json [SEED]

`bytes` is the file; `rgb` the SHA-256 of `convert("RGB")`'s pixels; `square` that of the picture after the resize, crop and
conversion of open_clip (which OpenAI's CLIP and ImageReward share), `first` that of the same after a conversion that comes first.
"""
import base64
import hashlib
import io
import json
import struct
import sys
import zlib

import numpy as np
import open_clip.transform
from PIL import Image

SIZE = 12
transform = open_clip.transform.image_transform(SIZE, is_train=False).transforms[:3]
random = np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
cases = {}


def digest(image):
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


def keep(name, data):
    def square(image):
        for step in transform:
            image = step(image)
        return image

    image = Image.open(io.BytesIO(data))
    rgb = image.convert("RGB")
    cases[name] = {"size": rgb.size, "bytes": base64.b64encode(data).decode(), "rgb": digest(rgb),
                   "square": digest(square(image)), "first": digest(square(rgb))}


def pixels(width, height, bands=3):
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x / (3 + band) + y / (5 - band % 3) + band) for band in range(bands)]
    noisy = np.stack(waves, -1) + random.normal(0, 25, (height, width, bands))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def stored(array, kind, mode=None, **options):
    file = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array, mode)
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(width, height, quality, bands=3, **options):
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[bands]
    return stored(pixels(width, height, bands), "JPEG", mode, quality=quality, optimize=True, **options)


def resampled(data, factors, width, height):
    """The same blocks under other sampling factors of the brightness, and in another size."""
    data, at = bytearray(data), 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
    data[at + 5:at + 9] = struct.pack(">HH", height, width)
    data[at + 11] = factors
    return bytes(data)


def sixteen(array, colour):
    """A PNG of sixteen bits a sample, which Pillow does not write."""
    height, width = array.shape[:2]
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


for name, subsampling in [("444", 0), ("422", 1), ("420", 2)]:
    for width, height, quality in [(33, 17, 92), (16, 16, 60), (7, 9, 25), (1, 3, 100)]:
        keep(f"jpeg {name} {width}x{height} q{quality}", jpeg(width, height, quality, subsampling=subsampling))
    keep(f"jpeg {name} progressive", jpeg(29, 31, 80, subsampling=subsampling, progressive=True))
for quality in [1, 5, 50, 98, 100]:
    keep(f"jpeg 420 q{quality}", jpeg(23, 19, quality, subsampling=2))
keep("jpeg 420 restarts", jpeg(40, 33, 75, subsampling=2, restart_marker_blocks=2))
keep("jpeg 422 restarts", jpeg(33, 40, 75, subsampling=1, restart_marker_rows=1))
keep("jpeg rgb", jpeg(17, 15, 90, keep_rgb=True))
keep("jpeg 440", resampled(jpeg(17, 30, 85, subsampling=1), 0x12, 30, 17))
keep("jpeg 411", resampled(jpeg(16, 48, 85, subsampling=2), 0x41, 30, 21))
keep("jpeg 441", resampled(jpeg(48, 16, 85, subsampling=2), 0x14, 21, 30))
for progressive in [False, True]:
    keep(f"jpeg grey {progressive}", jpeg(21, 18, 85, 1, progressive=progressive))
    keep(f"jpeg ink {progressive}", jpeg(21, 18, 85, 4, progressive=progressive))
ink = jpeg(18, 21, 85, 4)
adobe = ink.index(b"Adobe") + 11
keep("jpeg ycck", ink[:adobe] + b"\2" + ink[adobe + 1:])
keep("jpeg ink without adobe", ink[:adobe - 15] + ink[adobe + 1:])

for width, height in [(31, 19), (19, 31), (9, 25), (12, 12), (5, 7)]:
    size = f"{width}x{height}"
    colours = Image.fromarray(pixels(width, height))
    keep(f"png rgb {size}", stored(colours, "PNG"))
    keep(f"png grey {size}", stored(pixels(width, height, 1), "PNG"))
    keep(f"png palette {size}", stored(colours.quantize(13), "PNG"))
    keep(f"png palette transparent {size}", stored(colours.quantize(13), "PNG", transparency=3))
    keep(f"png black and white {size}", stored(colours.convert("1"), "PNG"))
    opacity = pixels(width, height, 4)
    opacity[:, :, 3] = np.where(random.random((height, width)) < 0.4, random.integers(0, 2) * 255, opacity[:, :, 3])
    keep(f"png rgba {size}", stored(opacity, "PNG"))
    keep(f"png grey opacity {size}", stored(opacity[:, :, [0, 3]], "PNG"))
keep("png rgb transparent", stored(Image.fromarray(pixels(23, 15)), "PNG", transparency=(1, 2, 3)))
keep("png grey transparent", stored(pixels(23, 15, 1), "PNG", transparency=7))
keep("png grey of four bits", stored(Image.fromarray(pixels(23, 15, 1).squeeze() // 16 * 17).quantize(9), "PNG", bits=4))
wide = random.integers(0, 65536, (15, 23, 4))
keep("png rgb 16", sixteen(wide[:, :, :3], 2))
keep("png grey opacity 16", sixteen(wide[:, :, :2], 4))
keep("png rgba 16", sixteen(wide, 6))

with open(sys.argv[1], "w") as file:
    json.dump(cases, file, indent=0)
    file.write("\n")
print(len(cases), sum(case["square"] != case["first"] for case in cases.values()))
