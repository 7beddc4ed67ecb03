"""VC-GPT against the goldens of an independent implementation of its specification.

Covered: every tensor of `expected.safetensors` and every entry of `expected.json`: visual tokens, both streams of the
fusion module, all logits and losses of all variants, gradients, greedy and beam search with and without cache,
self-critical loss. Sizes, seeds and decoding options come from the files alone; `$HF_VLP_GOLDENS` names another
folder.

Tolerances: the two implementations order their sums differently (fused projections, one accumulated vocabulary
product), which gives about 5e-6 in the hidden states and 4e-5 in the logits in float32.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vlp import VcGptConfig, VcGptForConditionalGeneration
from hf_vlp.objectives.self_critical import self_critical_loss
from tests.parity.vc_gpt_names import select, to_ours

FOLDER = Path(os.environ.get("HF_VLP_GOLDENS", Path(__file__).parents[1] / "goldens")) / "vc_gpt"
HIDDEN = 1e-5
LOGITS = 1e-4
LOSS = 1e-4

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no goldens in {FOLDER}")


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float):
    torch.testing.assert_close(actual, expected, atol=tolerance * max(1.0, expected.abs().max().item()), rtol=0)


@pytest.fixture(scope="module")
def goldens():
    content = {name: load_file(FOLDER / f"{name}.safetensors") for name in ("checkpoint", "inputs", "expected")}
    content["vanilla"] = load_file(FOLDER / "vanilla_cross_attention.safetensors")
    content["settings"] = json.loads((FOLDER / "config.json").read_text())
    content["json"] = json.loads((FOLDER / "expected.json").read_text())
    return content


def build(goldens, **choices) -> VcGptForConditionalGeneration:
    """The model of the goldens, with other choices; every one of its parameters is filled from the files."""
    settings = goldens["settings"]
    fusion = settings["fusion"]
    vision_config, text_config = (
        {key: value for key, value in settings[tower].items() if key not in ("type", "output")}
        for tower in ("vision", "gpt2")
    )
    config = VcGptConfig(
        vision_config=vision_config,
        text_config=text_config,
        num_fusion_layers=fusion["num_layers"],
        fusion_num_heads=fusion["num_heads"],
        fusion_mlp_ratio=fusion["mlp_ratio"],
        fusion_activation=fusion["activation"],
        fusion_layer_norm_eps=fusion["layer_norm_eps"],
        **{"visual_pairing": fusion["visual_pairing"], **choices},
    )
    model = VcGptForConditionalGeneration(config).eval()
    weights = dict(goldens["checkpoint"])
    if config.variant == "vanilla":
        weights = {name: value for name, value in weights.items() if not name.startswith("fusion.")}
        weights |= {name: value for name, value in goldens["checkpoint"].items() if "visual_proj" in name}
        weights |= goldens["vanilla"]
    weights = to_ours(weights)
    if model.lm_head is not None:
        weights["lm_head.weight"] = weights["model.language_model.wte.weight"]
    model.load_state_dict(weights, strict=True)
    return model


VARIANTS = {
    "full": {},
    "wo_se": {"self_ensemble": False},
    "final": {"visual_pairing": "final"},
    "vanilla": {"variant": "vanilla"},
}


@pytest.fixture(scope="module")
def models(goldens):
    return {name: build(goldens, **choices) for name, choices in VARIANTS.items()}


@pytest.fixture(scope="module")
def outputs(goldens, models):
    options = {"output_hidden_states": True, "output_branch_logits": True}
    with torch.no_grad():
        return {name: model(**goldens["inputs"], **options) for name, model in models.items()}


def full_hidden_states(outputs):
    full = outputs["full"]
    num_language_states = len(full.hidden_states) - (len(full.image_hidden_states) - 1)
    return {
        "fusion_visual_layer1": full.image_hidden_states[1],
        "fusion_visual_last": full.image_hidden_states[-1],
        "h_gpt": full.hidden_states[num_language_states - 1],
        "h_fuse": full.hidden_states[-1],
    }


@pytest.mark.parametrize("name", ["fusion_visual_layer1", "fusion_visual_last", "h_gpt", "h_fuse"])
def test_hidden_states(goldens, outputs, name):
    actual, expected = full_hidden_states(outputs)[name], goldens["expected"][name]
    if name.startswith("h_"):  # rows of text at padding are not meaningful
        kept = goldens["inputs"]["attention_mask"].bool()
        actual, expected = actual[kept], expected[kept]
    assert_near(actual, expected, HIDDEN)


def test_visual_tokens(goldens, models):
    with torch.no_grad():
        features = models["full"].get_image_features(goldens["inputs"]["pixel_values"])
        projected = models["full"].model.visual_proj(features.last_hidden_state)
    assert_near(features.last_hidden_state, goldens["expected"]["visual_hidden"], HIDDEN)
    assert torch.equal(features.pooler_output, projected)


LOGITS_OF = {
    "logits": lambda outputs: outputs["full"].logits,
    "logits_gpt": lambda outputs: outputs["full"].single_modal_logits,
    "logits_fuse": lambda outputs: outputs["full"].cross_modal_logits,
    "logits_wo_se": lambda outputs: outputs["wo_se"].logits,
    "logits_final_pairing": lambda outputs: outputs["final"].logits,
    "logits_vanilla": lambda outputs: outputs["vanilla"].logits,
}


@pytest.mark.parametrize("name", LOGITS_OF)
def test_logits(goldens, outputs, name):
    kept = goldens["inputs"]["attention_mask"].bool()
    assert_near(LOGITS_OF[name](outputs)[kept], goldens["expected"][name][kept], LOGITS)


def test_one_accumulated_vocabulary_product_equals_the_two(goldens, models):
    with torch.no_grad():
        together = models["full"](**goldens["inputs"], output_branch_logits=False)
    assert together.single_modal_logits is None
    kept = goldens["inputs"]["attention_mask"].bool()
    assert_near(together.logits[kept], goldens["expected"]["logits"][kept], LOGITS)


def test_losses(goldens, outputs):
    language_logits = outputs["full"].single_modal_logits[:, :-1].flatten(0, 1)
    language_loss = torch.nn.functional.cross_entropy(language_logits, goldens["inputs"]["labels"][:, 1:].flatten())
    losses = {
        "loss": outputs["full"].loss,
        "loss_wo_se": outputs["wo_se"].loss,
        "loss_vanilla": outputs["vanilla"].loss,
        "loss_gpt_only": language_loss,
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(goldens["json"]["losses"], abs=LOSS)


def test_gradients(goldens):
    model = build(goldens)
    model(**goldens["inputs"]).loss.backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = {
        name.removeprefix("grad."): grad for name, grad in goldens["expected"].items() if name.startswith("grad.")
    }
    assert expected
    for name, grad in expected.items():
        difference = (select(ours, name) - grad).norm() / grad.norm()
        assert difference < 1e-4, f"{name}: relative difference {difference:.1e}"


def test_every_expected_value_is_looked_at(goldens):
    """Losses and gradients are compared by what the files hold; the rest is named in these tests."""
    looked_at = {"visual_hidden", "fusion_visual_layer1", "fusion_visual_last", "h_gpt", "h_fuse", *LOGITS_OF}
    assert {name for name in goldens["expected"] if not name.startswith("grad.")} == looked_at
    expected = goldens["json"]
    assert set(expected) == {"losses", "greedy_ids", "greedy_ids_wo_se", "beam", "scst"}
    assert {key for image in expected["beam"] for key in image} == {"best_ids", "best_score", "nbest"}
    assert {key for image in expected["beam"] for best in image["nbest"] for key in best} == {"ids", "score"}
    rewards = {"reward_sample", "reward_greedy"}
    assert set(expected["scst"]) == {"sampled_ids", "mask", "token_logprobs", "loss", *rewards}


def test_settings_describe_the_model_that_is_built(goldens):
    fusion = goldens["settings"]["fusion"]
    config = build(goldens).config
    assert fusion["hidden_size"] == config.text_config.hidden_size
    assert fusion["visual_projection"] == (config.vision_config.hidden_size != config.text_config.hidden_size)
    assert fusion["final_layer_norm"]
    assert not fusion["lm_head_bias"]


def generate(goldens, model, **options):
    generation = goldens["settings"]["generation"]
    return model.generate(
        pixel_values=goldens["inputs"]["pixel_values"],
        bos_token_id=generation["bos"],
        eos_token_id=generation["eos"],
        pad_token_id=generation["pad"],
        max_new_tokens=generation["max_new_tokens"],
        do_sample=False,
        **options,
    )


def trim(ids: list[int], end: int) -> list[int]:
    """A caption up to its first end token; the first id is the begin token."""
    return ids[: ids.index(end, 1) + 1] if end in ids[1:] else ids


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("variant, key", [("full", "greedy_ids"), ("wo_se", "greedy_ids_wo_se")])
def test_greedy_ids(goldens, models, variant, key, use_cache):
    end = goldens["settings"]["generation"]["eos"]
    ids = generate(goldens, models[variant], use_cache=use_cache).tolist()
    assert [trim(row, end) for row in ids] == [trim(row, end) for row in goldens["json"][key]]


@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search(goldens, models, use_cache):
    generation, expected = goldens["settings"]["generation"], goldens["json"]["beam"]
    num_best = max(len(image["nbest"]) for image in expected)
    found = generate(
        goldens,
        models["full"],
        use_cache=use_cache,
        num_beams=generation["num_beams"],
        length_penalty=generation["length_penalty"],
        early_stopping=False,
        num_return_sequences=num_best,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for number, image in enumerate(expected):
        rows = slice(number * num_best, (number + 1) * num_best)
        ids = [trim(row, generation["eos"]) for row in found.sequences[rows].tolist()]
        scores = found.sequences_scores[rows].tolist()
        assert ids[0] == image["best_ids"]
        assert scores[0] == pytest.approx(image["best_score"], abs=1e-4)
        length = len(image["nbest"])
        assert ids[:length] == [best["ids"] for best in image["nbest"]]
        assert scores[:length] == pytest.approx([best["score"] for best in image["nbest"]], abs=1e-4)


def test_self_critical_loss(goldens, models):
    case = goldens["json"]["scst"]
    ids, mask = torch.tensor(case["sampled_ids"]), torch.tensor(case["mask"])
    logits = models["full"](pixel_values=goldens["inputs"]["pixel_values"], input_ids=ids).logits[:, :-1]
    log_probs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    assert_near(log_probs, torch.tensor(case["token_logprobs"]), LOGITS)
    loss = self_critical_loss(
        log_probs, mask, torch.tensor(case["reward_sample"]), torch.tensor(case["reward_greedy"])
    )
    assert loss.item() == pytest.approx(case["loss"], abs=LOSS)


def test_names_cover_towers_of_different_widths():
    """A folder whose CLIP is wider than its GPT-2 has a projection, which the files here need not have."""
    config = VcGptConfig(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        },
        text_config={"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 11, "bos_token_id": 0, "eos_token_id": 0},
        num_fusion_layers=1,
        fusion_num_heads=2,
    )
    ours = VcGptForConditionalGeneration(config).state_dict()
    fused = {".self_attn.qkv_proj.": "qkv", ".cross_attn.kv_proj.": "kv"}
    neutral = {}
    for name, tensor in ours.items():
        name = name.replace("model.language_model.", "transformer.").replace("fusion_lm_head", "fusion.lm_head")
        name = name.replace("model.visual_proj", "fusion.visual_proj").removeprefix("model.")
        if name == "lm_head.weight":
            continue
        infix = next((infix for infix in fused if infix in name and name.startswith("fusion.")), None)
        letters = fused[infix] if infix else ""
        for letter, part in zip(letters, tensor.chunk(len(letters) or 1)):
            neutral[name.replace(infix, infix.replace(letters, letter))] = part
        if infix is None:
            neutral[name] = tensor
    assert "fusion.visual_proj.weight" in neutral
    assert "fusion.text_layers.0.cross_attn.v_proj.weight" in neutral
    back = to_ours(neutral)
    assert set(back) | {"lm_head.weight"} == set(ours)
    assert all(torch.equal(back[name], ours[name]) for name in back)
