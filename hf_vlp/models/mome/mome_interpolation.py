"""Other image sizes: resampling of relative position tables and of absolute position embeddings.

As the original of VLMo (https://arxiv.org/abs/2111.02358) does when a checkpoint starts a model with another image
size. The relative table is taken to hold samples at geometrically growing distances, so that near offsets keep their
values and the far ones are stretched; the original resamples it with a spline of FITPACK, here it is a product with a
small matrix, for all columns at once.
"""

import torch
from torch import nn


def interpolate_position_bias_table(
    table: torch.Tensor, source_window: int, target_window: int, max_text_length: int
) -> torch.Tensor:
    """The table of relative positions of another image size, [rows, columns] in and out.

    The (2 * window - 1)^2 rows of pairs of patches are resampled, column by column, with a cubic spline; the other
    3 + 2 * max_text_length + 2 (class tokens, pairs of modalities, texts) are kept.

    Args:
        table: a column for each head, of one block or of all.
        source_window, target_window: patches along one side of the picture, before and after.
        max_text_length: longest text that the table has rows for (`max_text_length_of_table`).

    Offsets beyond the source's outermost sample take its value: in small tables that grow a lot, several rows do.
    Computed in float64, returned in the dtype and on the device of `table`.

    Raises ValueError when the table has not the rows that `source_window` and `max_text_length` ask for.
    """
    if source_window < 1 or target_window < 1:
        raise ValueError(f"Windows have at least one patch; source_window={source_window}, target={target_window}.")
    source, target = 2 * source_window - 1, 2 * target_window - 1
    num_rows = source**2 + 3 + 2 * max_text_length + 2
    if table.dim() != 2 or table.shape[0] != num_rows:
        raise ValueError(
            f"A table of relative positions for {source_window}x{source_window} patches and texts of at most "
            f"{max_text_length} tokens has the shape [{num_rows}, columns], this one has {list(table.shape)}. Give "
            "the window and the text length that it was trained with."
        )
    if source == target:
        return table.clone()
    weights = spline_weights(geometric_offsets(source, target), torch.arange(target) - float(target // 2))
    patches = table[: source**2].detach().to("cpu", torch.float64).view(source, source, -1)
    patches = torch.einsum("ys,xt,stc->yxc", weights, weights, patches).reshape(target**2, -1)
    return torch.cat((patches.to(table.device, table.dtype), table[source**2 :].detach()))


def interpolate_position_embeddings(position_embeddings: torch.Tensor, target_window: int) -> torch.Tensor:
    """Position embeddings of another image size: (1, 1 + patches, dim) in and out, class token first.

    The square grid of patches is resampled bicubically, the class token's row is kept.

    Raises ValueError when the patches are no square grid.
    """
    shape = position_embeddings.shape
    window = int((shape[1] - 1) ** 0.5 + 0.5) if len(shape) == 3 and shape[0] == 1 else 0
    if window < 1 or window**2 + 1 != shape[1]:
        raise ValueError(
            "Position embeddings have the shape (1, 1 + patches, dim) with the patches of a square picture, not "
            f"{tuple(shape)}."
        )
    if target_window < 1:
        raise ValueError(f"target_window={target_window} must be at least 1.")
    if target_window == window:
        return position_embeddings.clone()
    class_row, patches = position_embeddings.detach().split((1, window**2), dim=1)
    grid = patches.reshape(1, window, window, -1).permute(0, 3, 1, 2)  # (1, dim, window, window)
    grid = nn.functional.interpolate(grid.float(), size=(target_window, target_window), mode="bicubic")
    return torch.cat((class_row, grid.permute(0, 2, 3, 1).flatten(1, 2).to(class_row.dtype)), dim=1)


def geometric_offsets(source: int, target: int) -> torch.Tensor:
    """Where the `source` samples along one axis are taken to lie among the integer offsets of `target`: (source,).

    0, +-1, +-(1 + q), +-(1 + q + q^2), ... with the ratio q in [1.01, 1.5] that brings the last one nearest to
    the outermost offset, found by bisection to 1e-6 as in the original.
    """
    num_steps, wanted = source // 2, target // 2
    low, high = 1.01, 1.5
    ratio = high
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**num_steps) / (1 - ratio) > wanted:
            high = ratio
        else:
            low = ratio
    steps = ratio ** torch.arange(num_steps, dtype=torch.float64)
    distances = steps.cumsum(0)
    return torch.cat((-distances.flip(0), distances.new_zeros(1), distances))


def spline_weights(knots: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Matrix that maps values at `knots` to those of their not-a-knot cubic spline at `points`: (points, knots).

    Knots rise strictly; points outside are moved to the nearest one. Through three knots goes a parabola, through one
    a constant.
    """
    knots = knots.double()
    points = points.double().clamp(knots[0].item(), knots[-1].item())
    count = len(knots)
    if count == 1:
        return torch.ones(len(points), 1, dtype=torch.float64)
    widths = knots.diff()
    # Second derivatives at the knots, `curvature @ values`: those of neighbouring pieces agree ...
    left = torch.zeros(count, count, dtype=torch.float64)
    right = torch.zeros(count, count, dtype=torch.float64)
    for i in range(1, count - 1):
        before, after = widths[i - 1], widths[i]
        left[i, i - 1 : i + 2] = torch.stack((before, 2 * (before + after), after)) / 6
        right[i, i - 1 : i + 2] = torch.stack((1 / before, -1 / before - 1 / after, 1 / after))
    if count > 3:  # ... and the third derivatives agree at the second and at the last but one knot
        for row, i in ((0, 1), (count - 1, count - 2)):
            before, after = widths[i - 1], widths[i]
            left[row, i - 1 : i + 2] = torch.stack((1 / before, -1 / before - 1 / after, 1 / after))
    elif count == 3:  # with a single piece of degree two instead of three
        left[0, :2] = left[2, 1:] = torch.tensor((1.0, -1.0), dtype=torch.float64)
    else:
        left[0, 0] = left[1, 1] = 1
    curvature = torch.linalg.solve(left, right)

    piece = torch.searchsorted(knots, points, right=True).clamp(1, count - 1) - 1
    width = widths[piece]
    to_right, to_left = (knots[piece + 1] - points) / width, (points - knots[piece]) / width
    identity = torch.eye(count, dtype=torch.float64)
    return (
        to_right[:, None] * identity[piece]
        + to_left[:, None] * identity[piece + 1]
        + ((to_right**3 - to_right) * width**2 / 6)[:, None] * curvature[piece]
        + ((to_left**3 - to_left) * width**2 / 6)[:, None] * curvature[piece + 1]
    )
