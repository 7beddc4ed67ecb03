"""Mixup, cutmix and smoothed labels: the mathematics, the collator that uses them, the loss that takes the result.

Covers: shares of pixels equal shares of labels (mixup and cutmix), pictures untouched outside the box, odd and single
batches, the distribution of the shares, smoothing, equal draws for equal (seed, epoch, batch) and others otherwise,
batches without a label, pictures without an id, training only, the loss of soft labels, and refused arguments.
"""

import random
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from hf_vlp.data.collators import BadSamplePolicy
from hf_vlp.data.mixing import BatchMixing, smooth_labels
from hf_vlp.models.mome.mome_losses import classification_loss
from hf_vlp.pretraining.arguments import parse_arguments
from hf_vlp.pretraining.build import make_collator
from hf_vlp.pretraining.labels import LabelCollator
from tests.training.tiny import COLOURS

NAMES = list(COLOURS)


def one_picture_per_class(rows: int, size: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture i has the value i everywhere and the class i: the pixels tell which picture they are from."""
    values = torch.arange(rows, dtype=torch.float)
    return values[:, None, None, None].expand(rows, 3, size, size).clone(), torch.arange(rows)


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_in_the_share_of_the_pixels(kind, rows):
    pixels, labels = one_picture_per_class(rows)
    mixing = BatchMixing(rows, **{"mixup": 0.0, "cutmix": 0.0, kind: 1.0, "label_smoothing": 0.0})
    for seed in range(20):
        mixed, targets = mixing(pixels, labels, random.Random(seed))
        # the mean value of a picture is sum over classes of share * class
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ labels.float(), atol=1e-4, rtol=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(rows))
        assert ((targets > 0).sum(1) <= 2).all()


def test_cutmix_moves_one_box_and_leaves_the_rest():
    pixels, labels = one_picture_per_class(4)
    mixing = BatchMixing(4, mixup=0.0, cutmix=1.0)
    for seed in range(20):
        mixed, _ = mixing(pixels, labels, random.Random(seed))
        other = mixed[0, 0] == 3.0
        assert (other | (mixed[0, 0] == 0.0)).all()
        rows, columns = other.any(1), other.any(0)
        assert torch.equal(other, rows[:, None] & columns[None])  # a rectangle
    assert torch.equal(pixels, one_picture_per_class(4)[0])  # what was given is as it was


def test_a_box_has_the_drawn_share_of_the_picture():
    class Middle(random.Random):
        def randrange(self, stop):
            return stop // 2

    pixels = one_picture_per_class(2)[0]
    side = pixels.shape[-1]
    for box in range(1, side):
        _, share = BatchMixing._cut(pixels, 1 - (box / side) ** 2 - 1e-9, Middle(0))
        assert share == pytest.approx(1 - (box / side) ** 2)


def test_an_odd_batch_keeps_its_middle_picture():
    pixels, labels = one_picture_per_class(3)
    for seed in range(10):
        mixed, targets = BatchMixing(3, label_smoothing=0.0)(pixels, labels, random.Random(seed))
        torch.testing.assert_close(mixed[1], pixels[1])
        torch.testing.assert_close(targets[1], torch.tensor([0.0, 1.0, 0.0]))


def test_shares_have_the_mean_and_variance_of_the_beta_distribution():
    pixels, labels = one_picture_per_class(2, size=1)
    mixing = BatchMixing(2, mixup=0.8, cutmix=0.0, label_smoothing=0.0)
    generator = random.Random(0)
    shares = torch.stack([mixing(pixels, labels, generator)[1][0, 0] for _ in range(4000)])
    assert abs(shares.mean() - 0.5) < 0.02
    assert abs(shares.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01  # Beta(a, a): 1 / (4 (2 a + 1))


def test_both_kinds_are_drawn_and_one_is_used_for_a_batch():
    pixels, labels = one_picture_per_class(2)
    mixing = BatchMixing(2)
    found = [mixing(pixels, labels, random.Random(seed))[0][1].unique() for seed in range(200)]
    assert all(values.numel() <= 2 for values in found)  # one mixture of the two, or pixels of either
    blended = sum(not set(values.tolist()) <= {0.0, 1.0} for values in found)
    assert 70 < blended < 130


def test_smoothing_takes_mass_from_the_label_and_gives_it_to_all():
    targets = smooth_labels(torch.tensor([2, 0, -100]), 4, 0.1)
    torch.testing.assert_close(targets[0], torch.tensor([0.025, 0.025, 0.925, 0.025]))
    torch.testing.assert_close(targets[:2].sum(1), torch.ones(2))
    assert (targets[2] == -100).all()


def test_soft_loss_of_whole_labels_is_the_loss_of_class_numbers():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([3, -100, 0, 1, -100])
    expected = classification_loss(logits, labels)
    torch.testing.assert_close(classification_loss(logits, smooth_labels(labels, 4)), expected)
    smoothed = classification_loss(logits, smooth_labels(labels, 4, 0.1))
    torch.testing.assert_close(smoothed, F.cross_entropy(logits, labels, ignore_index=-100, label_smoothing=0.1))


def test_a_batch_without_a_label_has_no_gradient():
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = classification_loss(logits, torch.full((2, 4), -100.0))
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_probabilities_for_another_head_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\)"):
        classification_loss(torch.zeros(2, 4), torch.zeros(2, 3))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mixup": -0.1}, "mixup=-0.1"),
        ({"cutmix": float("nan")}, "cutmix=nan"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"switch_probability": 2.0}, "switch_probability=2.0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchMixing(3, **options)


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(ValueError, match=r"\[3\] are none of 3 classes"):
        smooth_labels(torch.tensor([0, 3]), 3)


# The collator


def process(images, return_tensors):
    """Stands for an image processor: mean colour of each picture over 8 x 8 pixels."""
    values = [torch.tensor(image.resize((1, 1)).getpixel((0, 0)), dtype=torch.float) / 255 for image in images]
    return {"pixel_values": torch.stack(values)[:, :, None, None].expand(-1, 3, 8, 8).clone()}


def records(number: int) -> list[dict]:
    return [
        {"image": Image.new("RGB", (16, 16), COLOURS[NAMES[index % 3]]), "label": NAMES[index % 3], "image_id": index}
        for index in range(number)
    ]


def collator(epoch: int = 0, **options) -> LabelCollator:
    made = LabelCollator(process, label2id={name: label for label, name in enumerate(NAMES[:3])}, **options)
    made.set_epoch(epoch)
    return made


def test_draws_are_those_of_seed_epoch_and_batch():
    options = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}
    batch = collator(seed=1, **options)(records(4))
    again = collator(seed=1, **options)(records(4))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    for other in (collator(seed=2, **options), collator(1, seed=1, **options)):
        assert not torch.equal(batch["labels"], other(records(4))["labels"])
    shifted = collator(seed=1, **options)(records(5)[1:])
    assert not torch.equal(batch["labels"][1:], shifted["labels"][:3])


def test_without_mixing_labels_stay_class_numbers():
    assert collator()(records(4))["labels"].tolist() == [0, 1, 2, 0]


def test_smoothing_alone_mixes_no_pictures():
    batch = collator(label_smoothing=0.1)(records(3))
    assert torch.equal(batch["pixel_values"], collator()(records(3))["pixel_values"])
    torch.testing.assert_close(batch["labels"], smooth_labels(torch.arange(3), 3, 0.1))


def test_a_batch_of_bad_pictures_teaches_nothing():
    bad = [{"image": b"no picture", "label": NAMES[0], "image_id": 0}]
    batch = collator(mixup=0.8, cutmix=1.0, bad_samples=BadSamplePolicy(max_in_a_row=9))(bad)
    assert batch["labels"].tolist() == [[-100.0] * 3]
    assert classification_loss(torch.randn(1, 3), batch["labels"]) == 0


def test_pictures_without_an_id_draw_each_their_own():
    drawn = []

    def augment(image, generator):
        drawn.append(generator.random())
        return image

    without_id = [{"image": row["image"], "label": row["label"]} for row in records(3)]
    for _ in range(2):
        collator(augment=augment)(without_id)
    assert len(set(drawn)) == 3
    assert drawn[:3] == drawn[3:]


def test_only_training_batches_are_mixed(tmp_path):
    flags = {"output_dir": str(tmp_path), "use_cpu": True, "task": "image_classification"}
    run = parse_arguments({"batches": {"mixup": 0.8, "label_smoothing": 0.1}}, flags)
    model = SimpleNamespace(config=SimpleNamespace(label2id={name: label for label, name in enumerate(NAMES[:3])}))
    assert make_collator(run, process, model, training=True)(records(2))["labels"].shape == (2, 3)
    assert make_collator(run, process, model)(records(2))["labels"].shape == (2,)


def test_tasks_without_labelled_pictures_refuse_mixing(tmp_path):
    with pytest.raises(ValueError, match=r"batches\.cutmix.*visual_question_answering"):
        parse_arguments(
            {"task": "visual_question_answering", "batches": {"cutmix": 1.0}},
            {"output_dir": str(tmp_path), "use_cpu": True},
        )
