"""A narrow LAION aesthetic head: the leading corner of each matrix of `sac+logos+ava1-l14-linearMSE.pth` (made by
golden_clip.py, whose full size is 3.7 MB), applied one linear map after the other in double precision. Standard
library only.

    python3 laion_small.py sac+logos+ava1-l14-linearMSE.pth ../fixtures/aesthetic/head.safetensors
"""
import array, json, math, struct, sys, zipfile

WIDTHS = [64, 48, 32, 24, 16, 1]
FULL = [768, 1024, 128, 64, 16, 1]
PLACES = [0, 2, 4, 6, 7]

archive = zipfile.ZipFile(sys.argv[1])
root = archive.namelist()[0].split("/")[0]
tensors = {}
# torch.save numbers the storages in the order of the state dict: weight, bias, weight, bias, ...
for i, place in enumerate(PLACES):
    weight = array.array("f", archive.read(f"{root}/data/{2 * i}"))
    bias = array.array("f", archive.read(f"{root}/data/{2 * i + 1}"))
    assert len(weight) == FULL[i] * FULL[i + 1] and len(bias) == FULL[i + 1]
    rows = [list(weight[r * FULL[i]: r * FULL[i] + WIDTHS[i]]) for r in range(WIDTHS[i + 1])]
    tensors[f"layers.{place}.weight"] = rows
    tensors[f"layers.{place}.bias"] = list(bias[: WIDTHS[i + 1]])

# Five embeddings of unit length, from a small linear congruential generator.
state, embeddings = 1, []
for _ in range(5):
    row = []
    for _ in range(WIDTHS[0]):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        row.append((state >> 40) / 2**24 - 0.5)
    norm = math.sqrt(sum(x * x for x in row))
    embeddings.append(list(array.array("f", [x / norm for x in row])))
scores = []
for row in embeddings:
    for place in PLACES:
        row = [b + sum(w * x for w, x in zip(ws, row)) for ws, b in zip(tensors[f"layers.{place}.weight"], tensors[f"layers.{place}.bias"])]
    scores.append(row[0])
tensors["embedding"], tensors["score"] = embeddings, scores

header, data = {}, b""
for name, values in tensors.items():
    nested = isinstance(values[0], list)
    shape = [len(values), len(values[0])] if nested else [len(values)]
    flat = array.array("f", sum(values, []) if nested else values)
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(flat)]}
    data += flat.tobytes()
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
open(sys.argv[2], "wb").write(struct.pack("<Q", len(text)) + text + data)
print(scores)
