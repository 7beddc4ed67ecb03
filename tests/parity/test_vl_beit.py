"""VL-BEiT against outputs recorded from the original code of what it shares with BEiT and VLMo.

Covers these goldens: mim_shared_rel, mim_per_layer_rel (BEiT's masked images, through the converter), composite
(VLMo's backbone with BEiT's masks, wired as VL-BEiT; nothing of VL-BEiT itself was released). The visual tokenizer and
the statistics of masks have files of their own beside this one.

Everything comes from the files: sizes from `config.json`, weights through the converter from the checkpoints.
Tolerances are the goldens' own: 1e-5 for hidden states, 1e-4 for logits and losses; our sums run in another order.
"""

import pytest
import torch

from hf_vlp import VlBeitConfig
from hf_vlp.conversion.safe_load import load_checkpoint
from hf_vlp.conversion.vl_beit import VL_BEIT, convert, convert_state_dict, infer_config
from tests.parity.vl_beit_goldens import FOLDER, SETTINGS, known_sizes, read

HIDDEN = 1e-5
LOGITS = 1e-4
MASKED_IMAGE = ("mim_shared_rel", "mim_per_layer_rel")

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no goldens in {FOLDER}")


def build(checkpoint: str, head: str | None = None, **fields):
    """The model of a golden checkpoint."""
    state_dict = load_checkpoint(FOLDER / f"{checkpoint}.pt").state_dict
    inferred = infer_config(state_dict, **known_sizes(checkpoint))
    config = VlBeitConfig(**{**inferred.config, "drop_path_rate": 0.0, **fields})
    result = convert_state_dict(state_dict, config, head)
    model = VL_BEIT.model_class(result.head)(config)
    missing, unexpected = model.load_state_dict(result.state_dict, strict=False)
    assert set(missing) <= set(result.new)
    assert not unexpected
    return model.eval()


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("implementation", ("sdpa", "eager"))
@pytest.mark.parametrize("variant", MASKED_IMAGE)
def test_masked_images(variant, implementation):
    inputs, expected = read(f"{variant}_inputs"), read(f"{variant}_expected")
    model = build(variant)
    assert model.config.visual_vocab_size == SETTINGS["mim"]["visual_vocab_size"]
    assert model.config.image_size == SETTINGS["mim"]["image_size"]
    model.set_attn_implementation(implementation)
    hidden = inputs["bool_masked_pos"].bool()
    with torch.no_grad():
        outputs = model(inputs["pixel_values"], hidden, inputs["visual_tokens"], output_hidden_states=True)
        assert_near(model.vl_beit.norm(outputs.hidden_states[-1]), expected["hidden"], HIDDEN)
    assert_near(outputs.logits, expected["logits_all"], LOGITS)
    assert_near(outputs.logits[hidden], expected["logits_masked"], LOGITS)
    assert_near(outputs.loss, expected["loss"], LOGITS)


@pytest.mark.parametrize("variant", MASKED_IMAGE)
def test_masked_images_within_joint_pre_training(variant):
    """A BEiT that starts VL-BEiT gives its own loss on pictures alone."""
    inputs, expected = read(f"{variant}_inputs"), read(f"{variant}_expected")
    model = build(variant, head="pretraining", vl_expert_start_layer=2)
    with torch.no_grad():
        outputs = model(
            image_pixel_values=inputs["pixel_values"],
            image_bool_masked_pos=inputs["bool_masked_pos"].bool(),
            image_visual_token_ids=inputs["visual_tokens"],
        )
    assert set(outputs.losses) == {"mim"}
    assert_near(outputs.losses["mim"], expected["loss"], LOGITS)
    assert_near(outputs.loss, expected["loss"], LOGITS)


class TestComposite:
    """The four objectives on one model."""

    @pytest.fixture(scope="class")
    def case(self):
        recorded = read("composite_inputs")
        texts = {"attention_mask": recorded["attention_mask"]}
        pictures = {
            "pixel_values": recorded["pixel_values"],
            "bool_masked_pos": recorded["bool_masked_pos"].bool(),
            "visual_token_ids": recorded["visual_tokens"],
        }
        pairs = {"input_ids": recorded["text_masked_50"], "labels": recorded["text_labels_50"], **texts, **pictures}
        alone = {"input_ids": recorded["text_masked_15"], "labels": recorded["text_labels_15"], **texts}
        inputs = {
            **pairs,
            **{f"text_{name}": value for name, value in alone.items()},
            **{f"image_{name}": value for name, value in pictures.items()},
        }
        model = build("composite")
        with torch.no_grad():
            return model, inputs, model(**inputs), read("composite_expected")

    def test_sizes_are_those_of_the_settings(self, case):
        config, settings = case[0].config, SETTINGS["composite"]
        for name in ("hidden_size", "num_hidden_layers", "image_size", "visual_vocab_size", "vl_expert_start_layer"):
            assert getattr(config, name) == settings[name]
        assert config.max_text_length == settings["max_text_len"]

    @pytest.mark.parametrize(
        ("ours", "theirs"),
        (("mlm", "text"), ("mim", "image"), ("mvlm_text", "pair_text"), ("mvlm_image", "pair_image")),
    )
    def test_logits_of_every_position_and_losses(self, case, ours, theirs):
        _, _, outputs, expected = case
        assert_near(outputs[f"{ours}_logits"], expected[f"{theirs}_logits"], LOGITS)
        assert_near(outputs.losses[ours], expected[f"{theirs}_loss"], LOGITS)

    def test_total_is_the_sum_of_the_four(self, case):
        assert_near(case[2].loss, case[3]["sum_of_four_losses"], LOGITS)


@pytest.mark.parametrize(
    ("checkpoint", "compared"),
    (
        *((name, ("logits_all", "loss")) for name in MASKED_IMAGE),
        ("composite", ("pair_text_logits", "image_loss", "sum_of_four_losses")),
    ),
)
def test_the_converter_itself_compares_the_recording(checkpoint, compared, tmp_path):
    config = {**known_sizes(checkpoint), "drop_path_rate": 0.0}
    recording = tuple(FOLDER / f"{checkpoint}_{end}.safetensors" for end in ("inputs", "expected"))
    report = convert(FOLDER / f"{checkpoint}.pt", tmp_path / "ours", config=config, parity=recording)
    assert report.checks[-1].startswith("parity with")
    assert all(name in report.checks[-1] for name in compared)
