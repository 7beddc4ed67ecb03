"""Semantic segmentation from settings to scores, with VL-BEiT on drawn scenes.

Covers: a run from YAML, its repository and predictions; a start from pre-training at another size; augmentation and
reduced labels in settings; names of classes; overfitting; saving, batch norm included, and loading at other sizes;
pictures of one row; the schedule of the recipe; scores against maps computed by hand, baselines, bad records, sliding
windows; the label of pixels that do not count; batch norm over several processes; bad settings.
"""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, get_scheduler

from hf_vlp import VlBeitConfig, VlBeitForPreTraining, VlBeitForSemanticSegmentation, evaluation_segmentation
from hf_vlp.data.collators import BadSampleError, BadSamplePolicy
from hf_vlp.data.scenes import SHAPES
from hf_vlp.data.segmentation import SegmentationCollator, load_segmentation_map
from hf_vlp.data.sources import DataArguments, load_records
from hf_vlp.evaluation import evaluate_model
from hf_vlp.metrics.segmentation import segmentation_metrics
from hf_vlp.models.mome.mome_segmentation import predict_sliding
from hf_vlp.models.mome.processing_mome import MomeImageProcessorPil, MomeProcessor
from hf_vlp.pretraining.arguments import parse_arguments, read_yaml
from hf_vlp.pretraining.run import train
from hf_vlp.pretraining.trainer import make_parameter_groups, synchronise_batch_norm
from tests.training.tiny_recipes import CONFIGS
from tests.training.tiny_vlmo import make_processor

CLASSES = ["background", *SHAPES]
CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vl_expert_start_layer": 4,
    "image_size": 32,
    "patch_size": 8,
    "max_text_length": 16,
    "max_text_length_of_table": 24,
    "layer_scale_init_value": None,
    "drop_path_rate": 0.0,
    "initializer_range": 0.15,
    "auxiliary_channels": 8,
}


def make_config(**options) -> VlBeitConfig:
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    return VlBeitConfig(**{**CONFIG, "vocab_size": 60, **labels, **options})


def make_model(seed=0, **options) -> VlBeitForSemanticSegmentation:
    torch.manual_seed(seed)
    return VlBeitForSemanticSegmentation(make_config(**options)).eval()


def make_records(number: int, split="train", size=32):
    arguments = DataArguments(record_type="segmentation", num_scenes=number, num_eval_scenes=number, scene_size=size)
    return [dict(record) for record in load_records(arguments, split)]


def make_settings(output_dir, **sections) -> dict:
    settings = {
        "task": "semantic_segmentation",
        "model": {"architecture": "vl_beit", "config": CONFIG, "vocab_size": 60},
        "data": {"source": "scenes", "num_scenes": 8, "num_eval_scenes": 4, "scene_size": 32},
        "training": {
            "output_dir": str(output_dir),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "evaluation": {"batch_size": 4},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return settings


def run(output_dir, **sections) -> dict:
    return train(make_settings(output_dir, **sections), show=lambda text: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    training = {"eval_strategy": "steps", "eval_steps": 2}
    augment = {"segmentation": {"crop_size": 32, "base_size": 32, "max_size": 64}}
    return folder, run(folder, training=training, batches={"augment": augment})


def test_a_run_measures_the_scores_and_their_baselines(trained):
    _, metrics = trained
    for name in ("mean_iou", "pixel_accuracy", "mean_accuracy"):
        for prefix in ("", "shuffled_", "constant_"):
            assert 0 <= metrics[f"validation_{prefix}{name}"] <= 1
    assert metrics["validation_constant_answer"] == "background"
    assert metrics["validation_samples"] == 4


def test_a_run_leaves_a_repository_that_loads(trained):
    folder, _ = trained
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert [model.config.id2label[number] for number in range(7)] == CLASSES
    pixels = AutoImageProcessor.from_pretrained(folder)(torch.zeros(3, 50, 40, dtype=torch.uint8), return_tensors="pt")
    assert model(**pixels).logits.shape == (1, 7, 16, 16)
    rows = json.loads((folder / "predictions" / "validation.json").read_text())["predictions"]
    assert len(rows) == 4
    assert set(rows[0]) == {"id", "mean_iou", "pixel_accuracy", "mean_accuracy"}


def test_a_run_starts_from_pretraining_at_another_size(tmp_path):
    processor = make_processor()
    torch.manual_seed(0)
    VlBeitForPreTraining(VlBeitConfig(**{**CONFIG, "vocab_size": len(processor.tokenizer)})).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = {"config": {"image_size": 48, "decoder_hidden_size": 12}, "model_name_or_path": str(tmp_path)}
    sections = {"model": {**model, "vocab_size": 2000}}
    run(tmp_path / "fine", **sections)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "fine")
    assert model.config.image_size == 48
    assert model.segmentation_head.decoder.channels == 12
    assert model.config.id2label[6] == "star"
    assert MomeProcessor.from_pretrained(tmp_path / "fine").image_processor.size == {"height": 48, "width": 48}


def test_classes_that_begin_at_one_are_reduced_by_the_image_processor(tmp_path):
    names = CLASSES[1:]
    metrics = run(
        tmp_path, model={"image_processor": {"do_reduce_labels": True}}, data={"label_names": names}
    )  # background is no class any more
    assert metrics["bad_samples"]["bad"] == 0
    assert metrics["validation_constant_answer"] in SHAPES
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path).config.num_labels == 6
    assert AutoImageProcessor.from_pretrained(tmp_path).do_reduce_labels is True


def test_too_few_names_stop_the_run_and_name_the_classes(tmp_path):
    settings = {"data": {"label_names": CLASSES[:2]}, "batches": {"bad_samples": "raise"}}
    with pytest.raises(ValueError, match="the model has the classes 0 to 1"):
        run(tmp_path, **settings)


def test_a_new_head_needs_the_names_of_its_classes(tmp_path):
    lines = [json.dumps({"image": "a.png", "segmentation_map": "b.png", "captions": ["a dog"]})]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"")  # it only has to exist
    with pytest.raises(ValueError, match=r"set data\.label_names"):
        run(tmp_path / "out", data={"source": str(tmp_path)})


def test_two_scenes_are_learnt_by_heart():
    model, records = make_model(), make_records(2)
    batch = SegmentationCollator(MomeImageProcessorPil(size=32), label2id=model.config.label2id)(records)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    model.train()
    losses = []
    for _ in range(60):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]
    scores = evaluate_model(
        model,
        MomeImageProcessorPil(size=32),
        records,
        "semantic_segmentation",
        training_records=records,
        progress=False,
    )
    assert scores["pixel_accuracy"] > scores["constant_pixel_accuracy"] + 0.05
    assert scores["mean_iou"] > 2 * scores["constant_mean_iou"]


def test_saving_keeps_the_statistics_of_batch_norm(tmp_path):
    model = make_model().train()
    for _ in range(3):
        model(pixel_values=torch.randn(2, 3, 32, 32))
    model.eval().save_pretrained(tmp_path)
    loaded = VlBeitForSemanticSegmentation.from_pretrained(tmp_path)
    assert loaded.segmentation_head.neck.times_4[1].num_batches_tracked == 3
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(pixel_values=pixels).logits, model(pixel_values=pixels).logits)


@pytest.mark.parametrize("size", [24, 64])
def test_a_checkpoint_loads_at_another_size(tmp_path, size):
    make_model().save_pretrained(tmp_path)
    model = VlBeitForSemanticSegmentation.from_pretrained(tmp_path, image_size=size)
    assert model(pixel_values=torch.randn(1, 3, size, size)).logits.shape == (1, 7, size // 2, size // 2)


def test_a_batch_of_one_picture_trains():
    model = make_model().train()
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    loss = model(pixel_values=torch.randn(1, 3, 32, 32), labels=labels).loss
    loss.backward()
    assert loss.isfinite()


def test_labels_out_of_range_are_named_by_the_model():
    with pytest.raises(ValueError, match="hold 9; the model has the classes 0 to 6"):
        make_model()(pixel_values=torch.randn(1, 3, 32, 32), labels=torch.full((1, 32, 32), 9))


def test_the_last_of_the_maps_is_the_output_of_the_last_block():
    model, pixels = make_model(out_indices=[0, 0, 1, 3]), torch.randn(1, 3, 32, 32)
    seen = []
    model.segmentation_head.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        states = model(pixel_values=pixels, output_hidden_states=True).hidden_states
    for one, block in zip(seen[0], (0, 0, 1, 3)):
        expected = states[block + 1][:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
        assert torch.equal(one, expected)


def test_the_recipe_of_ade20k_warms_up_and_falls_along_a_line_with_decayed_layers(tmp_path):
    content = read_yaml(CONFIGS / "vl_beit_base_ade20k.yaml")
    training = parse_arguments(content, {"training.output_dir": str(tmp_path), "training.bf16": False}).training
    assert (training.warmup_steps, training.max_steps) == (1500, 160_000)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], training.learning_rate)
    schedule = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        training.warmup_steps,
        training.max_steps,
        scheduler_specific_kwargs=training.lr_scheduler_kwargs,
    )
    factor = schedule.lr_lambdas[0]
    assert factor(750) == pytest.approx(0.5)
    assert factor(1500) == 1
    assert factor((1500 + 160_000) // 2) == pytest.approx(0.5)
    assert factor(160_000) == 0
    groups = make_parameter_groups(make_model(), training)
    rates = sorted({group["lr"] for group in groups})
    assert rates == pytest.approx([7e-4 * 0.65**depth for depth in range(5, -1, -1)])
    assert {group["lr"] for group in groups if group["name"] == "head"} == {7e-4}


# Scores


@torch.no_grad()
def by_hand(model, records, size=32):
    maps = []
    for record in records:
        reference = load_segmentation_map(record["segmentation_map"])
        image = MomeImageProcessorPil(size=size)(_open(record["image"]), return_tensors="pt")
        logits = nn.functional.interpolate(model(**image).logits, reference.shape, mode="bilinear")
        maps.append((logits[0].argmax(0).numpy(), reference))
    return maps


def _open(cell):
    return Image.open(io.BytesIO(cell["bytes"])).convert("RGB")


def evaluate(model, records, **options):
    processor = MomeImageProcessorPil(size=32)
    return evaluate_model(model, processor, records, "semantic_segmentation", progress=False, **options)


def test_scores_are_those_of_maps_at_their_own_size():
    model, records = make_model(initializer_range=0.5), make_records(5, size=44)
    maps = by_hand(model, records)
    expected = segmentation_metrics(*zip(*maps), 7)
    scores = evaluate(model, records, batch_size=2)
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert len(np.unique([one for one, _ in maps])) > 1, "several classes must be predicted"


def test_the_label_of_pixels_that_do_not_count_comes_from_the_configuration():
    records = make_records(3)
    references = [load_segmentation_map(record["segmentation_map"]) for record in records]
    ignored = [
        {**record, "segmentation_map": np.where(one == 0, 255, one)} for record, one in zip(records, references)
    ]
    options = {"model": make_model(), "records": ignored, "training_records": ignored}
    expected = evaluate(**options)
    other = [{**record, "segmentation_map": np.where(one == 0, -100, one)} for record, one in zip(records, references)]
    options = {"model": make_model(semantic_loss_ignore_index=-100), "records": other, "training_records": other}
    scores = evaluate(**options)
    for name in ("samples", "mean_iou", "pixel_accuracy", "constant_pixel_accuracy", "constant_answer"):
        assert scores[name] == expected[name]


def test_a_run_trains_with_the_label_that_the_configuration_has(tmp_path):
    model = {"config": {**CONFIG, "semantic_loss_ignore_index": -100}, "image_processor": {"do_reduce_labels": True}}
    metrics = run(tmp_path, model=model, data={"label_names": CLASSES[1:]})
    assert metrics["bad_samples"]["bad"] == 0
    assert metrics["validation_samples"] == 4


def test_a_class_with_the_number_of_what_does_not_count_is_refused():
    labels = {number: f"class {number}" for number in range(300)}
    with pytest.raises(ValueError, match="semantic_loss_ignore_index=255 is one of the 300 classes"):
        make_model(id2label=labels, label2id={name: number for number, name in labels.items()})


def test_the_constant_is_the_most_frequent_class_of_training():
    records = make_records(3)
    references = [load_segmentation_map(record["segmentation_map"]) for record in records]
    expected = segmentation_metrics([np.zeros_like(one) for one in references], references, 7)
    scores = evaluate(make_model(), records, training_records=make_records(6))
    assert {name: scores[f"constant_{name}"] for name in expected} == pytest.approx(expected)
    assert scores["constant_answer"] == "background"


def test_other_pictures_are_scored_against_the_own_maps():
    model, records = make_model(initializer_range=0.5), make_records(2)
    first, second = by_hand(model, records)
    expected = segmentation_metrics([second[0], first[0]], [first[1], second[1]], 7)
    scores = evaluate(model, records, shuffled_pictures=True)
    assert {name: scores[f"shuffled_{name}"] for name in expected} == pytest.approx(expected)


def test_windows_slide_over_pictures_resized_in_proportion():
    model, (record,) = make_model(initializer_range=0.5), make_records(1, size=60)
    reference = load_segmentation_map(record["segmentation_map"])
    pixels = MomeImageProcessorPil(size=48)(_open(record["image"]), return_tensors="pt")["pixel_values"]
    logits = nn.functional.interpolate(predict_sliding(model, pixels, stride=16), reference.shape, mode="bilinear")
    expected = segmentation_metrics([logits[0].argmax(0)], [reference], 7)
    scores = evaluate(model, [record], sliding_window={"shortest_edge": 48, "stride": 16}, batch_size=3)
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


def test_windows_are_set_in_the_yaml(tmp_path, monkeypatch):
    seen = []

    def spy(model, pixel_values, **options):
        seen.append((tuple(pixel_values.shape), options["stride"]))
        return predict_sliding(model, pixel_values, **options)

    monkeypatch.setattr(evaluation_segmentation, "predict_sliding", spy)
    metrics = run(tmp_path, evaluation={"batch_size": 4, "sliding_window": {"shortest_edge": 48, "stride": 16}})
    assert metrics["validation_samples"] == 4
    assert seen
    assert set(seen) == {((1, 3, 48, 48), 16)}


def test_an_unknown_option_of_the_windows_is_named():
    with pytest.raises(ValueError, match=r"sliding_window has no option \['step'\]"):
        evaluate(make_model(), make_records(1), sliding_window={"step": 2})


def test_bad_records_are_left_out_and_counted():
    good = make_records(2)
    bad = [
        {**good[0], "image": {"bytes": b"", "path": None}},
        {**good[0], "segmentation_map": None},
        {**good[0], "segmentation_map": np.zeros((3, 3), dtype=np.uint8)},
        {**good[0], "segmentation_map": np.full((32, 32), 7)},
    ]
    scores = evaluate(make_model(), [*bad, *good], shuffled_pictures=True)
    alone = evaluate(make_model(), good)
    assert (scores["samples"], scores["skipped_samples"]) == (2, 4)
    assert scores["mean_iou"] == alone["mean_iou"]
    with pytest.raises(ValueError, match="None of the 4 records"):
        evaluate(make_model(), bad)


def test_each_record_is_counted_once():
    good = make_records(2)
    bad = [{**good[0], "image": {"bytes": b"", "path": None}}, {**good[0], "segmentation_map": None}]
    policy = BadSamplePolicy()
    evaluate(make_model(), [*bad, *good], shuffled_pictures=True, bad_samples=policy)
    assert policy.counts == {"seen": 4, "bad": 2, "image": 1, "captions": 0, "other": 1}


def test_bad_maps_in_a_row_stop_the_evaluation():
    good = make_records(1)
    bad = [{**good[0], "segmentation_map": None}] * 3
    with pytest.raises(BadSampleError, match="3 samples in a row"):
        evaluate(make_model(), [*bad, *good], bad_samples=BadSamplePolicy(max_in_a_row=3), batch_size=1)


def test_a_record_is_measured_where_there_is_no_other_picture():
    (record,) = make_records(1)
    for records in ([record], [record, {**record, "image": {"bytes": b"", "path": None}}]):
        scores = evaluate(make_model(), records, shuffled_pictures=True)
        assert scores["samples"] == 1
        assert "shuffled_mean_iou" not in scores


# Several processes


@pytest.mark.parametrize(
    ("world_size", "device", "changes"), [(2, "cuda", True), (1, "cuda", False), (2, "cpu", False)]
)
def test_batch_norm_is_synchronised_between_processes_on_gpus(world_size, device, changes):
    model = make_model()
    names = list(model.state_dict())
    synchronise_batch_norm(model, SimpleNamespace(world_size=world_size, device=torch.device(device)))
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    assert kinds == {nn.SyncBatchNorm if changes else nn.BatchNorm2d}
    assert list(model.state_dict()) == names
