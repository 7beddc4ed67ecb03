"""Resampling of position tables for other image sizes.

Covered: the spline reproduces cubic polynomials (which fixes its end conditions), passes through its knots and clamps;
geometric offsets reach the outermost offset; rows of class tokens and texts are kept; dtype, identity, small windows;
bicubic position embeddings; tables of other shapes are refused. The recorded tables of the original are in
`tests/parity/test_vlmo_conversion.py`.
"""

import pytest
import torch

from hf_vlp.models.mome.mome_interpolation import (
    geometric_offsets,
    interpolate_position_bias_table,
    interpolate_position_embeddings,
    spline_weights,
)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spline_reproduces_cubic_polynomials(degree):
    knots = torch.tensor([-4.0, -1.5, -1.0, 0.0, 0.25, 2.0, 5.0], dtype=torch.float64)
    points = torch.linspace(-4, 5, 41, dtype=torch.float64)
    torch.testing.assert_close(spline_weights(knots, points) @ knots**degree, points**degree)


def test_spline_has_two_continuous_derivatives():
    torch.manual_seed(0)
    knots = torch.tensor([0.0, 1.0, 2.5, 3.0, 5.0, 6.0], dtype=torch.float64)
    values = torch.randn(6, dtype=torch.float64)
    step = 1e-3
    steps = torch.arange(-3, 4, dtype=torch.float64) * step
    for knot in knots[1:-1]:
        samples = spline_weights(knots, knot + steps) @ values
        # Differences over both sides of the knot: a jump of the second derivative would show undivided by `step`.
        second = (samples[:-2] - 2 * samples[1:-1] + samples[2:]) / step**2
        assert second.diff().abs().max() < 0.1
        assert second.abs().max() > 0.01


def test_spline_clamps_to_its_knots_and_passes_through_them():
    knots = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    weights = spline_weights(knots, torch.tensor([-7.0, -2.0, 1.0, 9.0]))
    torch.testing.assert_close(weights, torch.eye(5, dtype=torch.float64)[[0, 0, 3, 4]])


def test_geometric_offsets_are_symmetric_and_reach_the_target():
    offsets = geometric_offsets(27, 59)
    torch.testing.assert_close(offsets, -offsets.flip(0))
    assert offsets[13] == 0
    assert offsets[14] == 1
    assert abs(offsets[-1].item() - 29) < 1e-3
    assert (offsets.diff().diff()[13:] > 0).all()  # they grow


@pytest.mark.parametrize("source", [1, 2, 3, 4])
@pytest.mark.parametrize("target", [1, 3, 5])
def test_constant_tables_stay_constant_and_other_rows_are_kept(source, target):
    table = torch.full(((2 * source - 1) ** 2 + 3 + 2 * 6 + 2, 3), 0.5)
    table[-17:] = torch.randn(17, 3)
    result = interpolate_position_bias_table(table, source, target, 6)
    torch.testing.assert_close(result[:-17], torch.full(((2 * target - 1) ** 2, 3), 0.5))
    assert torch.equal(result[-17:], table[-17:])


def test_axes_of_the_table_are_not_exchanged():
    side = 2 * 3 - 1
    table = torch.zeros(side**2 + 3 + 2 * 2 + 2, 1)
    rows = torch.arange(side) - side // 2.0  # value grows with the vertical offset, the slow axis of the rows
    table[: side**2] = rows.repeat_interleave(side)[:, None]
    result = interpolate_position_bias_table(table, 3, 4, 2)[: 7**2].view(7, 7)
    torch.testing.assert_close(result, result[:, :1].expand(7, 7))
    assert (result[:, 0].diff() > 0).all()


def test_columns_are_resampled_independently_in_their_own_dtype():
    table = torch.randn(7**2 + 3 + 2 * 5 + 2, 4).bfloat16()
    result = interpolate_position_bias_table(table, 4, 6, 5)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result[:, 1:2], interpolate_position_bias_table(table[:, 1:2], 4, 6, 5))


def test_the_same_window_returns_an_equal_copy():
    table = torch.randn(7**2 + 3 + 2 * 5 + 2, 4)
    result = interpolate_position_bias_table(table, 4, 4, 5)
    assert torch.equal(result, table)
    assert result.data_ptr() != table.data_ptr()
    embeddings = torch.randn(1, 17, 4)
    assert torch.equal(interpolate_position_embeddings(embeddings, 4), embeddings)


@pytest.mark.parametrize("target", [2, 6, 9])
def test_position_embeddings_keep_the_class_row_and_constant_grids(target):
    embeddings = torch.full((1, 17, 8), -0.25)
    embeddings[:, 0] = torch.randn(8)
    result = interpolate_position_embeddings(embeddings, target)
    assert torch.equal(result[:, 0], embeddings[:, 0])
    torch.testing.assert_close(result[:, 1:], torch.full((1, target**2, 8), -0.25))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[64, columns\], this one has \[63, 2\]"):
        interpolate_position_bias_table(torch.zeros(63, 2), 4, 6, 5)
    with pytest.raises(ValueError, match="at least one patch"):
        interpolate_position_bias_table(torch.zeros(64, 2), 4, 0, 5)
    with pytest.raises(ValueError, match="square"):
        interpolate_position_embeddings(torch.zeros(1, 18, 4), 6)
    with pytest.raises(ValueError, match="target_window=0"):
        interpolate_position_embeddings(torch.zeros(1, 17, 4), 0)
