"""`hf_vlp.data.collators`.

Covers: batches of `CaptionCollator` (keys, shapes, padding, rows per picture, which captions are drawn), the
reproducibility of its draws over order, workers and epochs, augmentation, pixels, and the policy for bad samples:
counts, log lines, budgets, whole bad batches, counts over the workers of a DataLoader.
"""

import copy
import io
import logging
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessorPil

from hf_vlp.data.collators import (
    BadSampleError,
    BadSamplePolicy,
    CaptionCollator,
    record_captions,
)
from hf_vlp.data.tokenization import train_gpt2_tokenizer
from hf_vlp.models.vc_gpt.processing_vc_gpt import VcGptProcessor

COLOURS = ["red", "green", "blue", "black", "white", "pink", "grey", "brown"]


def picture(index=0, size=(20, 16)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (index * 20 % 256, 100, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def make_record(index, num_captions=5):
    captions = [f"a {COLOURS[n % 8]} dog number {index} seen {n} times" for n in range(num_captions)]
    return {"image": {"bytes": picture(index), "path": None}, "captions": captions, "image_id": index}


BAD_IMAGE = {"image": {"bytes": b"not a picture", "path": None}, "captions": ["a dog"], "image_id": 99}
NO_CAPTION = {"image": picture(), "captions": ["", "  \n", None], "image_id": 98}


@pytest.fixture(scope="module")
def processor():
    texts = [text for index in range(20) for text in make_record(index)["captions"]]
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_resize=True
    )
    return VcGptProcessor(image_processor, train_gpt2_tokenizer(texts, 400))


class Recorder:
    """A processor that remembers how it was called."""

    def __init__(self, processor):
        self.processor = processor
        self.calls = []

    def __call__(self, **kwargs):
        self.calls.append(kwargs)
        return self.processor(**kwargs)


def texts_of(processor, batch) -> list[str]:
    return processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)


# Batches


def test_batch_holds_pictures_and_padded_captions(processor):
    records = [make_record(0, 1), {"image": picture(1), "captions": ["a dog"]}]
    batch = CaptionCollator(processor)(records)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "labels"}
    assert type(batch) is dict
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["pixel_values"].dtype == torch.float32
    end = processor.tokenizer.eos_token_id
    for row, text in enumerate((records[0]["captions"][0], "a dog")):
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row]
        assert ids[0] == end
        assert ids[length - 1] == end
        assert texts_of(processor, batch)[row] == text
        assert batch["labels"][row, :length].tolist() == ids[:length].tolist()
        assert (batch["labels"][row, length:] == -100).all()


@pytest.mark.parametrize("multiple", [8, 5, None])
def test_length_is_the_longest_rounded_up_to_a_multiple(processor, multiple):
    records = [{"image": picture(), "text": text} for text in ("a dog", "a red dog number one seen two times")]
    batch = CaptionCollator(processor, pad_to_multiple_of=multiple)(records)
    longest = int(batch["attention_mask"].sum(1).max())
    expected = longest if multiple is None else -(-longest // multiple) * multiple
    assert batch["input_ids"].shape[1] == expected


def test_long_caption_is_cut_and_still_ends(processor):
    batch = CaptionCollator(processor, max_length=6, pad_to_multiple_of=None)([make_record(0)])
    assert batch["input_ids"].shape == (1, 6)
    assert batch["labels"][0, -1] == processor.tokenizer.eos_token_id


def test_processor_is_called_once_for_pictures_and_once_for_captions(processor):
    recorder = Recorder(processor)
    CaptionCollator(recorder, captions_per_image=3)([make_record(index) for index in range(4)])
    assert len(recorder.calls) == 2
    counts = {key: len(call[key]) for call in recorder.calls for key in ("images", "captions") if key in call}
    assert counts == {"images": 4, "captions": 12}


def test_all_captions_of_a_picture_are_consecutive_rows(processor):
    records = [make_record(index, 3) for index in range(2)]
    batch = CaptionCollator(processor, captions_per_image="all")(records)
    assert batch["pixel_values"].shape[0] == 2
    assert texts_of(processor, batch) == records[0]["captions"] + records[1]["captions"]


def test_all_captions_must_be_equally_many_in_a_batch(processor):
    with pytest.raises(ValueError, match=r"found \[2, 5\].*captions_per_image=2"):
        CaptionCollator(processor, captions_per_image="all")([make_record(0, 5), make_record(1, 2)])


def test_several_captions_are_different_ones(processor):
    batch = CaptionCollator(processor, captions_per_image=4)([make_record(0)])
    texts = texts_of(processor, batch)
    assert len(set(texts)) == 4
    assert set(texts) < set(make_record(0)["captions"])


def test_record_with_too_few_captions_repeats_them_evenly(processor):
    batch = CaptionCollator(processor, captions_per_image=5)([make_record(0, 2)])
    texts = texts_of(processor, batch)
    assert sorted(texts.count(text) for text in set(texts)) == [2, 3]


def test_record_captions_reads_both_columns_and_tidies_them():
    assert record_captions({"captions": [" a  dog\n", "", None, "two"]}) == ["a dog", "two"]
    assert record_captions({"text": "a dog"}) == ["a dog"]
    assert record_captions({"text": ["a", "b"]}) == ["a", "b"]
    assert record_captions({"captions": None}) == []
    with pytest.raises(ValueError, match=r"neither 'captions' nor 'text', only \['caption', 'image'\]"):
        record_captions({"image": 0, "caption": "a dog"})
    with pytest.raises(TypeError, match=r"not 3\.5 of type float"):
        record_captions({"text": 3.5})


def test_wrong_columns_are_a_mistake_not_a_bad_sample(processor):
    with pytest.raises(ValueError, match=r"no 'image'.*remove_unused_columns"):
        CaptionCollator(processor)([{"captions": ["a dog"]}])
    with pytest.raises(ValueError, match="caption_columns"):
        CaptionCollator(processor)([{"image": picture()}])


@pytest.mark.parametrize("value", [0, -1, "some", 1.5, None, True])
def test_impossible_number_of_captions_is_refused(processor, value):
    with pytest.raises(ValueError, match="captions_per_image"):
        CaptionCollator(processor, captions_per_image=value)


def test_too_short_max_length_is_refused(processor):
    with pytest.raises(ValueError, match="max_length"):
        CaptionCollator(processor, max_length=2)


# Randomness


def drawn(collator, records, batch_size=2) -> dict[int, str]:
    """Which caption each record got."""
    result = {}
    for start in range(0, len(records), batch_size):
        chunk = records[start : start + batch_size]
        texts = texts_of(collator.processor, collator(chunk))
        result |= {record["image_id"]: text for record, text in zip(chunk, texts)}
    return result


def test_draw_depends_on_seed_epoch_and_record_only(processor):
    records = [make_record(index) for index in range(8)]
    collator = CaptionCollator(processor, seed=3)
    collator.set_epoch(1)
    first = drawn(collator, records)
    torch.rand(5)  # the state of the global generators does not matter
    assert drawn(collator, records[::-1], batch_size=3) == first
    other = CaptionCollator(processor, seed=3)
    other.set_epoch(1)
    assert drawn(other, records[4:]) == {index: first[index] for index in range(4, 8)}
    other.set_epoch(2)
    assert drawn(other, records) != first
    different_seed = CaptionCollator(processor, seed=4)
    different_seed.set_epoch(1)
    assert drawn(different_seed, records) != first


def test_every_caption_is_drawn_about_equally_often(processor):
    collator = CaptionCollator(processor)
    record = make_record(0)
    counts = dict.fromkeys(record["captions"], 0)
    for epoch in range(500):
        collator.set_epoch(epoch)
        counts[collator._choose(record["captions"], collator._generator(record, record["captions"]))[0]] += 1
    assert min(counts.values()) > 70  # 100 expected, standard deviation 9
    assert max(counts.values()) < 130


def test_without_an_epoch_draws_follow_the_generator_that_the_trainer_stores(processor):
    records = [make_record(index) for index in range(8)]
    collator = CaptionCollator(processor)
    torch.manual_seed(0)
    first = drawn(collator, records)
    state = torch.get_rng_state()
    second = drawn(collator, records)
    assert first != second
    torch.set_rng_state(state)
    assert drawn(collator, records) == second


@pytest.mark.parametrize("persistent", [False, True])
def test_draws_are_the_same_with_workers_and_follow_the_epoch(processor, persistent):
    records = [make_record(index) for index in range(8)]
    alone = CaptionCollator(processor)
    collator = CaptionCollator(processor)
    loader = DataLoader(records, batch_size=2, collate_fn=collator, num_workers=2, persistent_workers=persistent)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        collator.set_epoch(epoch)
        texts = [text for batch in loader for text in texts_of(processor, batch)]
        assert texts == list(drawn(alone, records).values())


def test_augmentation_is_reproducible_and_happens_once_per_picture(processor):
    def augment(image, generator: random.Random):
        return Image.new("RGB", image.size, tuple(generator.randrange(256) for _ in range(3)))

    records = [make_record(index) for index in range(4)]
    collator = CaptionCollator(processor, captions_per_image=2, augment=augment)
    collator.set_epoch(0)
    first = collator(records)["pixel_values"]
    assert torch.equal(collator(records)["pixel_values"], first)
    assert len({tuple(image[:, 0, 0].tolist()) for image in first}) == 4
    collator.set_epoch(1)
    assert not torch.equal(collator(records)["pixel_values"], first)


# Bad samples


def test_bad_samples_leave_the_batch_and_nothing_takes_their_place(processor, caplog):
    policy = BadSamplePolicy()
    records = [make_record(0, 1), BAD_IMAGE, make_record(2, 1), NO_CAPTION]
    with caplog.at_level(logging.WARNING):
        batch = CaptionCollator(processor, bad_samples=policy)(records)
    assert batch["pixel_values"].shape[0] == batch["input_ids"].shape[0] == 2
    assert texts_of(processor, batch) == records[0]["captions"] + records[2]["captions"]
    assert policy.counts == {"seen": 4, "bad": 2, "image": 1, "captions": 1, "other": 0}
    assert policy.report() == "2 of 4 samples were bad and skipped (50.00 %): 1 image, 1 captions."
    assert "the record 99" in caplog.text
    assert "not an image" in caplog.text


def test_report_without_bad_samples(processor):
    policy = BadSamplePolicy()
    CaptionCollator(processor, bad_samples=policy)([make_record(0)])
    assert policy.report() == "No bad samples among 1."


@pytest.mark.parametrize("bad", [BAD_IMAGE, NO_CAPTION, {"image": picture(), "captions": [7]}])
def test_policy_raise_stops_at_the_first_with_its_reason(processor, bad):
    collator = CaptionCollator(processor, bad_samples=BadSamplePolicy("raise"))
    with pytest.raises(BadSampleError, match=r"Bad sample: .*record") as caught:
        collator([make_record(0), bad])
    assert isinstance(caught.value, ValueError)


def test_first_and_every_thousandth_bad_sample_is_logged(caplog):
    policy = BadSamplePolicy(max_in_a_row=10_000, max_total=None, max_fraction=1.0)
    with caplog.at_level(logging.WARNING):
        for index in range(2500):
            policy.bad("other", f"sample {index}.")
    assert [record.getMessage().split()[3] for record in caplog.records] == ["1", "1000", "2000"]


def test_too_many_bad_samples_in_a_row_stop_the_run(processor):
    collator = CaptionCollator(processor, bad_samples=BadSamplePolicy(max_in_a_row=5))
    collator([BAD_IMAGE] * 4 + [make_record(0)])  # a good one starts the count again
    collator([BAD_IMAGE] * 4)
    with pytest.raises(BadSampleError, match=r"5 samples in a row.*not an image"):
        collator([BAD_IMAGE])


def test_too_many_bad_samples_in_all_stop_the_run(processor):
    collator = CaptionCollator(processor, bad_samples=BadSamplePolicy(max_total=3))
    for _ in range(3):
        collator([BAD_IMAGE, make_record(0)])
    with pytest.raises(BadSampleError, match=r"4 samples in all.*max_total=3"):
        collator([BAD_IMAGE, make_record(0)])


def test_too_large_a_share_of_bad_samples_stops_the_run_after_a_thousand():
    policy = BadSamplePolicy(max_fraction=0.2)
    for _ in range(499):
        policy.good()
        policy.bad("image", "broken.")
    policy.good()
    with pytest.raises(BadSampleError, match=r"500 of 1,000 samples were bad \(max_fraction=0.2\)"):
        policy.bad("image", "broken.")


@pytest.mark.parametrize(
    "options", [{"policy": "ignore"}, {"max_in_a_row": 0}, {"max_total": -1}, {"max_fraction": 2}]
)
def test_impossible_policies_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        BadSamplePolicy(**options)


@pytest.mark.parametrize("captions_per_image, rows", [(1, 1), (3, 3), ("all", 1)])
def test_batch_of_bad_samples_only_can_be_run_and_teaches_nothing(processor, captions_per_image, rows):
    batch = CaptionCollator(processor, captions_per_image=captions_per_image)([BAD_IMAGE, NO_CAPTION])
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    assert batch["input_ids"].shape[0] == rows
    assert (batch["labels"] == -100).all()
    assert batch["attention_mask"].any(1).all()


def test_model_learns_nothing_from_a_batch_of_bad_samples(processor):
    from transformers import CLIPVisionConfig, GPT2Config

    from hf_vlp.models.vc_gpt.configuration_vc_gpt import VcGptConfig
    from hf_vlp.models.vc_gpt.modeling_vc_gpt import VcGptForConditionalGeneration

    end = processor.tokenizer.eos_token_id
    sizes = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    config = VcGptConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **vision),
        text_config=GPT2Config(vocab_size=len(processor.tokenizer), **text, **sizes),
        num_fusion_layers=1,
        fusion_num_heads=2,
        **sizes,
    )
    model = VcGptForConditionalGeneration(config)
    batch = CaptionCollator(processor)([BAD_IMAGE, NO_CAPTION])
    loss = model(**batch, num_items_in_batch=torch.tensor(1)).loss
    loss.backward()
    assert loss == 0
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all((gradient == 0).all() for gradient in gradients)


def test_counts_of_workers_arrive_in_the_main_process(processor):
    records = [BAD_IMAGE if index % 4 == 0 else make_record(index) for index in range(24)]
    policy = BadSamplePolicy()
    loader = DataLoader(
        records, batch_size=3, num_workers=2, collate_fn=CaptionCollator(processor, bad_samples=policy)
    )
    for epoch in (1, 2):
        rows = sum(len(batch["input_ids"]) for batch in loader)
        assert rows == 18
        assert policy.counts == {"seen": 24 * epoch, "bad": 6 * epoch, "image": 6 * epoch, "captions": 0, "other": 0}


def test_budget_counts_the_bad_samples_of_all_workers(processor):
    records = [BAD_IMAGE if index % 2 else make_record(index) for index in range(16)]
    policy = BadSamplePolicy(max_total=8)
    loader = DataLoader(
        records, batch_size=2, num_workers=2, collate_fn=CaptionCollator(processor, bad_samples=policy)
    )
    assert len(list(loader)) == 8
    with pytest.raises(BadSampleError, match="9 samples in all"):
        policy.bad("image", "one more.")


def test_copied_collator_gives_the_same_batches(processor):
    collator = CaptionCollator(processor)
    collator.set_epoch(4)
    records = [make_record(index) for index in range(3)]
    assert torch.equal(copy.deepcopy(collator)(records)["input_ids"], collator(records)["input_ids"])


def test_too_large_pictures_are_bad_samples(processor):
    policy = BadSamplePolicy()
    batch = CaptionCollator(processor, bad_samples=policy, max_pixels=100)([make_record(0)])
    assert (batch["labels"] == -100).all()
    assert policy.counts["image"] == 1


def test_pixels_equal_those_of_the_processor(processor):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    batch = CaptionCollator(processor)([{**make_record(0), "image": image}])
    assert torch.equal(batch["pixel_values"], processor(images=image)["pixel_values"])
