"""Questions about areas: which class of a segmentation, over which pixels of its output."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lib.data import image_inputs, photographs
from lib.data.image_inputs import ImageInput
from lib.evaluation.segmentation import resized
from lib.explain.areas import Box, Region, area_of, class_area_target, region_of
from lib.models import pretrained_segmentation
from lib.models.network import SEGMENTATION, Network, find_classes
from lib.runtime import checkpoint
from lib.runtime.errors import UserError
from lib.tasks.explanation_panels import Question


class Asked(Protocol):
    """What is asked about which images; `lib.tasks.explanation_run.ImageQuestion` is one."""

    @property
    def input(self) -> Sequence[str] | None: ...
    @property
    def target(self) -> Sequence[str] | None: ...
    @property
    def top_k(self) -> int: ...
    @property
    def score(self) -> str: ...
    @property
    def region(self) -> str | None: ...
    @property
    def area(self) -> Sequence[Box] | None: ...
    @property
    def mask(self) -> Sequence[str] | None: ...


def are_dense(names: Sequence[str], files: Sequence[str]) -> bool:
    """Return whether the networks that `--ptm` or `--restore-file` name segment images.

    Raises:
        UserError: some do and some do not, or a checkpoint cannot be read.
    """
    kinds = {name in pretrained_segmentation.names() for name in names} | {
        checkpoint.load(file).get("task") == SEGMENTATION for file in files
    }
    if len(kinds) > 1:
        raise UserError("networks that segment images are explained by themselves: leave out the others")
    return True in kinds


def check(typed: Mapping[str, Any]) -> None:
    """Raise a UserError if flags about areas contradict each other, before anything is loaded."""
    if typed.get("unit"):
        raise UserError("--unit goes with autoencoders alone, and this network segments images")
    areas = typed.get("area") or ()
    if len(areas) > 1:
        raise UserError("of a segmentation, one --area is explained at a time")
    region = region_of(typed.get("region"), areas[0] if areas else None)
    if bool(typed.get("mask")) != (region.kind == "truth"):
        raise UserError("--region truth and --mask FILE go with each other")
    if region.kind == "truth" and typed.get("fit") in ("crop", "pad"):
        raise UserError(f"a --mask is of the whole image: --fit {typed['fit']} shows another part of it")


def questions(
    networks: Sequence[Network], images: Sequence[Sequence[ImageInput]], asked: Asked
) -> list[list[Question]]:
    """Return, for each of some images, as each network sees it, the question of each network."""
    region = region_of(asked.region, asked.area[0] if asked.area else None)
    masks = masks_of(asked.input or (), asked.mask)
    return [
        [
            question_of(
                *each, region, targets=asked.target, top_k=asked.top_k, score=asked.score, masks=masks
            )
            for each in zip(networks, row, strict=True)
        ]
        for row in images
    ]


def masks_of(inputs: Sequence[str], files: Sequence[str] | None) -> dict[str, str]:
    """Return the mask file of each image, by the image's name.

    Raises:
        UserError: there are not as many masks as images.
    """
    if not files:
        return {}
    if len(files) != len(inputs):
        raise UserError(f"--mask names {len(files)} files for {len(inputs)} images: give one for each")
    return dict(zip(image_inputs.names(inputs), files, strict=True))


def question_of(
    network: Network,
    image: ImageInput,
    region: Region,
    *,
    targets: Sequence[str] | None,
    top_k: int,
    score: str,
    masks: Mapping[str, str],
) -> Question:
    """Return the question about some classes of a segmentation of one image.

    Args:
        network: a network with a dense output.
        image: the image.
        region: the area of each class.
        targets: names or numbers of the classes; by default the `top_k` with most pixels of the prediction.
        top_k: number of classes, if there are no `targets`.
        score: kind of the score of a pixel.
        masks: file of the true mask of each image, by the image's name.

    Raises:
        UserError: there is no such class, the area is not within the output, or it has no pixel.
    """
    with torch.no_grad():
        output = network.logits(image.pixels[None])
    if targets:
        classes = find_classes(network, targets)
    else:
        counts = output.argmax(1).flatten().bincount(minlength=output.shape[1])
        classes = [int(each) for each in counts.topk(min(top_k, len(counts))).indices if counts[each]]
    truth = _truth(masks.get(image.name), image.size) if region.kind == "truth" else None
    areas = [area_of(region, index, output, truth) for index in classes]
    for index, area in zip(classes, areas, strict=True):
        if not area.any():
            raise UserError(
                f"{image.name} has no pixel of {network.class_name(index)} in its {region.name}: give "
                "another --target, or --region all, which explains the class wherever it could be"
            )
    named = [
        (index, area, f"{network.class_name(index)} in {region.name}")
        for index, area in zip(classes, areas, strict=True)
    ]
    others = tuple(class_area_target(index, area, score, name) for index, area, name in named)
    return Question(network, image, classes, score, others, tuple(areas))


def _truth(file: str | None, size: tuple[int, int]) -> Tensor | None:
    """Return the labels of a mask file at the size (H, W) of its image."""
    if file is None:
        return None
    labels = photographs.read_labels(file)
    if labels.ndim != 2 or labels.dtype.kind not in "uib":
        raise UserError(f"{file} is no mask: it has colours and not a label a pixel")
    return resized(torch.from_numpy(labels.astype("int64")), size)
