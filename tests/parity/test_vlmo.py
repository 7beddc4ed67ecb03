"""VLMo against the goldens of the original code: embeddings, every block of every path, heads, losses, gradients.

Covered: pretrain (with hidden states and gradient norms), relative_position, stage2, vqa, interp, nlvr2, retrieval,
baseplus, baseplus_interp. The two-rank case is in `test_vlmo_two_ranks.py`; checkpoint conversion, preprocessing,
masking, answers, recall and the optimizer have files of their own beside this one.

Everything comes from the files: sizes from `config.json`, weights through the converter from the original
checkpoints. Tolerances are the goldens' own: 1e-5 for hidden states and features, 1e-4 for logits and losses, 1e-4
relative for gradients; our sums run in another order (one batch of fusion passes, fused attention), about 1e-6.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_vlp import VlmoConfig
from hf_vlp.conversion.safe_load import load_checkpoint
from hf_vlp.conversion.vlmo import convert_state_dict, infer_config, model_class, revert_state_dict
from hf_vlp.models.mome.mome import (
    make_image_position_index,
    make_pair_position_index,
    make_text_position_index,
)
from hf_vlp.objectives.matching import hard_negative_weights
from tests.parity.vlmo_goldens import FOLDER, SETTINGS, known_sizes

HIDDEN = 1e-5
LOGITS = 1e-4

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no goldens in {FOLDER}")


def read(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def build(checkpoint: str, head: str | None = None, **fields):
    """The model of a golden checkpoint, or one started from it with another head and other sizes."""
    state_dict = load_checkpoint(FOLDER / f"{checkpoint}.pt").state_dict
    inferred = infer_config(state_dict, **known_sizes(checkpoint))
    config = VlmoConfig(**{**inferred.config, "drop_path_rate": 0.0, "text_dropout": 0.0, **fields})
    result = convert_state_dict(state_dict, config, head)
    model = model_class(result.head)(config)
    missing, unexpected = model.load_state_dict(result.state_dict, strict=False)
    assert set(missing) == set(result.new)
    assert not unexpected
    return model.eval()


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def without(inputs: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in inputs.items() if name not in names}


class TestPreTraining:
    """Stage 3: all objectives and paths."""

    @pytest.fixture(scope="class")
    def case(self):
        inputs = read("pretrain_inputs")
        inputs["labels"] = inputs.pop("mlm_labels")
        return build("pretrain"), inputs, read("pretrain_expected"), read("pretrain_hidden_states")

    @pytest.fixture(scope="class")
    def outputs(self, case):
        model, inputs, *_ = case
        with torch.no_grad():
            return model(**inputs)

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        (
            ("image_embeds", "image_features"),
            ("text_embeds", "text_features"),
            ("image_vl_embeds", "image_vl_features"),
            ("text_vl_embeds", "text_vl_features"),
        ),
    )
    def test_features(self, case, outputs, ours, theirs):
        assert_near(outputs[ours], case[2][theirs], HIDDEN)

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        (
            ("mlm_logits", "mlm_logits"),
            ("itm_logits", "itm_logits"),
            ("logits_per_image", "itc_logits_per_image"),
            ("logits_per_text", "itc_logits_per_text"),
            ("vl_logits_per_image", "itc_vl_logits_per_image"),
            ("loss", "total_loss"),
        ),
    )
    def test_logits_and_total(self, case, outputs, ours, theirs):
        assert_near(outputs[ours], case[2][theirs], LOGITS)

    def test_losses_and_scales(self, case, outputs):
        model, _, expected, _ = case
        for name in ("mlm", "itc", "itm"):
            assert_near(outputs.losses[name], expected[f"{name}_loss"], LOGITS)
        assert_near(model.config.mlm_loss_weight * outputs.losses["mlm"], expected["mlm_loss_weighted"], LOGITS)
        assert_near(model.logit_scale.exp().detach(), expected["itc_logit_scale"], LOGITS)
        assert_near(model.logit_vl_scale.exp().detach(), expected["itc_logit_vl_scale"], LOGITS)

    def test_negatives_are_drawn_with_the_same_odds(self, case, outputs):
        """The original's weights do not sum to one: its sampler divides by their sum."""
        expected = case[2]
        for logits, name in ((outputs.logits_per_text, "t2i"), (outputs.logits_per_image, "i2t")):
            weights = expected[f"itm_sampling_weights_{name}"]
            assert_near(hard_negative_weights(logits) * weights.sum(dim=1, keepdim=True), weights, HIDDEN)

    def test_embeddings(self, case):
        model, inputs, expected, _ = case
        with torch.no_grad():
            assert_near(model.vlmo.image_embeddings(inputs["pixel_values"]), expected["image_embeddings"], HIDDEN)
            assert_near(model.vlmo.text_embeddings(inputs["input_ids"]), expected["text_embeddings"], HIDDEN)

    def test_every_block_of_the_single_modalities_and_their_branches(self, case):
        model, inputs, expected, states = case
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        layers, start = model.config.num_hidden_layers, model.config.vl_expert_start_layer
        for kind, chosen in (("image", {"pixel_values": inputs["pixel_values"]}), ("text", texts)):
            with torch.no_grad():
                outputs = model.vlmo(**chosen, output_vl_branch=True, output_hidden_states=True)
            assert len(outputs.hidden_states) == 1 + layers + (layers - start)
            for block in range(layers):
                assert_near(outputs.hidden_states[1 + block], states[f"{kind}_block_{block}"], HIDDEN)
            for number, block in enumerate(range(start, layers)):
                state = outputs.hidden_states[1 + layers + number]
                assert_near(state, states[f"{kind}_vlpath_block_{block}"], HIDDEN)
            assert_near(outputs.last_hidden_state, expected[f"{kind}_hidden"], HIDDEN)

    @pytest.mark.parametrize("implementation", ("sdpa", "eager"))
    def test_every_block_of_the_fusion_path(self, case, implementation):
        model, inputs, expected, states = case
        model.set_attn_implementation(implementation)
        pairs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        with torch.no_grad():
            outputs = model.vlmo(**pairs, output_hidden_states=True)
        for block in range(model.config.num_hidden_layers):
            assert_near(outputs.hidden_states[1 + block], states[f"vl_block_{block}"], HIDDEN)
        assert_near(outputs.text_hidden_state, expected["vl_text_hidden"], HIDDEN)
        assert_near(outputs.image_hidden_state, expected["vl_image_hidden"], HIDDEN)
        assert_near(outputs.last_hidden_state[:, 0], expected["vl_raw_cls"], HIDDEN)
        assert_near(outputs.pooler_output, expected["vl_pooled"], HIDDEN)

    def test_masked_words_from_the_text_alone(self, case):
        _, inputs, expected, _ = case
        model = build("pretrain", head="masked_lm")
        with torch.no_grad():
            outputs = model(inputs["mlm_input_ids"], inputs["attention_mask"], labels=inputs["labels"])
        assert_near(outputs.logits, expected["textonly_mlm_logits"], LOGITS)
        assert_near(outputs.loss, expected["textonly_mlm_loss"], LOGITS)

    @pytest.mark.parametrize("checkpointing", (False, True), ids=("plain", "checkpointed"))
    def test_gradient_norms(self, case, checkpointing):
        _, inputs, _, _ = case
        model = build("pretrain").train()  # no dropout: the same numbers, and checkpointing is on in training only
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**inputs).loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        filled = {
            name: torch.zeros_like(parameter) if gradients[name] is None else gradients[name]
            for name, parameter in model.named_parameters()
        }
        original = revert_state_dict(filled, model.config, "pretraining")
        expected = json.loads((FOLDER / "pretrain_grad_norms.json").read_text())
        assert set(expected) == set(original) - {"text_embeddings.position_ids"}  # no parameter
        for name, norm in expected.items():
            assert original[name].norm().item() == pytest.approx(norm or 0.0, rel=1e-4, abs=1e-7), name


class TestRelativePositions:
    """Index tables, and the bias of every block."""

    def test_index_tables(self):
        expected = read("relative_position")
        window = SETTINGS["image_size"] // SETTINGS["relative_bias_model"]["patch_size"]
        table_length = SETTINGS["max_text_len_of_initckpt"]
        tables = {
            "relative_position_index": make_image_position_index(window),
            "text_relative_position_index": make_text_position_index(SETTINGS["max_text_len"], window, table_length),
        }
        tables["text_imag_relative_position_index"] = make_pair_position_index(
            tables["text_relative_position_index"], tables["relative_position_index"], window
        )
        for name, table in tables.items():
            assert torch.equal(table, expected[name].long()), name

    @pytest.mark.parametrize("kind", ("image", "text", "text_image"))
    def test_bias_of_every_block(self, kind):
        model, expected = build("pretrain").vlmo, read("relative_position")[f"bias_{kind}"]
        text_length = 0 if kind == "image" else SETTINGS["max_text_len"]
        index = model._make_position_index(text_length, kind != "text", "cpu")
        for layer, bias in zip(model.layers, expected, strict=True):
            assert_near(layer.attention.make_position_bias(index)[0].detach(), bias, 1e-7)


def test_language_stage():
    inputs, expected = read("stage2_inputs"), read("stage2_expected")
    with torch.no_grad():
        outputs = build("stage2")(inputs["mlm_input_ids"], inputs["attention_mask"], labels=inputs["mlm_labels"])
    assert_near(outputs.logits, expected["mlm_logits"], LOGITS)
    assert_near(outputs.loss, expected["mlm_loss"], LOGITS)


def test_question_answering():
    model, inputs, expected = build("vqa"), read("vqa_inputs"), read("vqa_expected")
    with torch.no_grad():
        outputs = model(**without(inputs, "targets"), labels=inputs["targets"])
        pooled = model.vlmo(**without(inputs, "targets")).pooler_output
    assert model.config.num_labels == SETTINGS["num_vqa_labels"]
    assert_near(outputs.logits, expected["logits"], LOGITS)
    assert_near(outputs.loss, expected["loss"], LOGITS)
    assert_near(pooled, expected["pooled"], HIDDEN)


def test_statements_about_two_pictures():
    model, inputs, expected = build("nlvr2"), read("nlvr2_inputs"), read("nlvr2_expected")
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    pictures = [inputs["pixel_values_0"], inputs["pixel_values_1"]]
    with torch.no_grad():
        outputs = model(**texts, pixel_values=torch.stack(pictures, dim=1), labels=inputs["labels"])
        pooled = [
            model.vlmo(**texts, pixel_values=picture, image_type=1 + number).pooler_output
            for number, picture in enumerate(pictures)
        ]
    assert_near(outputs.logits, expected["logits"], LOGITS)
    assert_near(outputs.loss, expected["loss"], LOGITS)
    for number in range(2):
        assert_near(pooled[number], expected[f"pooled_{number}"], HIDDEN)


def test_retrieval():
    model, inputs, expected = build("retrieval"), read("retrieval_inputs"), read("retrieval_expected")
    with torch.no_grad():
        outputs = model(**{name: value for name, value in inputs.items() if not name.startswith("recall_")})
    for name in ("image_embeds", "text_embeds"):
        assert_near(outputs[name], expected[name], HIDDEN)
    for name in ("logits_per_image", "logits_per_text", "loss"):
        assert_near(outputs[name], expected[name], LOGITS)


@pytest.mark.parametrize(
    ("checkpoint", "case"), (("pretrain", "interp"), ("baseplus", "baseplus_interp")), ids=("relative", "absolute")
)
def test_larger_pictures_with_interpolated_positions(checkpoint, case, tmp_path):
    """Through `from_pretrained`, as a user changes the size."""
    inputs, expected = read("interp_inputs"), read(f"{case}_expected")
    head = {name.removeprefix("head."): inputs.pop(name) for name in list(inputs) if name.startswith("head.")}
    inputs = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    build(checkpoint, head="vqa", num_labels=SETTINGS["num_vqa_labels"]).save_pretrained(tmp_path)
    model = model_class("vqa").from_pretrained(tmp_path, image_size=SETTINGS["interpolated_image_size"])
    if "logits" in expected:
        numbers = {"0": "dense", "1": "layer_norm", "3": "output"}
        head = {name.removeprefix("vqa_classifier."): value for name, value in head.items()}
        model.classifier.load_state_dict(
            {f"{numbers[name.split('.')[0]]}.{name.split('.')[1]}": value for name, value in head.items()}
        )
        with torch.no_grad():
            assert_near(model(**inputs).logits, expected["logits"], LOGITS)
    with torch.no_grad():
        outputs = model.vlmo(**inputs)
    for ours, theirs in (
        ("pooler_output", "pooled"),
        ("text_hidden_state", "text_hidden"),
        ("image_hidden_state", "image_hidden"),
    ):
        assert_near(outputs[ours], expected[theirs], HIDDEN)
    original = revert_state_dict(model.state_dict(), model.config, "vqa")
    for theirs, name in (
        ("relative_position_bias_table", "relative_position_bias_table"),
        ("pos_embed", "transformer.pos_embed"),
    ):
        if theirs in expected:
            assert_near(original[name], expected[theirs], HIDDEN)


def test_absolute_positions():
    model, inputs, expected = build("baseplus"), read("pretrain_inputs"), read("baseplus_expected")
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    pixel_values = inputs["pixel_values"]
    with torch.no_grad():
        masked = build("baseplus", head="masked_lm")(
            inputs["mlm_input_ids"], inputs["attention_mask"], pixel_values, labels=inputs["mlm_labels"]
        )
        assert_near(masked.logits, expected["mlm_logits"], LOGITS)
        assert_near(masked.loss, expected["mlm_loss"], LOGITS)
        for branch, infix in ((False, ""), (True, "_vl")):
            image = model.get_image_features(pixel_values, vl_branch=branch).pooler_output
            text = model.get_text_features(**texts, vl_branch=branch).pooler_output
            assert_near(image, expected[f"image{infix}_features"], HIDDEN)
            assert_near(text, expected[f"text{infix}_features"], HIDDEN)
        assert_near(model.vlmo(**texts, pixel_values=pixel_values).pooler_output, expected["vl_pooled"], HIDDEN)
