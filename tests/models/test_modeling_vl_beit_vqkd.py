"""The visual tokenizer and its training: configuration, ids, codebook, losses, saving.

Covers: defaults, which are those of the published file; ids (shape, type, no gradient, the
nearest code, batches, pictures outside [0, 1] or of another size or type, half precision with float32 codes,
device_map, compilation); training (every parameter gets a gradient, straight through, both targets, teacher, losses
add up, targets that do not fit, activation checkpointing); codebook (starts from the batch, running means, codes that
are hardly chosen come back, unit norms, unchanged in evaluation, equal in two processes); saving (equal reload,
tokenizer from a training checkpoint without a word, training from a tokenizer, Auto classes, export without the
package, a codebook that a checkpoint lacks).
"""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

from hf_vlp import MomeImageProcessorPil, VlBeitVqkdConfig, VlBeitVqkdForTraining, VlBeitVqkdTokenizer
from tests.models.tiny_vqkd import SIZES, make_pixels, make_tokenizer, make_training_model

CLASSES = (VlBeitVqkdTokenizer, VlBeitVqkdForTraining)


def states_equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


# ---- configuration


def test_defaults_are_the_published_file():
    config = VlBeitVqkdConfig()
    assert (config.num_tokens, config.codebook_size, config.code_dim, config.output_dim) == (196, 8192, 32, 512)
    with torch.device("meta"):
        model = VlBeitVqkdForTraining(config)
    assert len(model.encoder.layers) == 12
    assert len(model.decoder.layers) == 3


# ---- ids


def test_ids_are_the_nearest_codes_and_carry_no_gradient():
    tokenizer = make_tokenizer()
    pixels = make_pixels()
    ids = tokenizer.get_token_ids(pixels)
    assert ids.shape == (3, 16)
    assert ids.dtype == torch.int64
    vectors = nn.functional.normalize(tokenizer(pixels).code_vectors, dim=-1)
    distances = torch.cdist(vectors, tokenizer.codebook.weight.expand(3, -1, -1))
    assert torch.equal(ids, distances.argmin(-1))
    assert not tokenizer.get_token_ids(pixels.requires_grad_()).requires_grad


def test_ids_of_a_picture_do_not_depend_on_the_batch():
    tokenizer, pixels = make_tokenizer(), make_pixels()
    single = torch.cat([tokenizer.get_token_ids(picture[None]) for picture in pixels])
    assert torch.equal(single, tokenizer.get_token_ids(pixels))


@pytest.mark.parametrize(
    "pixels, message",
    [
        (make_pixels() * 2 - 1, r"in \[0, 1\]; these lie in \[-1, 1\]"),
        (make_pixels() * 255, "divided by 255"),
        (make_pixels() * torch.nan, "nan"),
        ((make_pixels() * 255).to(torch.uint8), "torch.uint8: divide by 255"),
        (make_pixels(side=20), r"\(pictures, 3, 16, 16\), not \(3, 3, 20, 20\)"),
        (make_pixels()[0], r"not \(3, 16, 16\)"),
        (make_pixels()[:, :1], r"not \(3, 1, 16, 16\)"),
    ],
)
@pytest.mark.parametrize("model_class", CLASSES)
def test_pixels_that_are_no_pictures_in_0_to_1_are_refused(model_class, pixels, message):
    model = make_tokenizer(model_class=model_class)
    with pytest.raises(ValueError, match=message):
        model.get_token_ids(pixels)
    with pytest.raises(ValueError, match=message):
        model(pixels)


def test_image_processor_gives_pixels_in_0_to_1(tmp_path):
    from hf_vlp.pretraining.build import make_image_processor

    tokenizer = make_tokenizer()
    processor = make_image_processor("vl_beit_vqkd", tokenizer.config, {})
    tokenizer.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = torch.randint(256, (3, 30, 40), dtype=torch.uint8).permute(1, 2, 0).numpy()
    for loaded in (processor, AutoImageProcessor.from_pretrained(tmp_path)):
        pixels = loaded(images=[picture], return_tensors="pt")["pixel_values"]
        assert tokenizer.get_token_ids(pixels).shape == (1, 16)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        tokenizer.get_token_ids(MomeImageProcessorPil(size=16)(images=[picture], return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_codes_stay_float32_in_half_precision(dtype, tmp_path):
    model = make_training_model()
    model.save_pretrained(tmp_path)
    pixels = make_pixels()
    for half in (VlBeitVqkdForTraining.from_pretrained(tmp_path, dtype=dtype), model.to(dtype)):
        for name, value in half.state_dict().items():
            is_code_part = name.startswith(("codebook.", "code_projection.", "decoder_projection."))
            assert value.dtype == (torch.float32 if is_code_part else dtype), name
        assert half(pixels.to(dtype)).loss.isfinite()
        agreement = half.get_token_ids(pixels) == make_training_model().get_token_ids(pixels)
        assert agreement.float().mean() > 0.9  # vectors near a border between two codes may fall to the other


def test_autocast_leaves_the_code_part_alone():
    tokenizer = make_tokenizer()
    with torch.autocast("cpu", torch.bfloat16):
        assert tokenizer(make_pixels()).code_vectors.dtype == torch.float32


def test_device_map_loads_an_equal_model(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = VlBeitVqkdTokenizer.from_pretrained(tmp_path, device_map="cpu")
    assert torch.equal(loaded.get_token_ids(make_pixels()), tokenizer.get_token_ids(make_pixels()))


def test_tokenizer_compiles_as_one_graph():
    tokenizer, pixels = make_tokenizer(), make_pixels()
    torch.compiler.reset()
    compiled = torch.compile(tokenizer, fullgraph=True, backend="eager")
    try:
        assert torch.equal(compiled(pixels).token_ids, tokenizer.get_token_ids(pixels))
    finally:
        torch.compiler.reset()


def test_either_attention_gives_the_same_vectors():
    tokenizer, pixels = make_tokenizer(), make_pixels()
    first = tokenizer(pixels).code_vectors
    tokenizer.set_attn_implementation("eager")
    assert tokenizer.encoder.config._attn_implementation == "eager"
    torch.testing.assert_close(tokenizer(pixels).code_vectors, first, atol=1e-5, rtol=1e-5)


# ---- training


def test_every_parameter_gets_a_gradient():
    model = make_training_model().train()
    model(make_pixels()).loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("target", ("pixels", "features"))
def test_loss_is_the_sum_of_its_parts(target):
    model = make_training_model(target=target, commitment_loss_weight=0.5)
    features = torch.randn(3, 16, SIZES["target_dim"])
    outputs = model(make_pixels(), target_features=features)
    assert set(outputs.losses) == {"reconstruction", "commitment"}
    torch.testing.assert_close(outputs.loss, outputs.losses["reconstruction"] + 0.5 * outputs.losses["commitment"])
    if target == "features":
        cosine = nn.functional.cosine_similarity(outputs.reconstruction, features, dim=-1)
        torch.testing.assert_close(outputs.losses["reconstruction"], 1 - cosine.mean())


def test_pixels_of_a_patch_are_its_target():
    model, pixels = make_training_model(), make_pixels()
    target = model.make_target(pixels)
    assert target.shape == (3, 16, 48)
    # Patch 6: second row, third column.
    torch.testing.assert_close(target[1, 6], 2 * pixels[1, :, 4:8, 8:12].flatten() - 1)


def test_reconstruction_reaches_the_encoder_straight_through():
    model = make_training_model(commitment_loss_weight=0.0).train()
    model(make_pixels()).loss.backward()
    assert model.encoder.embeddings.patch_embeddings.projection.weight.grad.abs().max() > 0
    assert not model.codebook.weight.requires_grad


def test_teacher_gives_the_target_and_is_no_part_of_the_model():
    model = make_training_model(target="features")
    with pytest.raises(ValueError, match="needs a teacher"):
        model(make_pixels())
    assert model(make_pixels(), return_loss=False).loss is None
    teacher = nn.Linear(48, SIZES["target_dim"])
    names = set(model.state_dict())
    model.set_teacher(lambda pixels: teacher(nn.functional.unfold(pixels, 4, stride=4).transpose(1, 2)))
    model(make_pixels()).loss.backward()
    assert set(model.state_dict()) == names
    assert teacher.weight.grad is None
    model.set_teacher(lambda pixels: torch.zeros(len(pixels), 15, SIZES["target_dim"]))
    with pytest.raises(ValueError, match=r"\(3, 15, 6\), expected \(3, 16, 6\)"):
        model(make_pixels())


def test_activation_checkpointing_changes_nothing():
    results = []
    for checkpointing in (False, True):
        model = make_training_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        model(make_pixels()).loss.backward()
        results.append([value.grad for value in model.parameters()] + [model.codebook.weight])
    for first, second in zip(*results):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-5)


def test_no_weight_decay_names_vectors_and_positions():
    model = make_training_model()
    names = model.no_weight_decay()
    assert "encoder.embeddings.position_embeddings" in names
    assert "decoder.layers.0.layernorm_before.weight" in names
    assert "code_projection.dense.weight" not in names


# ---- codebook


def unit(*shape, seed: int = 0) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_codebook_starts_from_vectors_of_the_first_batch():
    codebook = make_tokenizer().codebook
    vectors = unit(40, 4)
    codebook.revive(vectors)
    rows = {tuple(row) for row in vectors.tolist()}
    assert len({tuple(row) for row in codebook.weight.tolist()} & rows) == 12  # twelve different ones
    assert torch.allclose(codebook.cluster_size, torch.tensor(40 / 12))


def test_codes_move_towards_the_mean_of_their_vectors():
    codebook = make_tokenizer(codebook_decay=0.75).codebook
    codebook.cluster_size.fill_(4.0)
    before = codebook.weight.clone()
    vectors, ids = unit(5, 4), torch.tensor([1, 1, 1, 2, 2])
    codebook.update(vectors, ids)
    for code in range(12):
        mean = nn.functional.normalize(vectors[ids == code].sum(0), dim=0)
        moved = nn.functional.normalize(0.75 * before[code] + 0.25 * mean, dim=0) if code in (1, 2) else before[code]
        torch.testing.assert_close(codebook.weight[code], moved)
    expected = torch.full((12,), 3.0)
    expected[1], expected[2] = 3.75, 3.5
    torch.testing.assert_close(codebook.cluster_size, expected)
    torch.testing.assert_close(codebook.weight.norm(dim=1), torch.ones(12))


def test_codes_that_are_hardly_chosen_come_back_as_vectors_without_a_code():
    codebook = make_tokenizer(revive_below=0.1).codebook
    codebook.weight.copy_(unit(1, 4).expand(12, 4))
    codebook.cluster_size.fill_(10.0)
    codebook.cluster_size[3] = 0.5
    vectors = torch.cat((unit(1, 4).expand(30, 4), unit(1, 4, seed=1)))  # one of them is far from all codes
    codebook.revive(vectors)
    torch.testing.assert_close(codebook.weight[3], vectors[-1])
    assert torch.equal(codebook.weight[4], unit(1, 4)[0])
    assert codebook.cluster_size[3] == 31 / 12


def test_codebook_moves_in_training_only():
    model = make_training_model()
    before = {name: value.clone() for name, value in model.codebook.state_dict().items()}
    model(make_pixels())
    assert states_equal(before, model.codebook.state_dict())
    model.train()(make_pixels())
    assert not states_equal(before, model.codebook.state_dict())


TWO_PROCESSES = """
import os, sys
import torch
import torch.distributed as dist
from tests.models.tiny_vqkd import make_pixels, make_training_model

rank = int(sys.argv[1])
dist.init_process_group("gloo", rank=rank, world_size=2, init_method="file://" + sys.argv[2])
model = make_training_model().train()
for step in range(3):
    torch.manual_seed(step)  # the first process draws for both: the second's draws must not matter
    if rank:
        torch.manual_seed(100 + step)
    model(make_pixels(4, seed=step)[2 * rank : 2 * rank + 2])
torch.save(model.codebook.state_dict(), sys.argv[3])
dist.destroy_process_group()
"""


def test_codebooks_of_two_processes_are_equal(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(rank), str(tmp_path / "store"), str(tmp_path / str(rank))],
            env=environment,
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / str(rank), weights_only=True) for rank in range(2))
    assert states_equal(first, second)
    assert first["cluster_size"].sum() == pytest.approx(64, abs=1e-3)  # vectors of both: 2 x 2 pictures of 16


# ---- saving


@pytest.mark.parametrize("model_class", CLASSES)
def test_saved_and_loaded_model_is_equal(model_class, tmp_path):
    model = make_tokenizer(model_class=model_class)
    model.codebook.cluster_size.uniform_()
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert states_equal(model.state_dict(), loaded.state_dict())
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


def test_tokenizer_loads_from_a_training_checkpoint_without_a_word(tmp_path, caplog):
    model = make_training_model()
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "transformers"):
        for tokenizer in (VlBeitVqkdTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
            assert type(tokenizer) is VlBeitVqkdTokenizer
            assert torch.equal(tokenizer.get_token_ids(make_pixels()), model.get_token_ids(make_pixels()))
    assert "decoder" not in caplog.text
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is VlBeitVqkdForTraining


def test_training_starts_from_a_tokenizer_with_a_new_decoder(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    model, info = VlBeitVqkdForTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"decoder", "decoder_projection"}
    assert torch.equal(tokenizer.get_token_ids(make_pixels()), model.get_token_ids(make_pixels()))
    assert model(make_pixels()).loss.isfinite()


def test_codebook_that_a_checkpoint_lacks_is_initialised(tmp_path):
    model = make_training_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("codebook.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    codebook = VlBeitVqkdForTraining.from_pretrained(tmp_path).codebook
    torch.testing.assert_close(codebook.weight.norm(dim=1), torch.ones(12))
    assert not codebook.cluster_size.any()


EXPORT = """
import sys
sys.modules["hf_vlp"] = None  # any import of it fails
import torch
from transformers import AutoModel

tokenizer = AutoModel.from_pretrained("exported", trust_remote_code=True)
torch.save(tokenizer.get_token_ids(torch.load("pixels")), "ids")
tokenizer.save_pretrained("again")
"""


@pytest.mark.parametrize("model_class", CLASSES)
def test_export_gives_equal_ids_without_the_package(model_class, tmp_path):
    model, pixels = make_tokenizer(model_class=model_class), make_pixels()
    model.save_pretrained(tmp_path / "exported")
    torch.save(pixels, tmp_path / "pixels")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", EXPORT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "ids"), model.get_token_ids(pixels))
    auto_map = json.loads((tmp_path / "exported" / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig", "AutoModel", "AutoModelForPreTraining"}
    assert {file.name for file in (tmp_path / "again").glob("*.py")} == {
        file.name for file in (tmp_path / "exported").glob("*.py")
    }
