"""Recognise which outputs of a module are spatial maps of the image, and return them as (B, C, h, w)."""

from torch import Tensor, nn


def spatial_map(model: nn.Module, output: object, images: Tensor) -> Tensor | None:
    """Return a module's output as a spatial map (B, C, h, w) with h·w > 1, or None if it is not one.

    An output with four dimensions is a spatial map if its aspect ratio h : w is about that of the images;
    this excludes channels-last outputs (B, h, w, C). In a network with attention, tokens (B, tokens, C) are
    arranged in their grid, without the class token. Other outputs with three dimensions are not maps, e.g.
    the states of a recurrent network over the rows of an image.

    Args:
        model: the network that contains the module.
        output: output of the module, or a gradient of the same shape.
        images: input of the network, (B, ?, H, W).
    """
    if not isinstance(output, Tensor) or len(output) != len(images):
        return None
    if output.dim() == 3:
        attends = any(isinstance(each, nn.MultiheadAttention) for each in model.modules())
        output = _token_map(output, images) if attends else None
    if output is None or output.dim() != 4:
        return None
    height, width = output.shape[2:]
    off_by = abs(height - width * images.shape[2] / images.shape[3])
    return output if height * width > 1 and off_by <= max(2, 0.2 * height) else None


def _token_map(tokens: Tensor, images: Tensor) -> Tensor | None:
    """Arrange the last tokens in a grid with exactly the images' aspect ratio; None if there is none."""
    image_height, image_width = images.shape[2:]
    # All tokens are patches, or all but the first, the class token.
    for patches in (tokens.shape[1], tokens.shape[1] - 1):
        height = round((patches * image_height / image_width) ** 0.5)
        width = patches // max(height, 1)
        if height * width == patches > 0 and height * image_width == width * image_height:
            return tokens[:, -patches:].transpose(1, 2).unflatten(2, (height, width))
    return None
