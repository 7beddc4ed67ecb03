"""`hf_vlp.models.mome.mome_segmentation`, alone.

Covers: sizes of the neck's maps, of logits and auxiliary logits; the neck against its formula; the whole against the
heads of transformers' BEiT; dropout before both classifiers; a batch of one picture; heads left out; the loss against
a plain computation, ignored pixels, batches without labels; labels that are no class; which blocks are read; sliding
windows: positions, averages, small pictures, batches of windows; state dict and SyncBatchNorm; bad arguments.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_vlp.models.mome.mome_segmentation import (
    MomeSegmentationHead,
    check_segmentation_labels,
    predict_sliding,
    segmentation_loss,
    semantic_segmentation_loss,
    spread_out_indices,
)

DIM, LABELS, IGNORED = 8, 3, 255


def make_config(**options):
    values = {
        "hidden_size": DIM,
        "num_labels": LABELS,
        "image_size": 32,
        "decoder_hidden_size": None,
        "pool_scales": (1, 2, 3, 6),
        "decoder_dropout": 0.0,
        "auxiliary_loss_weight": 0.4,
        "auxiliary_channels": 6,
        "auxiliary_num_convs": 1,
        "auxiliary_index": 2,
        "semantic_loss_ignore_index": IGNORED,
    }
    return SimpleNamespace(**{**values, **options})


def make_maps(rows=2, size=6, dim=DIM):
    return [torch.randn(rows, dim, size, size) for _ in range(4)]


def test_logits_have_four_times_the_size_of_the_maps():
    head = MomeSegmentationHead(make_config(decoder_hidden_size=12))
    logits, auxiliary = head(make_maps(size=5))
    assert logits.shape == (2, LABELS, 20, 20)
    assert auxiliary.shape == (2, LABELS, 5, 5)
    assert head.decoder.bottleneck.conv.out_channels == 12


def test_the_neck_gives_four_two_one_and_half_times_the_size():
    maps = make_maps(size=6)
    made = MomeSegmentationHead(make_config()).neck(maps)
    assert [one.shape[-1] for one in made] == [24, 12, 6, 3]
    torch.testing.assert_close(made[2], maps[2], rtol=0, atol=0)
    expected = maps[3].unflatten(2, (3, 2)).unflatten(4, (3, 2)).amax(dim=(3, 5))
    torch.testing.assert_close(made[3], expected, rtol=0, atol=0)


def test_the_first_map_of_the_neck_is_enlarged_normalised_and_enlarged_again():
    neck = MomeSegmentationHead(make_config()).neck.eval()
    one = make_maps(size=3)[0]
    first, norm, _, second = neck.times_4
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)

        def enlarge(layer, x):  # every pixel becomes 2 x 2, each by its own matrix
            parts = torch.einsum("bchw,codk->bohdwk", x, layer.weight) + layer.bias[:, None, None, None, None]
            return parts.reshape(len(x), DIM, 2 * x.shape[2], 2 * x.shape[3])

        middle = enlarge(first, one)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        middle = (middle - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        expected = enlarge(second, nn.functional.gelu(middle))
        torch.testing.assert_close(neck([one] * 4)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_head_computes_what_transformers_beit_computes():
    from transformers.models.beit import modeling_beit as beit

    torch.manual_seed(0)
    settings = beit.BeitConfig(hidden_size=DIM, num_labels=LABELS, auxiliary_channels=6)
    theirs = [beit.BeitFPNNeck(settings), beit.BeitUperHead(settings), beit.BeitFCNHead(settings)]
    ours = MomeSegmentationHead(make_config())
    for target, source in zip((ours.neck, ours.decoder, ours.auxiliary_head), theirs):
        for value in source.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5) if value.ndim == 1 else value.normal_()
        assert len(target.state_dict()) == len(source.state_dict())
        target.load_state_dict(dict(zip(target.state_dict(), source.state_dict().values())))  # defined in one order
    neck, decoder, auxiliary_head = (module.eval() for module in theirs)
    maps = make_maps()
    ours.eval()
    torch.testing.assert_close(ours(maps)[0], decoder(neck(maps)))
    torch.testing.assert_close(ours.auxiliary_head(ours.neck(maps)), auxiliary_head(neck(maps)))


@pytest.mark.parametrize("part", ["decoder", "auxiliary_head"])
def test_whole_channels_are_dropped_before_the_classifier(part):
    classifier = getattr(MomeSegmentationHead(make_config(decoder_dropout=0.5)), part).classifier
    seen = torch.ones(64, classifier.in_channels, 2, 2)
    with torch.no_grad():
        classifier.weight.fill_(1.0)
        classifier.bias.zero_()
    sums = classifier(seen)  # kept channels count 2 each
    assert torch.equal(sums, sums[:, :1, :1, :1].expand_as(sums))
    assert set(sums[:, 0, 0, 0].tolist()) - {classifier.in_channels * 1.0}
    torch.testing.assert_close(classifier.eval()(seen), torch.full_like(sums, classifier.in_channels))


def test_without_training_there_are_no_auxiliary_logits():
    assert MomeSegmentationHead(make_config()).eval()(make_maps())[1] is None


def test_weight_zero_leaves_the_auxiliary_head_out():
    head = MomeSegmentationHead(make_config(auxiliary_loss_weight=0.0))
    assert head.auxiliary_head is None
    assert head(make_maps())[1] is None


def test_every_parameter_gets_a_gradient():
    head, config = MomeSegmentationHead(make_config()), make_config()
    labels = torch.randint(LABELS, (2, 24, 24))
    semantic_segmentation_loss(*head(make_maps()), labels, config).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


def test_a_batch_of_one_has_the_loss_and_gradient_of_the_same_picture_twice():
    torch.manual_seed(0)
    head, config = MomeSegmentationHead(make_config()), make_config()
    maps, labels = make_maps(rows=1), torch.randint(LABELS, (1, 24, 24))
    one = semantic_segmentation_loss(*head(maps), labels, config)
    (gradient,) = torch.autograd.grad(one, head.decoder.classifier.weight)
    two = semantic_segmentation_loss(*head([m.repeat(2, 1, 1, 1) for m in maps]), labels.repeat(2, 1, 1), config)
    (expected,) = torch.autograd.grad(two, head.decoder.classifier.weight)
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(gradient, expected)


def test_the_loss_is_the_mean_over_labelled_pixels():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, LABELS, 4, 4), torch.randint(LABELS, (2, 4, 4))
    labels[0, :2] = IGNORED
    expected = [
        -logits[b, :, y, x].log_softmax(0)[labels[b, y, x]]
        for b in range(2)
        for y in range(4)
        for x in range(4)
        if labels[b, y, x] != IGNORED
    ]
    torch.testing.assert_close(segmentation_loss(logits, labels, IGNORED), torch.stack(expected).mean())


def test_logits_are_resized_to_the_labels():
    logits, labels = torch.randn(2, LABELS, 4, 4), torch.randint(LABELS, (2, 10, 14))
    resized = nn.functional.interpolate(logits, (10, 14), mode="bilinear", align_corners=False)
    expected = nn.functional.cross_entropy(resized, labels)
    torch.testing.assert_close(segmentation_loss(logits, labels, IGNORED), expected)


def test_ignored_pixels_have_no_gradient():
    logits, labels = torch.randn(1, LABELS, 4, 4, requires_grad=True), torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 0] = IGNORED
    segmentation_loss(logits, labels, IGNORED).backward()
    assert not logits.grad[..., 0, :].any()
    assert logits.grad[..., 1:, :].any()


def test_a_batch_without_labelled_pixels_has_loss_zero_and_gradient_zero():
    head, config = MomeSegmentationHead(make_config()), make_config()
    labels = torch.full((2, 24, 24), IGNORED)
    loss = semantic_segmentation_loss(*head(make_maps()), labels, config)
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in head.parameters() if p.grad is not None)


def test_the_auxiliary_loss_is_added_with_its_weight():
    logits, auxiliary = torch.randn(2, LABELS, 8, 8), torch.randn(2, LABELS, 2, 2)
    labels = torch.randint(LABELS, (2, 8, 8))
    parts = [segmentation_loss(one, labels, IGNORED) for one in (logits, auxiliary)]
    total = semantic_segmentation_loss(logits, auxiliary, labels, make_config(auxiliary_loss_weight=0.25))
    torch.testing.assert_close(total, parts[0] + 0.25 * parts[1])


@pytest.mark.parametrize("value", [-1, LABELS, 200])
def test_labels_that_are_no_class_are_named(value):
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 1, 1] = value
    with pytest.raises(ValueError, match=rf"hold {value}; the model has the classes 0 to 2"):
        semantic_segmentation_loss(torch.randn(1, LABELS, 4, 4), None, labels, make_config())


@pytest.mark.parametrize("labels", [torch.zeros(1, 4, 4), torch.zeros(4, 4, dtype=torch.long)], ids=["float", "2d"])
def test_labels_of_another_form_are_refused(labels):
    with pytest.raises(ValueError, match="integers of shape"):
        check_segmentation_labels(labels, LABELS, IGNORED)


def test_small_integers_are_labels_too():
    logits, labels = torch.randn(1, LABELS, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 0, 0] = IGNORED
    torch.testing.assert_close(
        semantic_segmentation_loss(logits, None, labels, make_config()),
        semantic_segmentation_loss(logits, None, labels.long(), make_config()),
    )


SPREAD = {12: (3, 5, 7, 11), 24: (7, 11, 15, 23), 4: (0, 1, 2, 3), 6: (1, 2, 3, 5), 2: (0, 1, 1, 1), 1: (0, 0, 0, 0)}


@pytest.mark.parametrize(("num_layers", "expected"), SPREAD.items())
def test_blocks_are_spread_as_in_beit(num_layers, expected):
    assert spread_out_indices(num_layers) == expected


def test_synchronised_normalisation_keeps_names_and_numbers():
    torch.manual_seed(0)
    head = MomeSegmentationHead(make_config()).eval()
    maps = make_maps()
    expected, names = head(maps)[0], list(head.state_dict())
    head = nn.SyncBatchNorm.convert_sync_batchnorm(head)
    assert list(head.state_dict()) == names
    assert not any(isinstance(module, nn.BatchNorm2d) for module in head.modules())
    torch.testing.assert_close(head(maps)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"), [({"num_labels": 1}, "num_labels=1"), ({"auxiliary_index": 4}, "auxiliary_index=4")]
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MomeSegmentationHead(make_config(**options))


@pytest.mark.parametrize(
    "maps", [[torch.zeros(2, DIM, 6, 6)] * 3, [torch.zeros(2, DIM, 1, 1)] * 4], ids=["three", "one patch"]
)
def test_maps_that_do_not_fit_are_refused(maps):
    with pytest.raises(ValueError, match="4 blocks over 2 x 2 patches"):
        MomeSegmentationHead(make_config())(maps)


class Pixelwise(nn.Module):
    """Logits of a pixel from that pixel alone, so that windows cannot change them."""

    def __init__(self):
        super().__init__()
        self.config = make_config(image_size=6)
        self.sizes = []

    def forward(self, pixel_values):
        self.sizes.append(tuple(pixel_values.shape))
        return SimpleNamespace(logits=torch.cat((pixel_values, -pixel_values), dim=1))


@pytest.mark.parametrize("size", [(6, 6), (6, 13), (17, 9), (7, 24)])
def test_windows_cover_the_picture_exactly(size):
    pixels = torch.randn(2, 3, *size)
    logits = predict_sliding(Pixelwise(), pixels)
    torch.testing.assert_close(logits, torch.cat((pixels, -pixels), dim=1))


class Marked(nn.Module):
    """Logits tell the corner of the window: what was averaged can be seen."""

    def __init__(self):
        super().__init__()
        self.config = make_config(image_size=6)
        self.calls = 0

    def forward(self, pixel_values):
        self.calls += 1
        return SimpleNamespace(logits=pixel_values[:, :1, :1, :1].expand(-1, 1, 6, 6))


def test_overlapping_windows_are_averaged():
    columns = torch.arange(8.0).expand(1, 1, 6, 8)
    # windows begin at 0 and, moved back from 4, at 2
    expected = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2.0]).expand(1, 1, 6, 8)
    torch.testing.assert_close(predict_sliding(Marked(), columns, stride=4), expected)


@pytest.mark.parametrize(("batch_size", "calls"), [(1, 6), (4, 2), (8, 1)])
def test_windows_run_in_batches(batch_size, calls):
    model, pixels = Marked(), torch.randn(2, 1, 6, 12)
    expected = predict_sliding(Marked(), pixels, stride=3)
    torch.testing.assert_close(predict_sliding(model, pixels, stride=3, batch_size=batch_size), expected)
    assert model.calls == calls


def test_small_pictures_are_filled_up_and_cut_back():
    model, pixels = Pixelwise(), torch.randn(1, 3, 4, 9)
    logits = predict_sliding(model, pixels)
    torch.testing.assert_close(logits, torch.cat((pixels, -pixels), dim=1))
    assert {size[2:] for size in model.sizes} == {(6, 6)}


def test_logits_of_a_quarter_of_the_size_are_enlarged():
    class Coarse(Marked):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=nn.functional.avg_pool2d(pixel_values, 2))

    pixels = torch.randn(1, 3, 6, 6)
    expected = nn.functional.interpolate(nn.functional.avg_pool2d(pixels, 2), (6, 6), mode="bilinear")
    torch.testing.assert_close(predict_sliding(Coarse(), pixels), expected)


@pytest.mark.parametrize("stride", [0, 7])
def test_strides_that_leave_gaps_are_refused(stride):
    with pytest.raises(ValueError, match=f"stride={stride}"):
        predict_sliding(Pixelwise(), torch.randn(1, 3, 8, 8), stride=stride)


def test_a_picture_without_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"\(batch, channels, height, width\), not \(3, 8, 8\)"):
        predict_sliding(Pixelwise(), torch.randn(3, 8, 8))
