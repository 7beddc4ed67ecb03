"""`hf_vlp.data.masked_collators`.

Covers: keys, shapes and types of the batches; numbers of hidden words and patches; which sides of pairs are masked;
both views of a picture showing the same, and processors under which they would not; cached visual tokens and when they
are refused; records of repetitions; reproducibility over batches, order and epochs; bad samples of each source, whole
bad batches; wrong settings; workers of a DataLoader; the settings of a run.
"""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_vlp.data.augment import BeitPreTraining, RandomResizedCrop
from hf_vlp.data.collators import BadSampleError, BadSamplePolicy
from hf_vlp.data.joint import JointRecords
from hf_vlp.data.masked_collators import (
    JointPreTrainingCollator,
    MaskedImageCollator,
    MaskedPairCollator,
    make_tokenizer_view,
)
from hf_vlp.data.tokenization import train_bert_tokenizer
from hf_vlp.models.mome.processing_mome import MomeImageProcessorPil, MomeProcessor

SIDE, WINDOW = 32, 4
PATCHES, HIDDEN = 16, 6
BAD = {"bytes": b"not a picture", "path": None}
WORDS = ["red", "green", "blue", "black", "white", "pink", "grey", "brown"]
PICTURE_KEYS = {"pixel_values", "bool_masked_pos", "tokenizer_pixel_values"}


def picture(index=0, size=(48, 40)) -> dict:
    """Smooth, so that sizes and ways of resizing differ little."""
    y, x = np.mgrid[: size[1], : size[0]]
    waves = [np.sin(x / 9 + index), np.cos(y / 7 - index), np.sin((x + y) / 11)]
    buffer = io.BytesIO()
    Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_record(index) -> dict:
    words = WORDS[index % 8 :] + WORDS[: index % 8]
    return {"image": picture(index), "captions": [" ".join(words[: 2 + index % 7])], "image_id": index}


RECORDS = [make_record(index) for index in range(8)]
JOINT = [{"pair": record, "text": {"captions": record["captions"]}, "image": record} for record in RECORDS]
COLLATORS = [MaskedImageCollator, MaskedPairCollator, JointPreTrainingCollator]


@pytest.fixture(scope="module")
def processor():
    texts = [text for record in RECORDS for text in record["captions"]]
    return MomeProcessor(MomeImageProcessorPil(size={"height": SIDE, "width": SIDE}), train_bert_tokenizer(texts, 80))


def make(collator_class, processor, epoch=0, **options):
    collator = collator_class(processor, **{"window_size": WINDOW, **options})
    collator.set_epoch(epoch)
    return collator


def records_for(collator_class):
    return JOINT if collator_class is JointPreTrainingCollator else RECORDS


def with_ids(record, number=PATCHES) -> dict:
    return {**record, "visual_token_ids": list(range(number))}


def joined(parts: list[dict]) -> dict:
    return {
        name: torch.cat([torch.nn.functional.pad(part[name], (0, 16 - part[name].shape[1])) for part in parts])
        if parts[0][name].ndim == 2 and parts[0][name].shape[1] != PATCHES
        else torch.cat([part[name] for part in parts])
        for name in parts[0]
    }


# Batches


def test_pictures_come_with_hidden_patches_and_a_view_for_the_tokenizer(processor):
    batch = make(MaskedImageCollator, processor, tokenizer_image_size=20)(RECORDS)
    assert set(batch) == PICTURE_KEYS
    assert batch["pixel_values"].shape == (8, 3, SIDE, SIDE)
    assert batch["bool_masked_pos"].shape == (8, PATCHES)
    assert batch["bool_masked_pos"].dtype is torch.bool
    assert (batch["bool_masked_pos"].sum(1) == HIDDEN).all()
    view = batch["tokenizer_pixel_values"]
    assert (view.shape, view.dtype) == ((8, 3, 20, 20), torch.float32)
    assert 0 <= view.min() < 0.2
    assert 0.8 < view.max() <= 1


def test_pairs_have_words_hidden_beside_patches(processor):
    batch = make(MaskedPairCollator, processor)(RECORDS)
    assert set(batch) == PICTURE_KEYS | {"input_ids", "attention_mask", "labels"}
    words = batch["attention_mask"].sum(1) - 2
    assert (batch["labels"] != -100).sum(1).tolist() == [max(1, round(0.5 * number)) for number in words.tolist()]
    assert (batch["bool_masked_pos"].sum(1) == HIDDEN).all()
    whole = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    texts = processor.tokenizer.batch_decode(whole, skip_special_tokens=True)
    assert texts == [record["captions"][0] for record in RECORDS]


def test_a_joint_batch_holds_each_source_under_its_names(processor):
    batch = make(JointPreTrainingCollator, processor)(JOINT)
    texts = {"input_ids", "attention_mask", "labels"}
    expected = PICTURE_KEYS | texts | {f"text_{key}" for key in texts} | {f"image_{key}" for key in PICTURE_KEYS}
    assert set(batch) == expected
    for prefix, share in (("", 0.5), ("text_", 0.15)):
        words = (batch[f"{prefix}attention_mask"].sum(1) - 2).tolist()
        hidden = (batch[f"{prefix}labels"] != -100).sum(1).tolist()
        assert hidden == [max(1, round(share * number)) for number in words]


@pytest.mark.parametrize(
    "name, keys", [("pair", {"labels", "pixel_values"}), ("text", {"text_labels"}), ("image", {"image_pixel_values"})]
)
def test_sources_that_are_missing_leave_their_keys_out(processor, name, keys):
    records = [{**dict.fromkeys(("pair", "text", "image")), name: record[name]} for record in JOINT]
    batch = make(JointPreTrainingCollator, processor)(records)
    assert keys <= set(batch)
    prefixes = [prefix for prefix in ("text_", "image_") if prefix != f"{name}_"]
    assert not any(key.startswith(tuple(prefixes)) for key in batch)
    assert ("labels" in batch) == (name == "pair")


def test_the_joint_batch_is_that_of_its_parts(processor):
    batch = make(JointPreTrainingCollator, processor)(JOINT)
    pairs = make(MaskedPairCollator, processor)(RECORDS)
    images = make(MaskedImageCollator, processor)(RECORDS)
    for key, value in pairs.items():
        assert torch.equal(batch[key], value)
    for key, value in images.items():
        assert torch.equal(batch[f"image_{key}"], value)


@pytest.mark.parametrize("ratio, exact, counts", [(0.25, True, {4}), (0.5, True, {8}), (0.5, False, {6, 7, 8})])
def test_share_and_kind_of_the_hidden_patches_are_settings(processor, ratio, exact, counts):
    collator = make(MaskedImageCollator, processor, image_mask_ratio=ratio, exact_mask_count=exact)
    found = set()
    for epoch in range(20):
        collator.set_epoch(epoch)
        found |= set(collator(RECORDS)["bool_masked_pos"].sum(1).tolist())
    assert max(found) == max(counts)
    assert found <= counts


# Sides of pairs


def test_one_side_alone_leaves_the_other_whole_and_without_targets(processor):
    text = make(MaskedPairCollator, processor, mask_sides="text")(RECORDS)
    assert not {"bool_masked_pos", "tokenizer_pixel_values"} & set(text)
    image = make(MaskedPairCollator, processor, mask_sides="image")(RECORDS)
    assert "labels" not in image
    whole = processor(text=[record["captions"][0] for record in RECORDS], pad_to_multiple_of=8)
    assert torch.equal(image["input_ids"], whole["input_ids"])
    assert not torch.equal(text["input_ids"], whole["input_ids"])


def test_sides_alternate_within_each_pair(processor):
    collator = make(MaskedPairCollator, processor, mask_sides="alternate")
    sides = []
    for epoch in range(12):
        collator.set_epoch(epoch)
        batch = collator(RECORDS)
        words = (batch["labels"] != -100).any(1)
        patches = batch["bool_masked_pos"].any(1)
        assert torch.equal(words, ~patches)
        unmasked = batch["input_ids"][patches]
        assert not (unmasked == processor.tokenizer.mask_token_id).any()
        sides.append(words)
    shares = torch.stack(sides).double().mean(0)
    assert 0.3 < shares.mean() < 0.7
    assert (shares > 0).all()
    assert (shares < 1).all()


# Two views


def view_as_model_sees(pixel_values) -> torch.Tensor:
    return (pixel_values + 1) / 2


@pytest.mark.parametrize("collator_class", [MaskedImageCollator, MaskedPairCollator])
def test_both_views_show_the_same_part_in_the_same_colours(processor, collator_class):
    options = {"augment": BeitPreTraining(min_scale=0.2), "tokenizer_image_size": SIDE}
    batch = make(collator_class, processor, **options)(RECORDS)
    assert (view_as_model_sees(batch["pixel_values"]) - batch["tokenizer_pixel_values"]).abs().max() < 2 / 255
    plain = make(collator_class, processor, tokenizer_image_size=SIDE)(RECORDS)
    assert (plain["pixel_values"] - batch["pixel_values"]).abs().flatten(1).mean(1).min() > 0.05


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])  # that of the processor: resized once for both
@pytest.mark.parametrize("collator_class", [MaskedImageCollator, MaskedPairCollator])
def test_both_views_are_those_of_the_whole_pictures_bit_for_bit(processor, collator_class, resample):
    batch = make(collator_class, processor, tokenizer_resample=resample)(RECORDS)
    pictures = [Image.open(io.BytesIO(record["image"]["bytes"])) for record in RECORDS]
    assert torch.equal(batch["pixel_values"], processor(images=pictures)["pixel_values"])
    views = [make_tokenizer_view(picture, SIDE, resample) for picture in pictures]
    assert torch.equal(batch["tokenizer_pixel_values"], torch.stack(views))


def test_pictures_are_resized_once_for_two_equal_views(processor, monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, *rest, **more: (sizes.append(image.size), resize(image, *rest, **more))[1]
    )
    for resample, number in (("bicubic", 1), ("lanczos", 2)):
        sizes.clear()
        make(MaskedImageCollator, processor, tokenizer_resample=resample)(RECORDS[:1])
        assert sizes.count((48, 40)) == number


def test_views_of_other_sizes_show_the_same(processor):
    options = {"augment": BeitPreTraining(min_scale=0.4), "tokenizer_image_size": 16, "tokenizer_resample": "lanczos"}
    batch = make(MaskedImageCollator, processor, **options)(RECORDS)
    coarse = torch.nn.functional.avg_pool2d(view_as_model_sees(batch["pixel_values"]), 2)
    assert (coarse - batch["tokenizer_pixel_values"]).abs().mean() < 0.02


@pytest.mark.parametrize("resample", ["bicubic", "lanczos", "bilinear"])
def test_the_second_view_is_resized_as_asked(processor, resample):
    batch = make(MaskedImageCollator, processor, tokenizer_image_size=12, tokenizer_resample=resample)(RECORDS[:1])
    image = Image.open(io.BytesIO(RECORDS[0]["image"]["bytes"]))
    resized = np.asarray(image.resize((12, 12), Image.Resampling[resample.upper()])) / 255
    expected = torch.from_numpy(resized).permute(2, 0, 1).float()
    torch.testing.assert_close(batch["tokenizer_pixel_values"][0], expected)


@pytest.mark.parametrize(
    "options, found",
    [
        ({"size": {"shortest_edge": SIDE}}, "size: shortest_edge=32"),
        ({"size": {"height": SIDE, "width": 48}}, "size: height=32, width=48"),
        ({"do_center_crop": True, "crop_size": SIDE}, "do_center_crop"),
        ({"do_pad": True}, "do_pad"),
        ({"do_resize": False}, "do_resize=False"),
    ],
)
@pytest.mark.parametrize("collator_class", COLLATORS)
def test_processors_whose_patches_are_not_those_of_the_view_are_refused(processor, collator_class, options, found):
    image_processor = MomeImageProcessorPil(**{"size": {"height": SIDE, "width": SIDE}, **options})
    with pytest.raises(ValueError, match=rf"MomeImageProcessorPil does not squeeze .*\({found}\)"):
        make(collator_class, MomeProcessor(image_processor, processor.tokenizer))


def test_the_second_view_has_the_size_of_the_model_unless_said(processor):
    assert make(MaskedImageCollator, processor)(RECORDS)["tokenizer_pixel_values"].shape == (8, 3, SIDE, SIDE)


# Cached visual tokens


def test_cached_tokens_come_in_place_of_the_second_view(processor):
    records = [with_ids(record) for record in RECORDS]
    batch = make(MaskedImageCollator, processor)(records)
    assert "tokenizer_pixel_values" not in batch
    assert batch["visual_token_ids"].dtype is torch.long
    assert batch["visual_token_ids"].tolist() == [list(range(PATCHES))] * 8
    joint = make(JointPreTrainingCollator, processor)([{"pair": record, "image": record} for record in records])
    assert torch.equal(joint["visual_token_ids"], batch["visual_token_ids"])
    assert torch.equal(joint["image_visual_token_ids"], batch["visual_token_ids"])
    assert "image_tokenizer_pixel_values" not in joint


def test_cached_tokens_of_a_grid_and_colours_are_taken(processor):
    grid = {**RECORDS[0], "visual_token_ids": np.arange(PATCHES).reshape(WINDOW, WINDOW)}
    augment = BeitPreTraining(min_scale=1, flip=False)
    batch = make(MaskedImageCollator, processor, augment=augment)([grid])
    assert batch["visual_token_ids"].tolist() == [list(range(PATCHES))]


@pytest.mark.parametrize("augment", [BeitPreTraining(), BeitPreTraining(min_scale=1), RandomResizedCrop()])
def test_cached_tokens_are_refused_where_patches_move(processor, augment):
    collator = make(MaskedImageCollator, processor, augment=augment)
    with pytest.raises(ValueError, match="cached visual_token_ids of whole pictures"):
        collator([with_ids(record) for record in RECORDS])
    assert "tokenizer_pixel_values" in collator(RECORDS)


@pytest.mark.parametrize("ids", [[1.0] * PATCHES, list(range(9)), []])
def test_cached_tokens_of_another_grid_are_refused(processor, ids):
    with pytest.raises(ValueError, match="16 whole numbers"):
        make(MaskedImageCollator, processor)([{**RECORDS[0], "visual_token_ids": ids}])


def test_a_record_without_its_tokens_is_a_bad_one(processor):
    collator = make(MaskedImageCollator, processor)
    batch = collator([with_ids(RECORDS[0]), {**RECORDS[1], "visual_token_ids": None}])
    assert len(batch["visual_token_ids"]) == 1
    batch = collator([with_ids(RECORDS[0]), RECORDS[1]])
    assert len(batch["visual_token_ids"]) == 1
    assert collator.bad_samples.counts["image"] == collator.bad_samples.counts["bad"] == 2


@pytest.mark.parametrize(
    "image, reason", [(BAD, "not an image of a supported format"), (picture(1), "has no visual_token_ids")]
)
def test_a_record_without_its_tokens_is_named_with_the_reason(processor, image, reason):
    collator = make(MaskedImageCollator, processor, bad_samples=BadSamplePolicy("raise"))
    with pytest.raises(BadSampleError, match=f"the record 'a.png'.*{reason}"):
        collator([{"image": image, "file_name": "a.png", "visual_token_ids": None}])


# Draws


@pytest.mark.parametrize("collator_class", COLLATORS)
def test_draws_are_functions_of_seed_epoch_and_record(processor, collator_class):
    records = records_for(collator_class)
    options = {"augment": BeitPreTraining(), "pad_to_multiple_of": 16}
    whole = make(collator_class, processor, epoch=3, **options)(records)
    collator = make(collator_class, processor, epoch=3, **options)
    single = joined([collator([record]) for record in reversed(records)])
    for name, value in whole.items():
        assert torch.equal(single[name].flip(0), value), name
    for changed in (
        make(collator_class, processor, epoch=4, **options),
        make(collator_class, processor, 3, seed=1, **options),
    ):
        other = changed(records)
        masks = [name for name in whole if name.endswith("bool_masked_pos")]
        assert masks
        assert not any(torch.equal(whole[name], other[name]) for name in masks)


def test_pictures_without_a_name_are_drawn_for_by_their_content(processor):
    records = [{"image": record["image"]} for record in RECORDS]
    masks = make(MaskedImageCollator, processor)(records)["bool_masked_pos"]
    assert len({tuple(mask.tolist()) for mask in masks}) > 4
    assert torch.equal(make(MaskedImageCollator, processor)(records)["bool_masked_pos"], masks)


def test_records_of_a_repetition_are_drawn_for_anew(processor):
    records = JointRecords({"pair": RECORDS[5:6], "text": [JOINT[6]["text"]], "image": RECORDS[:1] * 30})
    batch = make(JointPreTrainingCollator, processor)([records[index] for index in range(30)])
    for name in ("bool_masked_pos", "labels", "text_labels"):
        assert len({tuple(row.tolist()) for row in batch[name]}) > 5, name
    assert len({tuple(row.tolist()) for row in batch["image_bool_masked_pos"]}) == 1  # one record thirty times


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_make_the_same_batches(processor, num_workers):
    records = JointRecords({"pair": RECORDS, "image": RECORDS[:3], "text": None})
    collator = make(JointPreTrainingCollator, processor)
    loader = DataLoader(records, batch_size=4, collate_fn=collator, num_workers=num_workers)
    for batch, start in zip(loader, (0, 4)):
        expected = make(JointPreTrainingCollator, processor)([records[start + place] for place in range(4)])
        assert all(torch.equal(batch[name], value) for name, value in expected.items())
    assert collator.bad_samples.counts["seen"] == 16


# Bad samples


def test_bad_samples_are_dropped_and_counted_for_each_source(processor):
    collator = make(JointPreTrainingCollator, processor)
    records = [dict(record) for record in JOINT]
    records[0]["pair"] = {**RECORDS[0], "image": BAD}
    records[1]["pair"] = {**RECORDS[1], "captions": [" "]}
    records[2]["image"] = {**RECORDS[2], "image": BAD}
    batch = collator(records)
    assert {name: len(batch[name]) for name in ("pixel_values", "text_labels", "image_pixel_values")} == {
        "pixel_values": 6,
        "text_labels": 8,
        "image_pixel_values": 7,
    }
    assert collator.bad_samples.counts == {
        **{"seen": 24, "bad": 3, "image": 2, "captions": 1, "other": 0},
        **{"bad_pair": 2, "bad_text": 0, "bad_image": 1},
    }
    assert "pair: 2 of 8" in collator.bad_samples.report()


def test_each_source_has_the_whole_budget(processor):
    policy = BadSamplePolicy(max_in_a_row=3)
    collator = make(JointPreTrainingCollator, processor, bad_samples=policy)
    bad = {"image": BAD, "captions": ["red"]}
    collator([{"pair": bad, "image": bad}] * 2)
    with pytest.raises(BadSampleError, match="max_in_a_row=3"):
        collator([{"image": bad}] * 2)
    strict = make(JointPreTrainingCollator, processor, bad_samples=BadSamplePolicy("raise"))
    with pytest.raises(BadSampleError):
        strict([{"text": {"captions": []}}])


@pytest.mark.parametrize("collator_class", COLLATORS)
@pytest.mark.parametrize("cached", [False, True])
def test_a_whole_bad_batch_teaches_nothing(processor, collator_class, cached):
    bad = {"image": BAD, "captions": ["red"]}
    bad = with_ids(bad) if cached else bad
    records = [{"pair": bad, "text": {"captions": []}, "image": bad}] if collator_class is COLLATORS[2] else [bad]
    batch = make(collator_class, processor)(records * 2)
    assert {len(value) for value in batch.values()} == {1}
    for name, value in batch.items():
        if name.endswith("labels"):
            assert (value == -100).all()
        if name.endswith("bool_masked_pos"):
            assert not value.any()
    names = {"visual_token_ids", "image_visual_token_ids"} & set(batch)
    assert bool(names) == cached


# Settings


@pytest.mark.parametrize(
    "collator_class, options, message",
    [
        (MaskedImageCollator, {"window_size": 1}, "window_size=1"),
        (MaskedImageCollator, {"image_mask_ratio": 0}, "image_mask_ratio=0"),
        (MaskedImageCollator, {"tokenizer_image_size": 0}, "tokenizer_image_size=0"),
        (MaskedImageCollator, {"tokenizer_resample": "cubic"}, "tokenizer_resample='cubic'"),
        (MaskedPairCollator, {"mask_sides": "none"}, "mask_pair_sides must be one of both"),
        (MaskedPairCollator, {"mask_probability": 0}, "mask_probability=0"),
        (JointPreTrainingCollator, {"mask_pair_sides": "none"}, "mask_pair_sides must be one of both"),
        (JointPreTrainingCollator, {"pair_mask_probability": 2}, "mask_probability=2"),
    ],
)
def test_impossible_settings_are_refused(processor, collator_class, options, message):
    with pytest.raises(ValueError, match=message):
        make(collator_class, processor, **options)


def test_records_of_another_kind_are_refused(processor):
    with pytest.raises(ValueError, match=r"not \['captions', 'image', 'image_id'\]"):
        make(JointPreTrainingCollator, processor)(RECORDS)
    with pytest.raises(ValueError, match="JointRecords"):
        make(JointPreTrainingCollator, processor)([{"pair": None}])
    with pytest.raises(ValueError, match="no 'image'"):
        make(MaskedImageCollator, processor)([{"captions": ["red"]}])


def test_without_epochs_the_global_generator_draws(processor):
    collator = MaskedImageCollator(processor, window_size=WINDOW)
    torch.manual_seed(0)
    first = collator(RECORDS)["bool_masked_pos"]
    torch.manual_seed(0)
    assert torch.equal(collator(RECORDS)["bool_masked_pos"], first)
    assert not torch.equal(collator(RECORDS)["bool_masked_pos"], first)


def test_augmentation_of_pairs_is_not_that_of_pictures(processor):
    def paint(colour):
        return lambda image, generator: Image.new("RGB", image.size, colour)

    collator = make(JointPreTrainingCollator, processor, augment=paint("white"), image_augment=paint("black"))
    batch = collator(JOINT)
    assert (batch["pixel_values"] == 1).all()
    assert (batch["tokenizer_pixel_values"] == 1).all()
    assert (batch["image_pixel_values"] == -1).all()


def test_an_augmentation_gets_the_same_generator_at_every_resume(processor):
    seen = []

    def note(image, generator: random.Random):
        seen.append(generator.random())
        return image

    for _ in range(2):
        make(MaskedImageCollator, processor, augment=note)(RECORDS)
    assert seen[:8] == seen[8:]
    assert len(set(seen)) == 8
