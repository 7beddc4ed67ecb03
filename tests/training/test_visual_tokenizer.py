"""Visual tokens in training: the frozen tokenizer that makes targets, and a run that trains one.

Covers: ids of both views of a batch, equal to the tokenizer's, without gradient, the tokenizer in evaluation mode and
unchanged; any callable; wrong ids, batches for which there is no tokenizer, tokenizers of another vocabulary or grid,
folders with something else; a loss in evaluation for models without labels, and for those with several sources; size
of a batch of several sources; ids of the data made once, by all processes, under the settings of the run; a run:
trains, measures beside the mean patch, saves a tokenizer that loads, resumes exactly with its codebook; a second run
that takes the tokenizer and its vocabulary; features of a teacher.
"""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BeitConfig, BeitModel
from transformers.modeling_outputs import ModelOutput

from hf_vlp import MomeImageProcessorPil, VlBeitVqkdForTraining, VlBeitVqkdTokenizer
from hf_vlp.data.collators import BadSampleError, BadSamplePolicy
from hf_vlp.evaluation import evaluate_model
from hf_vlp.pretraining.arguments import VlpTrainingArguments, parse_arguments
from hf_vlp.pretraining.build import get_model_class
from hf_vlp.pretraining.run import train
from hf_vlp.pretraining.trainer import VlpTrainer
from hf_vlp.pretraining.visual_tokens import (
    PatchTeacher,
    PictureCollator,
    VisualTokens,
    cache_visual_tokens,
    check_visual_tokenizer,
    load_visual_tokenizer,
    prepare_visual_tokens,
    visual_vocabulary,
)
from tests.models.tiny_vqkd import SIZES, make_pixels, make_tokenizer, make_training_model
from tests.training.tiny import make_records

PROCESSOR = MomeImageProcessorPil(size={"height": 16, "width": 16}, do_normalize=False)


# ---- the frozen tokenizer


def test_both_views_of_a_batch_become_ids():
    tokenizer = make_tokenizer().train()
    visual_tokens = VisualTokens(tokenizer)
    pairs, pictures = make_pixels(2), make_pixels(3, seed=1)
    labels = torch.zeros(2, 4)
    batch = {"labels": labels, "tokenizer_pixel_values": pairs, "image_tokenizer_pixel_values": pictures}
    found = visual_tokens(batch)
    assert set(found) == {"labels", "visual_token_ids", "image_visual_token_ids"}
    assert found["labels"] is labels
    assert torch.equal(found["visual_token_ids"], make_tokenizer().get_token_ids(pairs))
    assert torch.equal(found["image_visual_token_ids"], make_tokenizer().get_token_ids(pictures))
    assert not tokenizer.training
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_any_callable_is_a_tokenizer():
    ids = VisualTokens(lambda pixels: (pixels.mean(1).flatten(1)[:, :4] * 10).int())(
        {"tokenizer_pixel_values": make_pixels()}
    )
    assert ids["visual_token_ids"].shape == (3, 4)
    assert ids["visual_token_ids"].dtype == torch.int64


@pytest.mark.parametrize(
    "wrong", (lambda pixels: pixels, lambda pixels: torch.zeros(2, 4, dtype=torch.long), lambda pixels: [1, 2])
)
def test_ids_of_another_kind_are_refused(wrong):
    with pytest.raises(ValueError, match=r"whole numbers of the shape \(3, patches\)"):
        VisualTokens(wrong)({"tokenizer_pixel_values": make_pixels()})


class Predictor(nn.Module):
    """Predicts visual tokens of two sources; each batch has one or both of them."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(12))
        self.seen = []

    def forward(
        self,
        pixel_values=None,
        visual_token_ids=None,
        labels=None,
        image_pixel_values=None,
        image_visual_token_ids=None,
        text_input_ids=None,
        text_labels=None,
        return_loss=True,
    ):
        self.seen.append((visual_token_ids, image_visual_token_ids))
        losses = {
            name: nn.functional.cross_entropy(self.logits.expand(ids.numel(), -1), ids.flatten())
            for name, ids in (("mim", visual_token_ids), ("mvlm_image", image_visual_token_ids))
            if ids is not None
        }
        return ModelOutput(loss=sum(losses.values()), losses=losses)


class TargetsWithoutLabels(nn.Module):
    """No argument is called labels, and `return_loss` is not taken either."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pixel_values=None, visual_token_ids=None):
        return ModelOutput(loss=self.weight.sum() * visual_token_ids.float().mean())


def collate(rows):
    pixels = torch.stack(rows)
    batch = {"pixel_values": pixels, "tokenizer_pixel_values": pixels}
    return batch | {"image_pixel_values": pixels[:2], "image_tokenizer_pixel_values": pixels[:2]}


def make_trainer(model, tmp_path, *, collator=collate, visual_tokens="make", **options):
    arguments = {"per_device_train_batch_size": 4, "max_steps": 2, "logging_steps": 1, "save_strategy": "no"}
    return VlpTrainer(
        model=model,
        args=VlpTrainingArguments(
            str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True, **{**arguments, **options}
        ),
        train_dataset=list(make_pixels(8)),
        eval_dataset=list(make_pixels(4, seed=5)),
        data_collator=collator,
        visual_tokens=VisualTokens(make_tokenizer()) if visual_tokens == "make" else visual_tokens,
    )


def test_model_sees_ids_in_training_and_evaluation(tmp_path):
    model = Predictor()
    trainer = make_trainer(model, tmp_path)
    trainer.train()
    metrics = trainer.evaluate()
    for pairs, pictures in model.seen:
        assert pairs.shape == (4, 16)
        assert torch.equal(pairs[:2], pictures)
    assert torch.equal(model.seen[-1][0], make_tokenizer().get_token_ids(make_pixels(4, seed=5)))
    parts = metrics["eval_loss_mim"] + metrics["eval_loss_mvlm_image"]
    assert metrics["eval_loss"] == pytest.approx(parts, rel=1e-5)


def test_models_without_labels_have_a_loss_in_evaluation(tmp_path):
    def collator(rows):
        return {name: value for name, value in collate(rows).items() if not name.startswith("image_")}

    metrics = make_trainer(TargetsWithoutLabels(), tmp_path, collator=collator).evaluate()
    assert math.isfinite(metrics["eval_loss"])


def test_batch_for_which_there_is_no_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"set model\.visual_tokenizer_name_or_path"):
        make_trainer(Predictor(), tmp_path, visual_tokens=None).train()


def test_size_of_a_batch_counts_all_sources():
    pixels, ids = torch.zeros(3, 3, 8, 8), torch.zeros(5, 7)
    count = VlpTrainer._batch_size_of
    assert count({"pixel_values": pixels, "input_ids": ids[:3]}) == 3
    assert count({"pixel_values": pixels, "text_input_ids": ids, "image_pixel_values": pixels[:2]}) == 10
    assert count({"text_input_ids": ids, "text_attention_mask": ids}) == 5
    assert count({"image_pixel_values": pixels, "pixel_values": None}) == 3
    assert count({"input_ids": ids}) == 5
    assert count({"weights": None, "anything": ids}) == 5


def make_predictor(**config):
    from hf_vlp.models.mome.configuration_vlmo import VlmoConfig
    from hf_vlp.models.mome.modeling_vlmo import VlmoForMaskedImageModeling

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vl_expert_start_layer": 1, "image_size": 16, "patch_size": 4, "visual_vocab_size": 12, "vocab_size": 20}
    return VlmoForMaskedImageModeling(VlmoConfig(**{**sizes, **config}))


def test_tokenizer_that_does_not_fit_the_model_is_refused():
    tokenizer = make_tokenizer()
    check_visual_tokenizer(tokenizer, make_predictor())
    check_visual_tokenizer(lambda pixels: pixels, make_predictor(visual_vocab_size=7))
    with pytest.raises(ValueError, match=r"visual_vocab_size=13 visual tokens, the tokenizer has codebook_size=12"):
        check_visual_tokenizer(tokenizer, make_predictor(visual_vocab_size=13))
    with pytest.raises(ValueError, match=r"4 patches \(image_size=16, patch_size=8\), the tokenizer makes 16 tokens"):
        check_visual_tokenizer(tokenizer, make_predictor(patch_size=8))
    with pytest.raises(ValueError, match="predicts no visual tokens"):
        check_visual_tokenizer(tokenizer, make_training_model())


def test_tokenizer_is_loaded_frozen_and_told_from_other_models(tmp_path):
    make_training_model().save_pretrained(tmp_path / "tokenizer")
    make_predictor().save_pretrained(tmp_path / "model")
    tokenizer = load_visual_tokenizer(tmp_path / "tokenizer")
    assert type(tokenizer) is VlBeitVqkdTokenizer
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
    assert visual_vocabulary(tmp_path / "tokenizer") == 12
    with pytest.raises(ValueError, match="holds a model of type 'vlmo', not a visual tokenizer"):
        load_visual_tokenizer(tmp_path / "model")
    for read in (load_visual_tokenizer, visual_vocabulary):
        with pytest.raises(ValueError, match="visual_tokenizer_name_or_path"):
            read(tmp_path / "nothing")


def test_ids_of_joint_records_are_made_once(tmp_path, monkeypatch):
    from hf_vlp.data import visual_tokens
    from hf_vlp.data.joint import JointRecords

    monkeypatch.setattr(visual_tokens, "default_cache_dir", lambda: tmp_path)
    tokenizer, pictures = make_tokenizer(), make_records(3)
    records = JointRecords({"pair": pictures, "text": [{"captions": ["a"]}], "image": pictures[:1]}, seed=3)
    cached = cache_visual_tokens(records, tokenizer)
    assert cached.seed == 3
    images = PROCESSOR(images=[record["image"] for record in pictures], return_tensors="pt")["pixel_values"]
    expected = tokenizer.get_token_ids(images).tolist()
    assert [cached[index]["pair"]["visual_token_ids"] for index in range(3)] == expected
    assert cached[0]["image"]["visual_token_ids"] == expected[0]
    assert "visual_token_ids" not in cached[0]["text"]


def test_each_process_tokenizes_its_share_and_has_all_ids(tmp_path, monkeypatch):
    from hf_vlp.data import visual_tokens as cache
    from hf_vlp.pretraining import visual_tokens

    monkeypatch.setattr(cache, "default_cache_dir", lambda: tmp_path)
    tokenizer, pictures, sizes, columns = make_tokenizer(), make_records(5), [], []
    find = tokenizer.get_token_ids
    monkeypatch.setattr(tokenizer, "get_token_ids", lambda pixels: (sizes.append(len(pixels)), find(pixels))[1])

    def gather(own):
        columns.extend(own)
        if len(columns) == 1:
            raise KeyboardInterrupt  # the first process would wait here
        return columns

    monkeypatch.setattr(visual_tokens, "gather_object", gather)
    for index in (0, 1):
        state = SimpleNamespace(device="cpu", process_index=index, num_processes=2, is_main_process=index == 0)
        monkeypatch.setattr(visual_tokens, "PartialState", lambda state=state: state)
        with nullcontext() if index else pytest.raises(KeyboardInterrupt):
            found = cache_visual_tokens(pictures, tokenizer)
    assert sizes == [2, 3]
    images = PROCESSOR(images=[record["image"] for record in pictures], return_tensors="pt")["pixel_values"]
    assert [record["visual_token_ids"] for record in found] == find(images).tolist()


def test_bad_pictures_have_the_limits_of_the_run(tmp_path, monkeypatch):
    from hf_vlp.data import visual_tokens
    from hf_vlp.data.joint import JointRecords

    monkeypatch.setattr(visual_tokens, "default_cache_dir", lambda: tmp_path)
    bad, policy = [{"image": b"no picture"}] * 2, BadSamplePolicy(max_in_a_row=3)
    cached = cache_visual_tokens(JointRecords({"pair": bad, "image": bad}), make_tokenizer(), bad_samples=policy)
    assert cached[1]["image"]["visual_token_ids"] is None
    with pytest.raises(BadSampleError, match="max_in_a_row=3"):
        cache_visual_tokens(bad * 2, make_tokenizer(), bad_samples=policy)


def test_settings_of_a_run_hold_while_its_tokens_are_cached(tmp_path, monkeypatch):
    from hf_vlp.data import visual_tokens

    seen = {}

    def stop(records, tokenizer, **options):
        seen.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(visual_tokens, "add_visual_tokens", stop)
    run = next_run(tmp_path)
    run["model"]["cache_visual_tokens"] = True
    run["batches"] = {"tokenizer_resample": "lanczos", "bad_samples": "raise", "max_bad_in_a_row": 7}
    with pytest.raises(KeyboardInterrupt):
        train(run)
    assert seen["resample"] == "lanczos"
    assert (seen["bad_samples"].policy, seen["bad_samples"].max_in_a_row) == ("raise", 7)


# ---- training one


def test_only_the_tokenizer_has_the_task():
    assert get_model_class("vl_beit_vqkd", "visual_tokenizer") is VlBeitVqkdForTraining
    for architecture in ("vlmo", "vc_gpt"):
        with pytest.raises(ValueError, match="no head for the task 'visual_tokenizer'"):
            get_model_class(architecture, "visual_tokenizer")
    with pytest.raises(ValueError, match="no head for the task 'pretraining', only for visual_tokenizer"):
        get_model_class("vl_beit_vqkd", "pretraining")


def test_collator_drops_and_counts_bad_pictures():
    policy = BadSamplePolicy()
    collator = PictureCollator(PROCESSOR, bad_samples=policy)
    batch = collator([*make_records(2), {"image": b"no picture"}])
    assert set(batch) == {"pixel_values"}
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert 0 <= batch["pixel_values"].min() <= batch["pixel_values"].max() <= 1
    assert policy.counts["image"] == 1
    assert collator([{"image": b"no picture"}])["pixel_values"].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("target", ("pixels", "features"))
def test_evaluation_stands_beside_the_mean_patch(target, tmp_path):
    model = make_training_model(target=target)
    if target == "features":
        model.set_teacher(lambda pixels: nn.functional.unfold(pixels, 4, stride=4).transpose(1, 2)[..., :6] - 0.3)
    records = [*make_records(6), {"image": b"no picture"}]
    scores = evaluate_model(
        model, PROCESSOR, records, "visual_tokenizer", batch_size=4, predictions_path=tmp_path / "counts.json"
    )
    pixels = PROCESSOR(images=[record["image"] for record in records[:6]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        ids, goal = model.get_token_ids(pixels), model.make_target(pixels)
        error = model(pixels).losses["reconstruction"].item()
    if target == "pixels":
        constant = (goal - goal.mean((0, 1))).square().mean().item()
    else:
        directions = nn.functional.normalize(goal, dim=-1)
        constant = 1 - nn.functional.cosine_similarity(directions, directions.mean((0, 1)), dim=-1).mean().item()
    assert scores["reconstruction_error"] == pytest.approx(error, rel=1e-4)
    assert scores["constant_reconstruction_error"] == pytest.approx(constant, rel=1e-4)
    assert scores["explained_variance"] == pytest.approx(1 - error / constant, rel=1e-3)
    shares = torch.bincount(ids.flatten()).float() / ids.numel()
    shares = shares[shares > 0]
    assert scores["codes_used"] == len(shares) / 12
    assert scores["perplexity"] == pytest.approx(math.exp(-(shares * shares.log()).sum()), rel=1e-4)
    assert (scores["pictures"], scores["skipped_pictures"]) == (6, 1)


def settings(tmp_path, **training):
    sizes = {**SIZES, "codebook_decay": 0.9}
    del sizes["target_dim"]
    return {
        "task": "visual_tokenizer",
        "model": {"architecture": "vl_beit_vqkd", "config": sizes},
        "data": {"source": "scenes", "num_scenes": 48, "num_eval_scenes": 8},
        "training": {
            "output_dir": str(tmp_path),
            "per_device_train_batch_size": 8,
            "max_steps": 6,
            "learning_rate": 1e-3,
            "save_steps": 3,
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 3,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **training,
        },
        "evaluation": {"num_samples": 4, "batch_size": 4},
    }


def test_run_trains_saves_and_resumes_with_its_codebook(tmp_path):
    metrics = train(settings(tmp_path / "whole"))
    assert {"validation_reconstruction_error", "validation_codes_used", "validation_perplexity"} <= set(metrics)
    whole = VlBeitVqkdForTraining.from_pretrained(tmp_path / "whole")
    assert whole.codebook.cluster_size.sum() > 0
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "Explained variance" in card
    train(settings(tmp_path / "parts", max_steps=6, save_total_limit=2))
    for folder in ("", "checkpoint-6"):  # as if it had been interrupted behind the third step
        for file in sorted((tmp_path / "parts" / folder).iterdir()):
            if file.is_file():
                file.unlink()
    (tmp_path / "parts" / "checkpoint-6").rmdir()
    train(settings(tmp_path / "parts", resume_from_checkpoint="true"))
    resumed = VlBeitVqkdForTraining.from_pretrained(tmp_path / "parts").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.state_dict().items())


def next_run(tmp_path) -> dict:
    """Masked image modelling with the visual tokenizer in `tokenizer`."""
    make_training_model().save_pretrained(tmp_path / "tokenizer")
    run = settings(tmp_path / "model", max_steps=2)
    run["task"] = "masked_image"
    sizes = make_predictor().config
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vl_expert_start_layer")
    run["model"] = {
        "architecture": "vlmo",
        "visual_tokenizer_name_or_path": str(tmp_path / "tokenizer"),
        "vocab_size": 200,
        "config": {"image_size": 16, "patch_size": 4, **{name: getattr(sizes, name) for name in names}},
    }
    run["data"]["record_type"] = "captions"  # a tokenizer of texts comes along with the model
    return run


def test_next_run_takes_the_tokenizer_and_its_vocabulary(tmp_path, monkeypatch):
    from hf_vlp.data import visual_tokens

    monkeypatch.setattr(visual_tokens, "default_cache_dir", lambda: tmp_path / "cache")
    run = next_run(tmp_path)
    for cache in (False, True):
        run["model"]["cache_visual_tokens"] = cache
        train(run)
        from hf_vlp.models.mome.modeling_vlmo import VlmoForMaskedImageModeling

        assert VlmoForMaskedImageModeling.from_pretrained(tmp_path / "model").config.visual_vocab_size == 12
        assert (tmp_path / "cache").exists() == cache
    run["model"]["config"]["visual_vocab_size"] = 99
    with pytest.raises(ValueError, match="codebook_size=12"):
        train(run)


def test_tokens_are_not_cached_for_patches_that_move(tmp_path, monkeypatch):
    from hf_vlp.data import visual_tokens

    monkeypatch.setattr(visual_tokens, "default_cache_dir", lambda: tmp_path / "cache")
    run = next_run(tmp_path)
    run["model"]["cache_visual_tokens"] = True
    run["batches"] = {"augment": {"random_resized_crop": {}}}
    with pytest.raises(ValueError, match="RandomResizedCrop trains on parts"):
        train(run)
    assert not (tmp_path / "cache").exists()  # before anything was tokenized


def test_what_a_run_has_no_use_for_is_named(tmp_path):
    run = settings(tmp_path)
    run["model"]["vlmo_model_name_or_path"] = "vlmo"
    with pytest.raises(ValueError, match=r"leave out model\.vlmo_model_name_or_path"):
        train(run)
    run = next_run(tmp_path)
    run["model"] |= {"visual_teacher_name_or_path": "clip"}
    shown: list[str] = []
    prepare_visual_tokens(parse_arguments(run), make_predictor(), shown.append)
    assert shown == [f"The teacher clip is not used: {type(make_predictor()).__name__} is no visual tokenizer."]


def test_features_need_a_teacher_of_the_same_grid(tmp_path):
    run = settings(tmp_path / "out", max_steps=2)
    run["model"]["config"] |= {"target": "features"}
    with pytest.raises(ValueError, match=r"set model\.visual_teacher_name_or_path"):
        train(run)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(0)
    for side in (16, 32):
        teacher = BeitModel(BeitConfig(**sizes, image_size=side, patch_size=4))
        teacher.save_pretrained(tmp_path / f"teacher{side}")
        MomeImageProcessorPil(size={"height": side, "width": side}).save_pretrained(tmp_path / f"teacher{side}")
    with pytest.raises(ValueError, match="has 64 patches"):
        PatchTeacher(tmp_path / "teacher32", 16)
    run["model"]["visual_teacher_name_or_path"] = str(tmp_path / "teacher16")
    with pytest.raises(ValueError, match="target_dim=8"):
        train(run)
    run["model"]["config"]["target_dim"] = 8
    metrics = train(run)
    assert 0 < metrics["validation_reconstruction_error"] < 2
    assert parse_arguments(tmp_path / "out" / "run.yaml").model.visual_teacher_name_or_path == "teacher16"
