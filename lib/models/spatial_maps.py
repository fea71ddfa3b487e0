"""Which outputs of a module are maps over the image, and how they lie."""

from torch import Tensor, nn


def spatial_map(model: nn.Module, output: object, images: Tensor) -> Tensor | None:
    """Return a module's output as a spatial map (B, C, h, w) with h·w > 1, or None if it is no such thing.

    It is one if it comes so, and is about as wide for its height as the images are, which sets it apart from
    maps with their channels last. Where a network attends, its tokens (B, tokens, C) become their grid,
    without the class token; states of a recurrent network, one a row of the image, are none.

    Args:
        model: whose module it is.
        output: what the module put out, or a gradient of the same shape.
        images: that the network was given, (B, ?, H, W).
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
    image_height, image_width = images.shape[2:]
    for patches in (tokens.shape[1], tokens.shape[1] - 1):
        height = round((patches * image_height / image_width) ** 0.5)
        width = patches // max(height, 1)
        if height * width == patches > 0 and height * image_width == width * image_height:
            return tokens[:, -patches:].transpose(1, 2).unflatten(2, (height, width))
    return None
