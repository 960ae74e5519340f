"""Writes tests/fixtures/data/*.parquet: small files as pyarrow makes them, for tests/suite/data.rs.

    pip install pyarrow pillow && python tests/reference/pick_a_pic.py

pick_a_pic.parquet   Pick-a-Pic v2's columns and types, snappy, 3 row groups, nulls, PNG and JPEG pictures.
mirror.parquet       a mirror's liberties: other order, Hugging Face image structs, float32 labels, int32 users,
                     microseconds, required columns, no dictionary, data pages of version 2, one column more.
zstd, missing, wrong_type, null   what a reader must refuse: an unknown packing, `jpg0` for `jpg_0`, words for
                     labels, a row without a caption.
pick_a_pic.json      what both hold, column by column; each picture by the first 8 digits of its SHA-256.
"""

import hashlib
import io
import json
import pathlib
import random

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "data"
ROWS = 620


def picture(rng, kind):
    image = Image.new("RGB", (4, 4), tuple(rng.randrange(256) for _ in range(3)))
    image.putpixel((rng.randrange(4), rng.randrange(4)), tuple(rng.randrange(256) for _ in range(3)))
    data = io.BytesIO()
    image.save(data, kind) if kind == "PNG" else image.save(data, kind, quality=80)
    return data.getvalue()


def rows():
    rng = random.Random(3)
    # Few pictures many times keep the file small; the dictionary pages that follow from it are part of the test.
    pictures = [picture(rng, "PNG") for _ in range(6)] + [picture(rng, "JPEG") for _ in range(2)]
    for index in range(ROWS):
        label = rng.choice([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        uids = [f"{rng.getrandbits(32):08x}" for _ in range(2)]
        best = "tie" if label[0] == 0.5 else uids[int(label[1])]
        has_label = index % 11 != 0
        yield {
            "are_different": rng.random() < 0.9,
            "best_image_uid": best if has_label else None,
            "caption": rng.choice(["a red circle", "zwei blaue Würfel", "a \"quoted\" cat, purring", "猫"]),
            "created_at": 1_670_000_000_000_000_000 + index * 1_000_000_000 if index % 7 else None,
            "has_label": has_label,
            "image_0_uid": uids[0],
            "image_0_url": None if index % 5 == 0 else f"https://example.org/{uids[0]}.jpg",
            "image_1_uid": uids[1],
            "image_1_url": None,
            "jpg_0": rng.choice(pictures),
            "jpg_1": rng.choice(pictures),
            "label_0": label[0] if has_label else None,
            "label_1": label[1] if has_label else None,
            "model_0": rng.choice(["sdxl", "dreamlike-art/dreamlike-photoreal-2.0"]),
            "model_1": "CompVis/stable-diffusion-v1-4",
            "ranking_id": 10_000 + index,
            "user_id": rng.randrange(40),
            "num_example_per_prompt": rng.randrange(1, 9),
            "__index_level_0__": index * 3,
        }


SCHEMA = pa.schema(
    [
        ("are_different", pa.bool_()),
        ("best_image_uid", pa.string()),
        ("caption", pa.string()),
        ("created_at", pa.timestamp("ns")),
        ("has_label", pa.bool_()),
        ("image_0_uid", pa.string()),
        ("image_0_url", pa.string()),
        ("image_1_uid", pa.string()),
        ("image_1_url", pa.string()),
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("model_0", pa.string()),
        ("model_1", pa.string()),
        ("ranking_id", pa.int64()),
        ("user_id", pa.int64()),
        ("num_example_per_prompt", pa.int64()),
        ("__index_level_0__", pa.int64()),
    ]
)


def mirror(data):
    """The first 40 rows that have a label, in another maker's types."""
    data = [row for row in data if row["has_label"]][:40]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [
        pa.field("extra", pa.list_(pa.int32())),
        pa.field("label_1", pa.float32(), nullable=False),
        pa.field("label_0", pa.float32(), nullable=False),
        pa.field("user_id", pa.int32()),
        pa.field("jpg_1", image),
        pa.field("jpg_0", image),
        pa.field("caption", pa.large_string(), nullable=False),
        pa.field("created_at", pa.timestamp("us", tz="UTC")),
    ]
    changed = [
        {
            **{name: row[name] for name in ["label_0", "label_1", "user_id", "caption"]},
            "extra": [index] * (index % 3),
            "created_at": None if row["created_at"] is None else row["created_at"] // 1000,
            "jpg_0": {"bytes": row["jpg_0"], "path": None},
            "jpg_1": {"bytes": row["jpg_1"], "path": "b.png"},
        }
        for index, row in enumerate(data)
    ]
    return data, pa.Table.from_pylist(changed, pa.schema(columns))


def told(name, values):
    """A column as JSON: pictures by the beginning of their SHA-256."""
    if name.startswith("jpg"):
        return [hashlib.sha256(value).hexdigest()[:8] for value in values]
    return values


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    data = list(rows())
    table = pa.Table.from_pylist(data, SCHEMA)
    pq.write_table(table, FOLDER / "pick_a_pic.parquet", compression="snappy", row_group_size=300)
    kept, table = mirror(data)
    pq.write_table(
        table,
        FOLDER / "mirror.parquet",
        compression="snappy",
        use_dictionary=False,
        data_page_version="2.0",
        row_group_size=15,
    )
    pq.write_table(table.slice(0, 2), FOLDER / "zstd.parquet", compression="zstd")
    one = pa.Table.from_pylist(data[1:3], SCHEMA).select(["caption", "jpg_0", "jpg_1", "label_0", "label_1"])
    pq.write_table(one.rename_columns(["caption", "jpg0", "jpg_1", "label_0", "label_1"]), FOLDER / "missing.parquet")
    words = one.set_column(3, "label_0", pa.array(["first", "second"]))
    pq.write_table(words, FOLDER / "wrong_type.parquet")
    pq.write_table(one.set_column(0, "caption", pa.array(["a", None])), FOLDER / "null.parquet")
    expected = {name: told(name, [row[name] for row in data]) for name in SCHEMA.names}
    expected["mirror"] = [row["ranking_id"] for row in kept]
    (FOLDER / "pick_a_pic.json").write_text(json.dumps(expected, ensure_ascii=False, separators=(",", ":")))


main()
