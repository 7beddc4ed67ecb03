"""Pictures with a class for every pixel: `hf_vlp.data.segmentation`, records, and what the processor does with maps.

Covers: forms that maps may have, turned ones, what cannot be read; 0 as no class; records of scenes, of pictures and
paths, of arrays, streamed; names of classes; the files of ADE20K; labels and maps of the processor; augmentation:
picture and map together, sizes, shares of classes, filling up, colours, reproducibility; batches; bad pictures and
maps of each kind; the label of pixels that do not count, with more than 255 classes too; batches without good records;
augmentations that do not fit; several processes of a DataLoader.
"""

import io
import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_vlp.data.augment import AUGMENTATIONS, RandomResizedCrop
from hf_vlp.data.collators import BadSampleError, BadSamplePolicy
from hf_vlp.data.image_io import ImageError, load_image
from hf_vlp.data.scenes import SHAPES, make_scenes
from hf_vlp.data.segmentation import (
    SegmentationAugmentation,
    SegmentationCollator,
    distort_colours,
    load_segmentation_map,
    segmentation_classes,
)
from hf_vlp.data.sources import DataArguments, load_records
from hf_vlp.data.tokenization import train_bert_tokenizer
from hf_vlp.models.mome import processing_mome
from hf_vlp.models.mome.processing_mome import MomeImageProcessorPil, MomeProcessor

SIDE, IGNORED = 16, 255
LABELS = {name: number for number, name in enumerate("abcd")}
MAP = np.array([[0, 1, 2], [3, 255, 0]], dtype=np.uint8)


def encoded(image: Image.Image, kind="PNG") -> dict:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def make_record(index=0, size=(20, 14), classes=4) -> dict:
    """A picture whose red channel tells the class of each pixel: 60 times its number."""
    generator = np.random.default_rng(index)
    small = generator.integers(0, classes, (2, 3)).astype(np.uint8)
    segmentation_map = np.asarray(Image.fromarray(small).resize(size, Image.Resampling.NEAREST))
    pixels = np.stack([segmentation_map * 60, np.full_like(segmentation_map, 90), segmentation_map * 0], axis=-1)
    picture, classes = Image.fromarray(pixels), Image.fromarray(segmentation_map)
    return {"image": encoded(picture), "segmentation_map": encoded(classes), "image_id": index}


def make_image_processor(**options) -> MomeImageProcessorPil:
    return MomeImageProcessorPil(size=SIDE, **options)


def make_collator(**options) -> SegmentationCollator:
    options = {"label2id": LABELS, **options}
    return SegmentationCollator(options.pop("processor", None) or make_image_processor(), **options)


FORMS = {
    "bytes": lambda: encoded(Image.fromarray(MAP))["bytes"],
    "dict": lambda: encoded(Image.fromarray(MAP)),
    "pil": lambda: Image.fromarray(MAP),
    "16 bits": lambda: encoded(Image.fromarray(MAP.astype(np.uint16))),
    "32 bits": lambda: Image.fromarray(MAP.astype(np.int32)),
    "array": lambda: MAP,
    "tensor": lambda: torch.tensor(MAP),
    "lists": lambda: MAP.tolist(),
    "one channel": lambda: MAP[None],
}


@pytest.mark.parametrize("form", FORMS)
def test_maps_may_have_any_form(form):
    loaded = load_segmentation_map(FORMS[form]())
    assert loaded.dtype == np.int64
    assert np.array_equal(loaded, MAP)


def test_a_map_with_a_palette_gives_the_places_in_the_palette():
    image = Image.fromarray(MAP).convert("P")
    image.putdata(MAP.ravel().tolist())
    image.putpalette([200, 0, 0] * 256)
    assert np.array_equal(load_segmentation_map(encoded(image)), MAP)


def test_a_map_is_read_from_a_path(tmp_path):
    Image.fromarray(MAP).save(tmp_path / "map.png")
    assert np.array_equal(load_segmentation_map(tmp_path / "map.png"), MAP)
    assert np.array_equal(load_segmentation_map({"bytes": None, "path": str(tmp_path / "map.png")}), MAP)


@pytest.mark.parametrize("is_stored", [True, False])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_a_map_is_turned_by_its_own_exif_tag_as_pictures_are(orientation, is_stored):
    stored = Image.fromarray(MAP)
    stored.getexif()[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=stored.getexif())
    source = buffer.getvalue() if is_stored else Image.open(buffer)
    expected = np.asarray(load_image(source).convert("L"))
    assert not np.array_equal(expected, MAP)
    assert np.array_equal(load_segmentation_map(source), expected)


def test_a_map_with_a_broken_exif_block_is_read():
    buffer = io.BytesIO()
    Image.fromarray(MAP).save(buffer, "PNG", exif=b"Exif\x00\x00broken")
    assert np.array_equal(load_segmentation_map(buffer.getvalue()), MAP)


def test_a_map_that_misses_its_pictures_tag_is_told_so():
    picture, exif = Image.new("RGB", (3, 2)), Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", exif=exif)
    with pytest.raises(BadSampleError, match=r"has 2 x 3 pixels .* 3 x 2.*EXIF"):
        make_collator(bad_samples=BadSamplePolicy("raise"))([{"image": buffer.getvalue(), "segmentation_map": MAP}])


def test_zero_can_mean_no_class():
    expected = [[IGNORED, 0, 1], [2, IGNORED, IGNORED]]
    assert load_segmentation_map(MAP, do_reduce_labels=True).tolist() == expected


def test_zero_becomes_the_label_of_pixels_that_do_not_count():
    classes = np.array([[0, 1, 255, 256, 300]], dtype=np.uint16)
    reduced = load_segmentation_map(classes, do_reduce_labels=True, ignore_index=-100)
    assert reduced.tolist() == [[-100, 0, 254, 255, 299]]
    with pytest.raises(ImageError, match="256, which do_reduce_labels would turn into 255"):
        load_segmentation_map(classes, do_reduce_labels=True)
    processor = make_image_processor(do_reduce_labels=True, ignore_index=-100, do_resize=False)
    batch = processor(Image.new("RGB", (5, 1)), segmentation_maps=classes, return_tensors="np")
    assert np.array_equal(batch["labels"][0], reduced)


BAD_MAPS = {
    "no picture": (b"no picture", "cannot be read"),
    "nothing": (None, "there is none"),
    "empty cell": ({"bytes": None, "path": None}, "there is none"),
    "another dict": ({"array": MAP.tolist()}, r"'bytes' or 'path', this one has \['array'\]"),
    "no file": ("/no/such/file.png", "no such file"),
    "colours": (encoded(Image.new("RGB", (3, 2))), "turn maps that tell classes by colours"),
    "fractions": (MAP / 2, "whole numbers"),
    "cut off": (encoded(Image.effect_noise((60, 60), 50))["bytes"][:900], "read"),
    "words": ([["a", "b"]], "whole numbers"),
    "ragged": ([[1], [1, 2]], "cannot be read"),
}


@pytest.mark.parametrize("kind", BAD_MAPS)
def test_maps_that_cannot_be_read_are_told(kind):
    source, message = BAD_MAPS[kind]
    with pytest.raises(ImageError, match=message):
        load_segmentation_map(source)


@pytest.mark.parametrize("source", [encoded(Image.new("L", (60, 60))), Image.new("L", (60, 60))], ids=["png", "pil"])
def test_maps_with_too_many_pixels_are_refused(source):
    with pytest.raises(ImageError, match="3,000"):
        load_segmentation_map(source, max_pixels=3000)


# Records


def test_scenes_have_a_class_for_each_pixel():
    records = load_records(DataArguments(record_type="segmentation", num_scenes=4, scene_seed=3))
    expected = make_scenes(4, seed=3, masks=True)
    for record, scene in zip(records, expected):
        assert np.array_equal(load_segmentation_map(record["segmentation_map"]), np.asarray(scene["semantic_mask"]))
        classes = {0, *(1 + SHAPES.index(item["shape"]) for item in scene["objects"])}
        assert set(np.unique(load_segmentation_map(record["segmentation_map"])).tolist()) == classes


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["annotation", "segmentation_map", "mine"])
def test_maps_are_found_by_the_paths_that_a_table_names(tmp_path, streaming, column):
    lines = []
    for index in range(3):
        record = make_record(index)
        for name in ("image", "segmentation_map"):
            (tmp_path / f"{name}{index}.png").write_bytes(record[name]["bytes"])
        lines.append(json.dumps({"image": f"image{index}.png", column: f"segmentation_map{index}.png"}))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    options = {"label_column": "mine"} if column == "mine" else {}
    arguments = DataArguments(source=str(tmp_path), record_type="segmentation", **options)
    records = list(load_records(arguments, "train", streaming=streaming))
    for index, record in enumerate(records):
        expected = load_segmentation_map(make_record(index)["segmentation_map"])
        assert np.array_equal(load_segmentation_map(record["segmentation_map"]), expected)
    assert make_collator()(records)["labels"].shape == (3, SIDE, SIDE)


@pytest.mark.parametrize("streaming", [False, True])
def test_maps_in_a_data_set_may_be_pictures_or_lists(tmp_path, streaming):
    import datasets

    rows = [make_record(index) for index in range(2)]
    for name, cells, feature in (
        ("pictures", [row["segmentation_map"] for row in rows], datasets.Image()),
        (
            "lists",
            [load_segmentation_map(row["segmentation_map"]).tolist() for row in rows],
            datasets.Sequence(datasets.Sequence(datasets.Value("int64"))),
        ),
    ):
        columns = {"image": [row["image"] for row in rows], "annotation": cells}
        features = datasets.Features({"image": datasets.Image(), "annotation": feature})
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / name)
        arguments = DataArguments(source=str(tmp_path / name), record_type="segmentation")
        for index, record in enumerate(load_records(arguments, "train", streaming=streaming)):
            expected = load_segmentation_map(rows[index]["segmentation_map"])
            assert np.array_equal(load_segmentation_map(record["segmentation_map"]), expected)


def test_data_without_maps_are_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "a.png", "captions": ["a dog"]}))
    with pytest.raises(ValueError, match=r"No segmentation map column is recognised.*Set label_column"):
        load_records(DataArguments(source=str(tmp_path), record_type="segmentation"))


def test_names_of_classes_come_from_scenes_a_list_or_a_file(tmp_path):
    assert segmentation_classes(DataArguments()) == ["background", *SHAPES]
    assert segmentation_classes(DataArguments(source="some/data", label_names=["wall", "sky"])) == ["wall", "sky"]
    (tmp_path / "classes.txt").write_text("wall\nflying saucer\n\n")
    arguments = DataArguments(source="some/data", label_names=[str(tmp_path / "classes.txt")])
    assert segmentation_classes(arguments) == ["wall", "flying saucer"]
    assert segmentation_classes(DataArguments(source="some/data")) is None


@pytest.mark.parametrize(
    ("names", "message"), [(["no/such/file.txt"], "there is no such file"), (["sky", "wall", "sky"], "'sky' twice")]
)
def test_names_of_classes_that_cannot_be_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        segmentation_classes(DataArguments(source="some/data", label_names=names))


def test_ade20k_is_prepared_as_the_recipe_reads_it(tmp_path):
    folder = tmp_path / "ADEChallengeData2016"
    for part in ("training", "validation"):
        for index in range(2):
            record = make_record(index)
            for name, kind, ending in (("images", "image", "jpg"), ("annotations", "segmentation_map", "png")):
                (folder / name / part).mkdir(parents=True, exist_ok=True)
                image = Image.open(io.BytesIO(record[kind]["bytes"]))
                image.save(folder / name / part / f"ADE_{part}_{index}.{ending}")
    table = ["Idx\tRatio\tTrain\tVal\tName", "1\t0.16\t11664\t1172\twall", "2\t0.1\t6046\t612\tsky, heaven"]
    (folder / "objectInfo150.txt").write_text("\n".join(table) + "\n")
    script = Path(__file__).parents[2] / "examples" / "scripts" / "prepare_ade20k.py"
    subprocess.run([sys.executable, script, folder, tmp_path / "ade20k"], check=True, stdout=subprocess.DEVNULL)
    names = [str(tmp_path / "ade20k" / "classes.txt")]
    arguments = DataArguments(source=str(tmp_path / "ade20k"), record_type="segmentation", label_names=names)
    assert segmentation_classes(arguments) == ["wall", "sky"]
    for split, part in (("train", "training"), ("validation", "validation")):
        records = load_records(arguments, split)
        assert [record["id"] for record in records] == [f"ADE_{part}_0", f"ADE_{part}_1"]
        expected = load_segmentation_map(make_record(0)["segmentation_map"])
        assert np.array_equal(load_segmentation_map(records[0]["segmentation_map"]), expected)


# The processor


def make_processor() -> MomeProcessor:
    return MomeProcessor(make_image_processor(), train_bert_tokenizer(["a dog", "a cat"], 60))


@pytest.mark.parametrize("make", [make_image_processor, make_processor])
def test_the_processor_makes_labels_of_the_pictures_size(make):
    record = make_record()
    picture, classes = (Image.open(io.BytesIO(record[name]["bytes"])) for name in ("image", "segmentation_map"))
    batch = make()(picture, segmentation_maps=classes, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, SIDE, SIDE)
    expected = classes.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    assert batch["labels"].tolist() == [np.asarray(expected).tolist()]
    assert batch["labels"].dtype == torch.int64


def test_the_processor_takes_several_maps_and_other_sizes():
    pictures, maps = [Image.new("RGB", (8, 6))] * 2, np.zeros((2, 6, 8), dtype=np.uint8)
    batch = make_image_processor()(pictures, maps, size=24, return_tensors="np")
    assert batch["labels"].shape == (2, 24, 24)


def test_the_processor_reduces_labels_in_a_call_or_for_good():
    picture, classes = Image.new("RGB", (3, 2)), MAP
    expected = [[IGNORED, 0, 1], [2, IGNORED, IGNORED]]
    options = {"segmentation_maps": classes, "do_resize": False, "return_tensors": "pt"}
    assert make_image_processor()(picture, do_reduce_labels=True, **options)["labels"][0].tolist() == expected
    assert make_image_processor(do_reduce_labels=True)(picture, **options)["labels"][0].tolist() == expected


def test_reducing_labels_is_saved_with_the_image_processor(tmp_path):
    make_image_processor(do_reduce_labels=True).save_pretrained(tmp_path)
    assert MomeImageProcessorPil.from_pretrained(tmp_path).do_reduce_labels is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"segmentation_maps": [MAP, MAP]}, "1 pictures and 2 segmentation maps"),
        ({"segmentation_maps": MAP[:1]}, "Picture 0 has 2 x 3 pixels .* map 1 x 3"),
        ({"segmentation_maps": Image.new("RGB", (3, 2))}, "tell classes by colours"),
        ({"segmentation_maps": MAP, "do_center_crop": True, "crop_size": 2}, "switch do_center_crop off"),
    ],
)
def test_maps_that_do_not_fit_their_pictures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_image_processor()(Image.new("RGB", (3, 2)), **arguments)


@pytest.mark.parametrize(
    "inputs", [{"text": "a dog"}, {"images": [[Image.new("RGB", (3, 2))] * 2]}], ids=["text", "pairs"]
)
def test_maps_belong_to_single_pictures(inputs):
    with pytest.raises(ValueError, match="Segmentation maps"):
        make_processor()(**inputs, segmentation_maps=MAP)


@pytest.mark.parametrize("make", [make_image_processor, make_processor])
def test_logits_become_maps_of_the_size_that_is_asked_for(make):
    logits = torch.randn(2, 3, 4, 4)
    maps = make().post_process_semantic_segmentation(SimpleNamespace(logits=logits))
    assert torch.equal(torch.stack(maps), logits.argmax(1))
    sizes = [(7, 5), (4, 12)]
    maps = make().post_process_semantic_segmentation(SimpleNamespace(logits=logits), target_sizes=sizes)
    for own, size, one in zip(logits, sizes, maps):
        resized = torch.nn.functional.interpolate(own[None], size, mode="bilinear")
        assert torch.equal(one, resized[0].argmax(0))
    with pytest.raises(ValueError, match="2 pictures and 1 target sizes"):
        make().post_process_semantic_segmentation(SimpleNamespace(logits=logits), target_sizes=sizes[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_logit_is_found_a_few_classes_at_a_time(dtype, monkeypatch):
    seen = []
    interpolate = torch.nn.functional.interpolate
    monkeypatch.setattr(
        torch.nn.functional,
        "interpolate",
        lambda values, **options: (seen.append(len(values[0])), interpolate(values, **options))[1],
    )
    monkeypatch.setattr(processing_mome, "_LOGITS_AT_ONCE", 1000)
    torch.manual_seed(0)
    logits = torch.randn(1, 11, 6, 5).round().to(dtype)  # with equal ones
    (one,) = make_image_processor().post_process_semantic_segmentation(SimpleNamespace(logits=logits), [(21, 13)])
    assert seen == [3, 3, 3, 2]
    assert torch.equal(one, interpolate(logits.float(), (21, 13), mode="bilinear")[0].argmax(0))


# Augmentation


def apply(record=None, seed=0, **options):
    record = record or make_record(size=(60, 40))
    image = Image.open(io.BytesIO(record["image"]["bytes"]))
    segmentation_map = load_segmentation_map(record["segmentation_map"])
    return SegmentationAugmentation(**options)(image, segmentation_map, random.Random(seed))


SMALL = {"crop_size": 32, "base_size": 40, "max_size": 160}


@pytest.mark.parametrize("seed", range(8))
def test_picture_and_map_change_together(seed):
    image, segmentation_map = apply(seed=seed, distort=False, **SMALL)
    assert image.size == (32, 32)
    assert segmentation_map.shape == (32, 32)
    red = np.asarray(image)[..., 0].astype(int)
    labelled = segmentation_map != IGNORED
    agrees = np.abs(red - 60 * segmentation_map)[labelled] <= 10
    assert agrees.mean() > 0.75  # all but the borders of areas, where colours mix


def test_what_is_filled_up_has_the_fill_colour_and_no_class():
    options = {**SMALL, "min_ratio": 0.5, "max_ratio": 0.5, "flip": False, "distort": False, "fill": (1, 2, 3)}
    image, segmentation_map = apply(**options)  # 60 x 40 becomes 30 x 20
    assert (segmentation_map[:20, :30] != IGNORED).all()
    assert (segmentation_map[20:] == IGNORED).all()
    assert (segmentation_map[:, 30:] == IGNORED).all()
    assert np.asarray(image)[20:].reshape(-1, 3).tolist() == [[1, 2, 3]] * (12 * 32)


def test_pictures_are_resized_bilinearly():
    options = {**SMALL, "min_ratio": 2, "max_ratio": 2, "crop_size": 120, "flip": False, "distort": False}
    record = make_record(size=(60, 40))
    expected = Image.open(io.BytesIO(record["image"]["bytes"])).resize((120, 80), Image.Resampling.BILINEAR)
    image, _ = apply(record, **options)
    assert np.array_equal(np.asarray(image)[:80], np.asarray(expected))


def test_the_longer_side_is_limited():
    options = {"crop_size": 64, "base_size": 40, "max_size": 48, "min_ratio": 1, "max_ratio": 1}
    _, segmentation_map = apply(**options)  # 60 x 40 becomes 48 x 32
    labelled = np.argwhere(segmentation_map != IGNORED)
    assert (labelled.max(0) + 1).tolist() == [32, 48]


def test_factors_are_drawn_between_the_ratios():
    options = {"crop_size": 400, "base_size": 40, "max_size": 400, "min_ratio": 0.5, "max_ratio": 2.0}
    heights = [(np.argwhere(apply(seed=seed, **options)[1] != IGNORED).max(0) + 1)[0] for seed in range(40)]
    assert 20 <= min(heights) < 28
    assert 72 < max(heights) <= 80


def test_parts_with_too_much_of_one_class_are_drawn_again():
    classes = np.zeros((40, 400), dtype=np.uint8)
    classes[:, 180:220] = np.arange(40) % 2
    image = Image.fromarray(np.zeros((40, 400, 3), dtype=np.uint8))
    options = {"crop_size": 40, "base_size": 40, "max_size": 400, "min_ratio": 1, "max_ratio": 1, "distort": False}

    def share(seed, max_class_share):
        augment = SegmentationAugmentation(max_class_share=max_class_share, **options)
        return np.bincount(augment(image, classes, random.Random(seed))[1].ravel()).max() / 1600

    with_limit = [share(seed, 0.9) < 0.9 for seed in range(40)]
    without = [share(seed, 1.0) < 0.9 for seed in range(40)]
    assert sum(with_limit) > 1.5 * sum(without) > 0


def test_half_of_the_pictures_are_mirrored():
    options = {**SMALL, "crop_size": 60, "min_ratio": 1, "max_ratio": 1, "distort": False}
    record = make_record(size=(60, 40))
    plain = load_segmentation_map(record["segmentation_map"])
    mirrored = [np.array_equal(apply(record, seed, **options)[1][:40], plain[:, ::-1]) for seed in range(60)]
    assert 18 <= sum(mirrored) <= 42
    never = [np.array_equal(apply(record, seed, flip=False, **options)[1][:40], plain) for seed in range(20)]
    assert all(never)


def test_colours_change_within_their_ranges():
    image = Image.new("RGB", (4, 4), (120, 100, 110))
    seen = np.array([np.asarray(distort_colours(image, random.Random(seed)))[0, 0] for seed in range(300)], dtype=int)
    assert seen.mean(1).min() >= (110 - 32) * 0.5 - 12
    assert seen.mean(1).max() <= (110 + 32) * 1.5 + 12
    assert seen.mean(1).std() > 15
    unchanged = (seen == (120, 100, 110)).all(1).mean()
    assert 0.02 < unchanged < 0.12  # 1 in 16


def test_hue_turns_by_at_most_36_degrees():
    import colorsys

    image = Image.new("RGB", (2, 2), (200, 40, 40))
    hues = [
        colorsys.rgb_to_hsv(*(np.asarray(distort_colours(image, random.Random(seed)))[0, 0] / 255))[0] * 360
        for seed in range(200)
    ]
    turns = [min(hue, 360 - hue) for hue in hues]
    assert 25 < max(turns) <= 42  # pixels have 8 bits


def test_the_same_draws_give_the_same_result():
    first, second = apply(seed=5, **SMALL), apply(seed=5, **SMALL)
    assert first[0].tobytes() == second[0].tobytes()
    assert np.array_equal(first[1], second[1])
    assert apply(seed=6, **SMALL)[0].tobytes() != first[0].tobytes()


def test_it_has_a_name_in_the_settings():
    assert AUGMENTATIONS["segmentation"] is SegmentationAugmentation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 0}, "crop_size=0"),
        ({"base_size": 100, "max_size": 50}, "max_size=50"),
        ({"min_ratio": 2, "max_ratio": 1}, "min_ratio=2"),
        ({"min_ratio": 0}, "min_ratio=0"),
        ({"max_class_share": 0}, "max_class_share=0"),
        ({"fill": (1, 2)}, "must be a colour"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationAugmentation(**options)


# Batches


@pytest.mark.parametrize("make", [make_image_processor, make_processor])
def test_a_batch_holds_pictures_and_maps_of_one_size(make):
    batch = make_collator(processor=make())([make_record(0), make_record(1, size=(9, 31))])
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["pixel_values"].shape == (2, 3, SIDE, SIDE)
    assert batch["labels"].shape == (2, SIDE, SIDE)
    red = (batch["pixel_values"][:, 0] + 1) * 127.5
    assert ((red - 60 * batch["labels"]).abs() < 12).float().mean() > 0.6  # colours mix at borders


def test_augmented_batches_are_a_function_of_epoch_and_record():
    records = [make_record(index, size=(60, 40)) for index in range(4)]
    collator = make_collator(augment=SegmentationAugmentation(**{**SMALL, "crop_size": SIDE}))
    collator.set_epoch(1)
    whole = collator(records)
    again = [collator([record]) for record in reversed(records)]
    for name in ("pixel_values", "labels"):
        assert torch.equal(whole[name], torch.cat([batch[name] for batch in reversed(again)]))
    collator.set_epoch(2)
    assert not torch.equal(collator(records)["pixel_values"], whole["pixel_values"])


def test_records_without_ids_draw_differently_by_their_maps():
    seen = []
    collator = make_collator(
        augment=lambda image, classes, generator: (seen.append(generator.random()), (image, classes))[1]
    )
    collator.set_epoch(0)
    collator([{k: v for k, v in make_record(index).items() if k != "image_id"} for index in range(4)])
    assert len(set(seen)) == 4


def test_labels_are_reduced_where_the_processor_says_so():
    batch = make_collator(processor=make_image_processor(do_reduce_labels=True))([make_record(0)])
    plain = make_collator()([make_record(0)])["labels"]
    assert torch.equal(batch["labels"], torch.where(plain == 0, IGNORED, plain - 1))


MANY = {f"class {number}": number for number in range(300)}


@pytest.mark.parametrize("augment", [None, SegmentationAugmentation(**{**SMALL, "crop_size": 64, "max_ratio": 1})])
def test_the_255th_of_many_classes_counts_and_the_configured_label_does_not(augment):
    classes = np.full((14, 20), 255, dtype=np.int64)
    classes[:7] = 299
    classes[:2] = -100
    options = {"label2id": MANY, "semantic_loss_ignore_index": -100, "augment": augment}
    options["processor"] = MomeImageProcessorPil(size=64)
    labels = make_collator(**options)([{**make_record(), "segmentation_map": classes}])["labels"]
    assert labels.unique().tolist() == [-100, 255, 299]
    assert (make_collator(**options)([{**make_record(), "segmentation_map": None}])["labels"] == -100).all()


@pytest.mark.parametrize(
    ("number", "ignored", "reduces", "message"),
    [
        (256, 255, False, "semantic_loss_ignore_index=255"),
        (300, 7, False, "semantic_loss_ignore_index=7"),
        (255, 255, True, "number above 255"),
    ],
)
def test_a_label_for_what_does_not_count_must_be_no_class(number, ignored, reduces, message):
    options = {"label2id": dict(list(MANY.items())[:number]), "semantic_loss_ignore_index": ignored}
    with pytest.raises(ValueError, match=message):
        make_collator(processor=make_image_processor(do_reduce_labels=reduces), **options)


BAD_RECORDS = {
    "picture": ({"image": {"bytes": b"broken", "path": None}}, "image", "Cannot|cannot"),
    "map": ({"segmentation_map": b"broken"}, "other", "segmentation map cannot be read"),
    "no map": ({"segmentation_map": None}, "other", "there is none"),
    "size": ({"segmentation_map": MAP}, "other", r"picture has 20 x 14 pixels .* map 3 x 2"),
    "class": (
        {"segmentation_map": np.full((14, 20), 9)},
        "other",
        "holds 9; the model has the classes 0 to 3, and 255",
    ),
    "negative": ({"segmentation_map": np.full((14, 20), -1)}, "other", "holds -1"),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_a_bad_record_leaves_the_batch_and_is_counted(kind, caplog):
    change, reason, message = BAD_RECORDS[kind]
    collator = make_collator()
    batch = collator([make_record(0), {**make_record(1), **change}, make_record(2)])
    assert len(batch["labels"]) == 2
    assert collator.bad_samples.counts == {"seen": 3, "bad": 1, "image": 0, "captions": 0, "other": 0, reason: 1}
    with pytest.raises(BadSampleError, match=message):
        make_collator(bad_samples=BadSamplePolicy("raise"))([{**make_record(1), **change}])


def test_a_batch_without_good_records_is_white_and_has_no_label():
    for augment in (None, SegmentationAugmentation(**SMALL)):
        batch = make_collator(augment=augment)([{**make_record(), "segmentation_map": None}])
        assert batch["pixel_values"].shape == (1, 3, SIDE, SIDE)
        assert (batch["pixel_values"] == 1).all()
        assert (batch["labels"] == IGNORED).all()


def test_a_wrong_column_is_a_mistake_of_the_settings():
    with pytest.raises(ValueError, match=r"no 'segmentation_map'.*label_column"):
        make_collator()([{"image": make_record()["image"], "label": 3}])


def test_augmentations_of_pictures_alone_are_refused():
    with pytest.raises(TypeError, match="RandomResizedCrop changes pictures alone"):
        make_collator(augment=RandomResizedCrop())


def test_pictures_are_not_shrunk_as_they_are_read():
    with pytest.raises(ValueError, match="size_hint"):
        make_collator(size_hint=8)


def test_it_works_in_several_processes():
    records = [make_record(index) for index in range(6)]
    records[2] = {**records[2], "segmentation_map": None}
    collator = make_collator(augment=SegmentationAugmentation(**SMALL))
    collator.set_epoch(0)
    loader = DataLoader(records, batch_size=2, num_workers=2, collate_fn=collator)
    labels = torch.cat([batch["labels"] for batch in loader])
    assert len(labels) == 5
    assert collator.bad_samples.counts["bad"] == 1
    alone = torch.cat([collator(records[start : start + 2])["labels"] for start in (0, 2, 4)])
    assert torch.equal(labels, alone)
