"""Files for TensorBoard's embedding projector: features, labels and thumbnails."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lib.runtime.errors import RunFailed
from lib.runtime.spelling import cell

# In pixels. Browsers refuse a texture with a longer side, and the projector then shows no thumbnails at all.
LONGEST_SPRITE_SIDE = 8192


def write_projector(
    folder: str | Path,
    features: Mapping[str, np.ndarray],
    labels: Sequence[str],
    thumbnails: np.ndarray | None = None,
) -> Path:
    """Write the files of TensorBoard's embedding projector, for `tensorboard --logdir FOLDER`.

    Each layer has an embedding in `NN-LAYER/tensors.tsv`. All layers share `metadata.tsv` and `sprite.png`.
    `projector_config.pbtxt` lists these files and is written last.

    Args:
        folder: where to write.
        features: layer name to features (N, D).
        labels: N names, one per example.
        thumbnails: (N, H, W, 3) uint8; scaled down if the sprite would be too large for a browser.

    Returns:
        The path of the configuration.

    Raises:
        RunFailed: the files cannot be written (full disk, no permission).
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shared = _write_examples(folder, labels, thumbnails)
        entries = [
            {
                "tensor_name": json.dumps(name),
                "tensor_path": _write_tensors(folder, index, name, array),
                **shared,
            }
            for index, (name, array) in enumerate(features.items())
        ]
        config = folder / "projector_config.pbtxt"
        config.write_text("".join(map(_embedding, entries)), encoding="utf-8")
    except OSError as error:
        raise RunFailed(f"cannot write to {folder}: {error.strerror or error}") from None
    return config


def _embedding(fields: dict[str, str]) -> str:
    lines = "".join(f"  {key}: {value}\n" for key, value in fields.items())
    return f"embeddings {{\n{lines}}}\n"


def _write_tensors(folder: Path, index: int, layer: str, features: np.ndarray) -> str:
    """Write the features (N, D) of one layer and return the quoted path, relative to `folder`."""
    path = Path(f"{index:02d}-{re.sub(r'[^A-Za-z0-9._-]', '_', layer)}", "tensors.tsv")
    (folder / path).parent.mkdir(exist_ok=True)
    np.savetxt(folder / path, np.nan_to_num(features), fmt="%.6g", delimiter="\t")
    return json.dumps(path.as_posix())


def _write_examples(folder: Path, labels: Sequence[str], thumbnails: np.ndarray | None) -> dict[str, str]:
    """Write the labels and the sprite, and return the fields of an embedding that refer to them."""
    (folder / "metadata.tsv").write_text("".join(f"{_cell(label)}\n" for label in labels), encoding="utf-8")
    fields = {"metadata_path": json.dumps("metadata.tsv")}
    if thumbnails is not None:
        sprite, (height, width) = _sprite(thumbnails)
        sprite.save(folder / "sprite.png")
        size = f"single_image_dim: {width} single_image_dim: {height}"
        fields["sprite"] = f'{{ image_path: "sprite.png" {size} }}'
    return fields


def _cell(label: str) -> str:
    # The projector drops empty lines, which would shift all later labels, and a tab begins a new column.
    return cell(label) or "-"


def _sprite(thumbnails: np.ndarray) -> tuple[Image.Image, tuple[int, int]]:
    """Return `thumbnails` (N, H, W, 3) as a square grid, row by row, and the (height, width) of a cell."""
    side = math.ceil(math.sqrt(len(thumbnails)))
    height, width = thumbnails.shape[1:3]
    scale = min(1.0, LONGEST_SPRITE_SIDE / (side * max(height, width)))
    height, width = max(1, int(height * scale)), max(1, int(width * scale))
    sprite = Image.new("RGB", (side * width, side * height), "white")
    for index, thumbnail in enumerate(thumbnails):
        image = Image.fromarray(thumbnail)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        sprite.paste(image, (index % side * width, index // side * height))
    return sprite, (height, width)
