"""Self-critical training: mask and end token, one encoding per picture, learning on a tiny problem, bad batches."""

import pytest
import torch

from hf_vlp.data.collators import CaptionCollator
from hf_vlp.metrics.captioning import CiderDScorer, DocumentFrequencies
from hf_vlp.pretraining.arguments import SelfCriticalArguments, VlpTrainingArguments
from hf_vlp.pretraining.self_critical import SelfCriticalCollator, SelfCriticalTrainer, sampled_mask
from hf_vlp.pretraining.trainer import VlpTrainer
from tests.training.tiny import different, make_model, make_processor, make_records, parameters_of


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def make_arguments(output_dir, **options):
    defaults = {"per_device_train_batch_size": 6, "save_strategy": "no", "report_to": "none", "use_cpu": True}
    defaults |= {"disable_tqdm": True, "logging_steps": 5, "lr_scheduler_type": "constant"}
    return VlpTrainingArguments(str(output_dir), **{**defaults, **options})


def make_scorer(processor):
    frequencies = DocumentFrequencies.build([record["captions"] for record in make_records(6)])
    return CiderDScorer(frequencies, end_token=processor.tokenizer.eos_token)


def make_trainer(processor, model, output_dir, *, records=None, settings=None, **options):
    return SelfCriticalTrainer(
        model=model,
        args=make_arguments(output_dir, **options),
        train_dataset=make_records(12) if records is None else records,
        eval_dataset=make_records(6),
        data_collator=SelfCriticalCollator(processor),
        eval_collator=CaptionCollator(processor),
        processing_class=processor,
        scorer=make_scorer(processor),
        settings=SelfCriticalArguments(**{"max_new_tokens": 8, **(settings or {})}),
    )


def test_mask_ends_behind_the_first_end_token():
    tokens = torch.tensor([[4, 5, 9, 9], [9, 9, 9, 9], [4, 5, 6, 7]])
    assert sampled_mask(tokens, 9).tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


def test_an_unfinished_caption_earns_less(processor, tmp_path):
    trainer = make_trainer(processor, make_model(processor), tmp_path)
    tokenizer = processor.tokenizer
    end = tokenizer.eos_token_id
    words = tokenizer("a red square")["input_ids"]
    ids = torch.tensor([[end, *words, end], [end, *words, words[-1]]])
    cut = torch.tensor([[end, *words]])
    references = [["a red square", "one red picture"]]
    finished = trainer._rewards(ids[:1], references, end)
    unfinished = trainer._rewards(cut, references, end)
    assert finished[0] > unfinished[0] > 0


@pytest.fixture(scope="module")
def half_trained(processor, tmp_path_factory):
    """A model that knows the words and mixes up the sentences."""
    model = make_model(processor, dropout=0.0)
    VlpTrainer(
        model=model,
        args=make_arguments(tmp_path_factory.mktemp("model"), max_steps=60, learning_rate=1e-2),
        train_dataset=make_records(12),
        data_collator=CaptionCollator(processor),
    ).train()
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("baseline", ["greedy", "mean_of_others"])
def test_training_raises_the_reward(processor, tmp_path, half_trained, baseline):
    model = make_model(processor, dropout=0.0)
    model.load_state_dict(half_trained)
    trainer = make_trainer(
        processor,
        model,
        tmp_path,
        settings={"num_samples": 5, "baseline": baseline},
        max_steps=50,
        learning_rate=2e-3,
    )
    trainer.train()
    rewards = [entry["reward_sample"] for entry in trainer.state.log_history if "reward_sample" in entry]
    assert len(rewards) == 10
    assert sum(rewards[-2:]) / 2 > 1.2 * sum(rewards[:2]) / 2, rewards
    has_greedy = any("reward_greedy" in entry for entry in trainer.state.log_history)
    assert has_greedy == (baseline == "greedy")


def test_pictures_are_encoded_once_per_step(processor, tmp_path):
    model = make_model(processor)
    calls = []
    model.model.vision_model.register_forward_hook(lambda module, args, output: calls.append(1))
    make_trainer(processor, model, tmp_path, settings={"num_samples": 3}, max_steps=2).train()
    assert len(calls) == 2


def test_every_part_gets_a_gradient_and_dropout_is_off(processor, tmp_path):
    model = make_model(processor, dropout=0.5)
    trainer = make_trainer(processor, model, tmp_path, max_steps=1, learning_rate=1e-2, weight_decay=0.0)
    modes = []
    model.model.fusion.register_forward_hook(lambda module, args, output: modes.append(module.training))
    before = parameters_of(model)
    trainer.train()
    changed = different(before, parameters_of(model))
    assert {model.get_parameter_group(name) for name in changed} == {"vision", "language", "fusion"}
    assert not any(modes)


def test_log_probabilities_are_those_of_the_sampling(processor, tmp_path):
    """The gradient pass over several captions per picture gives what generation gave."""
    model = make_model(processor).eval()
    pixel_values = processor(images=[record["image"] for record in make_records(2)])["pixel_values"]
    with torch.no_grad():
        image_embeds = model.get_image_features(pixel_values).pooler_output
        torch.manual_seed(0)
        sampled = model.generate(
            image_embeds=image_embeds,
            do_sample=True,
            top_k=0,
            num_return_sequences=3,
            max_new_tokens=6,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = sampled.sequences
        logits = model(input_ids=ids[:, :-1], image_embeds=image_embeds).logits
    generated = torch.stack(sampled.logits, 1)
    mask = sampled_mask(ids[:, 1:], processor.tokenizer.eos_token_id).bool()
    assert ids.shape[0] == 6
    assert torch.allclose(logits[mask], generated[mask], atol=1e-5)


def test_a_batch_of_bad_pictures_changes_nothing(processor, tmp_path):
    records = [{"image": b"no picture", "captions": ["a red square"]}] * 6
    model = make_model(processor)
    before = parameters_of(model)
    make_trainer(processor, model, tmp_path, records=records, max_steps=1, weight_decay=0.0).train()
    assert different(before, parameters_of(model)) == []


def test_references_stay_with_their_pictures_when_one_is_bad(processor):
    records = make_records(3)
    records[1] = {**records[1], "image": b"no picture"}
    batch = SelfCriticalCollator(processor)(records)
    assert len(batch["pixel_values"]) == 2
    assert batch["references"] == [records[0]["captions"], records[2]["captions"]]


def test_evaluation_measures_the_cross_entropy(processor, tmp_path):
    trainer = make_trainer(processor, make_model(processor), tmp_path)
    assert 3 < trainer.evaluate()["eval_loss"] < 8
