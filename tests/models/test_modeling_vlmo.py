"""VLMo: the common tests for every head, and what only VLMo promises.

Own tests: routing (which experts each path reads), the vision-language branch, leading positions of the last block,
texts without padding, shared picture embeddings, other picture sizes and text lengths at loading, the second picture
type, hard negatives, matching on a part of the batch, starting from BEiT, freezing of the language stage, parameter
groups, weight decay, wrong inputs.
"""

import json

import pytest
import torch
from transformers import (
    AutoModelForVisualQuestionAnswering,
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    BertConfig,
    BertModel,
)

from hf_vlp import (
    VlmoConfig,
    VlmoForImageClassification,
    VlmoForImagesAndTextClassification,
    VlmoForImageTextRetrieval,
    VlmoForMaskedLM,
    VlmoForPreTraining,
    VlmoForVisualQuestionAnswering,
    VlmoModel,
)
from tests.common.adapters import AdapterTests
from tests.common.modeling import CLOSE, ModelingTests
from tests.common.setup import ModelSetup, assert_same, different, run, states_of
from tests.common.training import TrainingTests

VOCAB_SIZE = 40
UNREAD = r"text_embeddings\.position_embeddings"


class VlmoSetup(ModelSetup):
    """A VLMo of three blocks, the last with a vision-language expert, and its inputs."""

    config_class = VlmoConfig
    base_model_class = VlmoModel
    variants = {"relative": {}, "absolute": {"absolute": True}}
    padding_values = {"input_ids": 0, "attention_mask": 0}
    padding_sides = ("right",)
    selected = {
        "half_precision|device_map|save_that_fails|shards|compiled|resumed|accumulated": ("relative",),
        "adapter|merged": ("relative",),
        "inductor": (),  # minutes; two heads stand for all
    }

    def make_config(self, absolute: bool = False, **choices) -> VlmoConfig:
        if absolute:
            choices |= {
                "use_relative_position_bias": False,
                "use_absolute_position_embeddings": True,
                "layer_scale_init_value": None,
            }
        sizes = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "vl_expert_start_layer": 2,
            "image_size": 16,
            "patch_size": 8,
            "max_text_length": 12,
            "max_text_length_of_table": 14,
            "drop_path_rate": 0.3,
        }
        return self.config_class(**{**sizes, **choices})

    def make_texts(self, rows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        input_ids = torch.randint(4, VOCAB_SIZE - 4, (rows, 7), generator=generator)
        input_ids[-1, 5:] = 0
        return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long()}

    def make_pictures(self, config, rows: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(rows, 3, config.image_size, config.image_size, generator=generator)

    def make_inputs(self, config, rows: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        texts = self.make_texts(rows, generator)
        return {
            **texts,
            "pixel_values": self.make_pictures(config, rows, generator),
            "labels": self.make_labels(config, texts["input_ids"], generator),
        }

    def make_labels(self, config, input_ids, generator) -> torch.Tensor:
        return torch.rand(len(input_ids), config.num_labels, generator=generator)

    def expected_shapes(self, config, inputs):
        return self.shapes_of(config, *inputs["input_ids"].shape, tokens=5)

    def shapes_of(self, config, rows, length, tokens):
        total = length + tokens
        return {
            "hidden_states": [(rows, total, 16)] * 4,
            "attentions": [(rows, 2, total, total)] * 3,
        }


class TestVlmoForVisualQuestionAnswering(VlmoSetup, ModelingTests, AdapterTests, TrainingTests):
    model_class = VlmoForVisualQuestionAnswering
    auto_class = "AutoModelForVisualQuestionAnswering"
    variants = {**VlmoSetup.variants, "convolution_stem": {"vision_stem": "convolution"}}
    selected = {**VlmoSetup.selected, "inductor": ("relative",)}
    idle_parameters = rf"{UNREAD}|layers\.2\.experts\.(text|image)\."

    def test_every_parameter_gets_a_gradient(self, variant):
        # With absolute positions the text position table is read.
        idle = self.idle_parameters if variant != "absolute" else r"layers\.2\.experts\.(text|image)\."
        checked = type("Checked", (type(self),), {"idle_parameters": idle})()
        super(TestVlmoForVisualQuestionAnswering, checked).test_every_parameter_gets_a_gradient(variant)


class TestVlmoForImagesAndTextClassification(VlmoSetup, ModelingTests, AdapterTests, TrainingTests):
    model_class = VlmoForImagesAndTextClassification
    auto_class = "AutoModelForSequenceClassification"
    variants = {"relative": {}}
    batch_outputs = ("hidden_states",)  # two rows to a statement
    idle_parameters = rf"{UNREAD}|layers\.2\.experts\.(text|image)\."

    def make_config(self, **choices):
        return super().make_config(type_vocab_size=3, **choices)

    def make_pictures(self, config, rows, generator):
        return torch.randn(rows, 2, 3, config.image_size, config.image_size, generator=generator)

    def make_labels(self, config, input_ids, generator):
        return torch.randint(0, 2, (len(input_ids),), generator=generator)

    def expected_shapes(self, config, inputs):
        rows, length = inputs["input_ids"].shape
        return self.shapes_of(config, 2 * rows, length, tokens=5)


class TestVlmoForImageTextRetrieval(VlmoSetup, ModelingTests, AdapterTests, TrainingTests):
    model_class = VlmoForImageTextRetrieval
    auto_class = "AutoModelForZeroShotImageClassification"
    variants = {"relative": {}, "no_matching_head": {"use_matching_head": False}}
    selected = {**VlmoSetup.selected, "accumulated|hidden_states": ()}  # negatives are those of the batch at hand
    batch_outputs = ("loss", "logits_per_image", "logits_per_text")
    idle_parameters = rf"{UNREAD}|experts\.vl\.|pooler\.|itm_head\."
    presets = ("attention", "image_expert", "text_expert", "experts")

    def make_inputs(self, config, rows=2, seed=0):
        inputs = super().make_inputs(config, rows, seed)
        del inputs["labels"]
        return inputs


class TestVlmoForMaskedLM(VlmoSetup, ModelingTests, AdapterTests, TrainingTests):
    """The language stage: no pictures and no vision-language experts."""

    model_class = VlmoForMaskedLM
    auto_class = "AutoModelForMaskedLM"
    variants = {"relative": {"vl_expert_start_layer": 3}, "tied": {"tie_word_embeddings": True}}
    selected = {**VlmoSetup.selected, "accumulated": ()}  # a mean over masked words, whose number varies
    padding_values = {**VlmoSetup.padding_values, "labels": -100}
    text_outputs = ("logits",)
    vocabulary_outputs = ("logits",)
    idle_parameters = rf"{UNREAD}|experts\.(image|vl)\.|image_embeddings\.|pooler\."
    presets = ("attention", "text_expert")

    def make_inputs(self, config, rows=2, seed=0):
        inputs = super().make_inputs(config, rows, seed)
        del inputs["pixel_values"]
        return inputs

    def make_labels(self, config, input_ids, generator):
        masked = torch.zeros_like(input_ids, dtype=torch.bool)
        masked[:, 2:4] = True
        return input_ids.masked_fill(~masked, -100)

    def expected_shapes(self, config, inputs):
        return self.shapes_of(config, *inputs["input_ids"].shape, tokens=0)


class TestVlmoForPreTraining(VlmoSetup, ModelingTests, AdapterTests, TrainingTests):
    model_class = VlmoForPreTraining
    auto_class = "AutoModelForPreTraining"
    variants = {"relative": {}}
    # Negatives are those of the batch at hand; states of which of its passes?
    selected = {**VlmoSetup.selected, "accumulated|hidden_states_and|does_not_depend": (), "inductor": ("relative",)}
    padding_values = {**VlmoSetup.padding_values, "labels": -100, "mlm_input_ids": 0}
    text_outputs = ("mlm_logits",)
    vocabulary_outputs = ("mlm_logits",)
    idle_parameters = UNREAD

    def make_labels(self, config, input_ids, generator):
        return TestVlmoForMaskedLM.make_labels(self, config, input_ids, generator)

    def make_inputs(self, config, rows=2, seed=0):
        inputs = super().make_inputs(config, rows, seed)
        other = 1 - torch.arange(rows) % 2  # a negative for each row of a batch of two
        return {
            **inputs,
            "mlm_input_ids": inputs["input_ids"].masked_fill(inputs["labels"] != -100, 3),
            "itm_negative_image_index": other,
            "itm_negative_text_index": other,
        }


class TestVlmoForImageClassification(VlmoSetup, ModelingTests, AdapterTests, TrainingTests):
    model_class = VlmoForImageClassification
    auto_class = "AutoModelForImageClassification"
    variants = {"relative": {}}
    mask_inputs = ()
    padding_values = {}
    idle_parameters = r"text_embeddings\.|experts\.(text|vl)\."
    presets = ("attention", "image_expert")

    def make_inputs(self, config, rows=2, seed=0):
        inputs = super().make_inputs(config, rows, seed)
        return {name: inputs[name] for name in ("pixel_values", "labels")}

    def make_labels(self, config, input_ids, generator):
        return torch.randint(0, 2, (len(input_ids),), generator=generator)

    def expected_shapes(self, config, inputs):
        return self.shapes_of(config, len(inputs["pixel_values"]), 0, tokens=5)


SETUP = TestVlmoForVisualQuestionAnswering()
PRE_TRAINING = TestVlmoForPreTraining()


def base_model(seed: int = 0, **choices) -> VlmoModel:
    setup = type("Setup", (VlmoSetup,), {"variants": {"only": choices}})()
    return setup.model_of("only", seed=seed, model_class=VlmoModel)


def encode(model, names, **options) -> torch.Tensor:
    """The last hidden state for some of the inputs."""
    inputs = SETUP.make_inputs(model.config)
    with torch.no_grad():
        return model(**{name: inputs[name] for name in names}, **options).last_hidden_state


PATHS = {
    "image": ("pixel_values",),
    "text": ("input_ids", "attention_mask"),
    "pair": ("pixel_values", "input_ids", "attention_mask"),
}


@pytest.mark.parametrize(
    "path, read",
    (
        ("image", {"0.image", "1.image", "2.image"}),
        ("text", {"0.text", "1.text", "2.text"}),
        ("pair", {"0.image", "0.text", "1.image", "1.text", "2.vl"}),
    ),
)
def test_each_path_reads_its_own_experts_and_no_other(path, read):
    model = base_model()
    before = encode(model, PATHS[path])
    found = set()
    for index, layer in enumerate(model.layers):
        for name, expert in layer.experts.items():
            bias = expert.fc2.bias.detach().clone()
            with torch.no_grad():
                expert.fc2.bias[0] += 1.0  # one entry: the norm behind it would take a constant away
                if not torch.equal(encode(model, PATHS[path]), before):
                    found.add(f"{index}.{name}")
                expert.fc2.bias.copy_(bias)
    assert found == read


@pytest.mark.parametrize("path", ("image", "text"))
def test_branch_runs_the_top_blocks_again_with_their_shared_expert(path):
    model = base_model()
    inputs = SETUP.make_inputs(model.config)
    inputs = {name: inputs[name] for name in PATHS[path]}
    plain = run(model, inputs, output_hidden_states=True)
    branched = run(model, inputs, output_vl_branch=True, output_hidden_states=True)
    assert torch.equal(plain["last_hidden_state"], branched["last_hidden_state"])
    # The same as a model whose top block has the shared expert where the modality's own was.
    top = model.layers[2].experts
    top[path], top["vl"] = top["vl"], top[path]
    swapped = run(model, inputs)
    torch.testing.assert_close(branched["vl_hidden_state"], swapped["last_hidden_state"], **CLOSE)
    assert not torch.allclose(branched["vl_hidden_state"], plain["last_hidden_state"], atol=1e-3)


@pytest.mark.parametrize("implementation", ("sdpa", "eager"))
@pytest.mark.parametrize("path", PATHS)
def test_leading_positions_alone_have_the_same_values(path, implementation):
    model = base_model()
    model.set_attn_implementation(implementation)
    whole = encode(model, PATHS[path])
    for number in (1, 3):
        part = encode(model, PATHS[path], num_outputs=number)
        assert part.shape[1] == number
        torch.testing.assert_close(part, whole[:, :number], **CLOSE)


@pytest.mark.parametrize("variant", ("relative", "absolute"))
def test_text_of_any_length_gives_the_same_without_padding(variant):
    model = SETUP.model_of(variant)
    inputs = SETUP.inputs_without_labels(model.config)
    padded = run(model, inputs)["logits"][-1:]
    trimmed = {name: value[-1:] for name, value in inputs.items()}
    for name in ("input_ids", "attention_mask"):
        trimmed[name] = trimmed[name][:, :5]
    torch.testing.assert_close(run(model, trimmed)["logits"], padded, **CLOSE)
    del trimmed["attention_mask"]  # no padding, no mask needed
    torch.testing.assert_close(run(model, trimmed)["logits"], padded, **CLOSE)


def test_relative_positions_take_texts_up_to_the_table_and_absolute_ones_up_to_their_own():
    texts = torch.ones(1, 14, dtype=torch.long)
    relative, absolute = base_model(), base_model(absolute=True)
    with torch.no_grad():
        assert relative(input_ids=texts).last_hidden_state.shape == (1, 14, 16)
        assert absolute(input_ids=texts[:, :12]).last_hidden_state.shape == (1, 12, 16)
        for model, longest in ((relative, 14), (absolute, 12)):
            with pytest.raises(ValueError, match=f"15 tokens is longer than the {longest}"):
                model(input_ids=torch.ones(1, 15, dtype=torch.long))


def test_embedded_pictures_can_be_given_again():
    model = base_model()
    inputs = SETUP.make_inputs(model.config)
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    patches = model.image_embeddings(inputs["pixel_values"])
    assert_same(
        run(model, {**texts, "pixel_values": inputs["pixel_values"]}), run(model, {**texts, "image_embeds": patches})
    )


@pytest.mark.parametrize("variant", ("relative", "absolute"))
def test_other_picture_size_and_text_length_load_with_interpolated_positions(variant, tmp_path):
    model = SETUP.model_of(variant)
    model.save_pretrained(tmp_path)
    small = states_of(model)
    ways = (
        lambda **sizes: VlmoForVisualQuestionAnswering.from_pretrained(tmp_path, **sizes),
        lambda **sizes: AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path, **sizes),
        lambda **sizes: VlmoForVisualQuestionAnswering.from_pretrained(
            tmp_path, config=VlmoConfig.from_pretrained(tmp_path, **sizes)
        ),
    )
    loaded = [way(image_size=32, max_text_length=9) for way in ways]
    for large in loaded:
        assert (large.config.image_size, large.config.max_text_length) == (32, 9)
        assert different(states_of(loaded[0]), states_of(large)) == []
        assert {parameter.shape for parameter in large.parameters()} == {
            parameter.shape for parameter in type(large)(large.config).parameters()
        }
        inputs = SETUP.make_inputs(large.config)
        assert run(large, inputs)["logits"].isfinite().all()
        with pytest.raises(ValueError, match=r"3, 32, 32\), not \(2, 3, 16, 16\)"):
            run(large, SETUP.make_inputs(model.config))
    # Nothing else changed, and the way back in the text table is a cut.
    changed = set(different(small, states_of(loaded[0])))
    tables = {name for name in small if "position" in name}
    assert changed <= tables
    table = "vlmo.text_embeddings.position_embeddings.weight"
    assert torch.equal(states_of(loaded[0])[table], small[table][:9])
    # A size that is saved is loaded again as it is.
    loaded[0].save_pretrained(tmp_path / "large")
    again = VlmoForVisualQuestionAnswering.from_pretrained(tmp_path / "large")
    assert different(states_of(again), states_of(loaded[0])) == []


def test_longer_text_table_keeps_its_rows_and_adds_finite_ones(tmp_path):
    model = base_model()
    model.save_pretrained(tmp_path)
    longer = VlmoModel.from_pretrained(tmp_path, max_text_length=14)
    table = longer.text_embeddings.position_embeddings.weight
    assert torch.equal(table[:12], model.text_embeddings.position_embeddings.weight)
    assert table[12:].isfinite().all()
    with pytest.raises(ValueError, match="max_text_length=15 is longer than max_text_length_of_table=14"):
        VlmoModel.from_pretrained(tmp_path, max_text_length=15)


def test_second_picture_starts_as_a_copy_of_the_first_type(tmp_path):
    PRE_TRAINING.model_of("relative").save_pretrained(tmp_path)
    model, report = VlmoForImagesAndTextClassification.from_pretrained(tmp_path, output_loading_info=True)
    types = model.vlmo.token_type_embeddings.weight
    assert model.config.type_vocab_size == len(types) == 3
    assert torch.equal(types[2], types[1])
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"classifier"}


def test_second_picture_has_its_own_type():
    setup = TestVlmoForImagesAndTextClassification()
    model = setup.model_of("relative")
    inputs = setup.inputs_without_labels(model.config)
    same = {**inputs, "pixel_values": inputs["pixel_values"][:, :1].expand(-1, 2, -1, -1, -1)}
    before = run(model, same)["logits"]
    with torch.no_grad():
        model.vlmo.token_type_embeddings.weight[2].mul_(-1.0)
    assert not torch.allclose(run(model, same)["logits"], before, atol=1e-3)
    with pytest.raises(ValueError, match="two pictures each"):
        run(model, {**inputs, "pixel_values": inputs["pixel_values"][:, 0]})
    untyped = VlmoForImagesAndTextClassification(VlmoSetup().make_config())
    with pytest.raises(ValueError, match="type_vocab_size=2 has no type for the second picture"):
        run(untyped, inputs)


def test_labels_as_class_numbers_are_scores_of_one():
    model = SETUP.model_of("relative")
    inputs = SETUP.inputs_without_labels(model.config)
    numbers = torch.tensor([1, 0])
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    with torch.no_grad():
        assert model(**inputs, labels=numbers).loss == model(**inputs, labels=scores).loss


class TestHardNegatives:
    """Matching of `VlmoForPreTraining`."""

    def inputs(self, rows):
        model = PRE_TRAINING.model_of("relative")
        inputs = PRE_TRAINING.make_inputs(model.config, rows=rows)
        del inputs["itm_negative_image_index"], inputs["itm_negative_text_index"]
        return model, inputs

    def test_negatives_are_never_the_own_pair_and_follow_similarity(self):
        model, inputs = self.inputs(rows=4)
        with torch.no_grad():
            # Far beyond float32's softmax: the own pair takes all, and a division by its rest would be 0 / 0.
            model.logit_scale.fill_(8.0)
        torch.manual_seed(0)
        draws = [run(model, inputs) for _ in range(10)]
        for name, logits in (("image", "logits_per_text"), ("text", "logits_per_image")):
            similar = draws[0][logits].clone().fill_diagonal_(-torch.inf).argmax(dim=1)
            for outputs in draws:
                assert torch.equal(outputs[f"itm_negative_{name}_index"], similar)

    def test_given_negatives_give_the_loss_of_the_drawn_ones(self):
        model, inputs = self.inputs(rows=3)
        torch.manual_seed(1)
        drawn = run(model, inputs)
        names = ("itm_negative_image_index", "itm_negative_text_index")
        assert_same(drawn, run(model, {**inputs, **{name: drawn[name] for name in names}}))

    def test_batch_of_one_pair_has_no_negative(self):
        model, inputs = self.inputs(rows=1)
        with pytest.raises(ValueError, match="one pair only: use larger batches"):
            model(**inputs)

    def test_one_pair_alone_can_be_encoded_without_labels(self):
        model, inputs = self.inputs(rows=1)
        del inputs["labels"]
        outputs = run(model, inputs)
        assert outputs["mlm_logits"].shape == (1, 7, VOCAB_SIZE)
        assert outputs["logits_per_image"].shape == (1, 1)
        assert not {"loss", "itm_logits"} & outputs.keys()

    def test_one_kind_of_negatives_alone_is_refused(self):
        model, inputs = self.inputs(rows=2)
        with pytest.raises(ValueError, match="together, or neither"):
            model(**inputs, itm_negative_image_index=torch.tensor([1, 0]))

    def test_matching_on_a_part_leaves_the_other_objectives_alone(self):
        model, inputs = self.inputs(rows=4)
        torch.manual_seed(2)
        whole = run(model, inputs)
        torch.manual_seed(2)
        part = run(model, inputs, num_matching=2)
        for name in ("losses.mlm", "losses.itc", "mlm_logits", "itm_negative_text_index"):
            torch.testing.assert_close(part[name], whole[name], **CLOSE)
        rows = [0, 1, 4, 5, 8, 9]  # the first two of each third
        torch.testing.assert_close(part["itm_logits"], whole["itm_logits"][rows], **CLOSE)
        assert "losses.itm" not in run(model, inputs, num_matching=0)


@pytest.mark.parametrize(
    "setup",
    (
        TestVlmoForMaskedLM(),
        TestVlmoForImageClassification(),
        TestVlmoForImagesAndTextClassification(),
        TestVlmoForVisualQuestionAnswering(),
    ),
    ids=lambda setup: setup.model_class.__name__,
)
def test_rows_without_label_do_not_count(setup):
    """Without a single label the loss is 0, not 0 / 0."""
    model = setup.model_of("relative")
    inputs = setup.make_inputs(model.config)
    first = {name: value[:1] for name, value in inputs.items()}
    labels = inputs["labels"].clone()
    labels[1] = -100
    with torch.no_grad():
        torch.testing.assert_close(model(**{**inputs, "labels": labels}).loss, model(**first).loss, **CLOSE)
    loss = model(**{**inputs, "labels": torch.full_like(labels, -100)}).loss
    assert loss == 0
    loss.backward()
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_masked_words_can_be_read_from_the_picture():
    model = TestVlmoForMaskedLM().model_of("relative")
    inputs = SETUP.inputs_without_labels(model.config)
    logits = run(model, inputs)["logits"]
    assert logits.shape == (2, 7, VOCAB_SIZE)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(0)}
    assert not torch.allclose(run(model, other)["logits"], logits, atol=1e-3)


class TestBeit:
    """Starting from BEiT."""

    def make_config(self, **choices) -> BeitConfig:
        return BeitConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=32,
            patch_size=8,
            vocab_size=20,
            layer_norm_eps=1e-6,
            **{"use_relative_position_bias": True, **choices},
        )

    def beit(self, model_class=BeitForImageClassification, **choices):
        torch.manual_seed(0)
        model = model_class(self.make_config(**choices))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model.eval()

    @pytest.mark.parametrize("shared", (False, True), ids=("own tables", "shared table"))
    def test_picture_path_equals_beit(self, shared):
        beit = self.beit(
            BeitForMaskedImageModeling if shared else BeitForImageClassification,
            use_relative_position_bias=not shared,
            use_shared_relative_position_bias=shared,
        )
        model = VlmoModel.from_beit_pretrained(beit, max_text_length=10)
        pixel_values = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            theirs = beit.beit(pixel_values, output_hidden_states=True).hidden_states
            ours = model(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        assert len(theirs) == len(ours)
        # The type embedding of pictures is new.
        torch.testing.assert_close(ours[0] - model.token_type_embeddings.weight[1], theirs[0], **CLOSE)
        with torch.no_grad():
            model.token_type_embeddings.weight.zero_()
            ours = model(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        torch.testing.assert_close(ours[1], theirs[1], **CLOSE)

    def test_folder_and_object_give_the_same_and_stay_untouched(self, tmp_path):
        beit = self.beit()
        beit.save_pretrained(tmp_path)
        before = states_of(beit)
        one, other = VlmoModel.from_beit_pretrained(beit), VlmoModel.from_beit_pretrained(tmp_path)
        with torch.no_grad():
            one.layers[0].experts["image"].fc1.weight.zero_()
        assert different(before, states_of(beit)) == []
        mine = {name: value for name, value in states_of(one).items() if "attention." in name}
        theirs = {name: value for name, value in states_of(other).items() if "attention." in name}
        assert mine
        assert different(mine, theirs) == []

    def test_text_side_is_new_and_the_picture_size_can_change(self):
        model = VlmoModel.from_beit_pretrained(self.beit(), image_size=48, vl_expert_start_layer=1)
        assert model.config.image_size == 48
        table = model.layers[0].attention.position_bias_table
        rows = (2 * 6 - 1) ** 2 + 3
        assert table[:rows].any()
        assert not table[rows:].any()
        text, image = (model.layers[0].experts[name].fc1.weight for name in ("text", "image"))
        assert not torch.equal(text, image)
        assert "vl" in model.layers[1].experts

    def test_other_architectures_and_other_sizes_are_refused(self, tmp_path):
        bert = BertModel(
            BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        )
        with pytest.raises(TypeError, match="not from BertModel"):
            VlmoModel.from_beit_pretrained(bert)
        bert.save_pretrained(tmp_path)
        with pytest.raises(TypeError, match="is a 'bert' model"):
            VlmoModel.from_beit_pretrained(tmp_path)
        with pytest.raises(ValueError, match="hidden_size=32 differs from the BEiT's 16"):
            VlmoModel.from_beit_pretrained(self.beit(), hidden_size=32)
        with pytest.raises(ValueError, match="vision_stem='convolution' has no place"):
            VlmoModel.from_beit_pretrained(self.beit(), vision_stem="convolution")
        plain = self.beit(BeitModel, use_relative_position_bias=False)
        with pytest.raises(ValueError, match="no relative position bias"):
            VlmoModel.from_beit_pretrained(plain)


def test_wrong_inputs_say_what_was_expected():
    model = base_model()
    inputs = SETUP.make_inputs(model.config)
    with pytest.raises(ValueError, match="give pixel_values, input_ids or both"):
        model()
    with pytest.raises(ValueError, match="2 texts and 1 pictures do not make pairs"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"][:1])
    with pytest.raises(ValueError, match="A text of no tokens"):
        model(input_ids=inputs["input_ids"][:, :0])
    with pytest.raises(ValueError, match="not both"):
        model(input_ids=inputs["input_ids"], inputs_embeds=torch.zeros(2, 7, 16))
    with pytest.raises(ValueError, match="a picture or a text alone"):
        model(**{name: inputs[name] for name in PATHS["pair"]}, output_vl_branch=True)
    with pytest.raises(ValueError, match="has 0 of them"):
        base_model(vl_expert_start_layer=3)(input_ids=inputs["input_ids"], output_vl_branch=True)
    with pytest.raises(ValueError, match="no matching head"):
        TestVlmoForImageTextRetrieval().model_of("no_matching_head").score_pairs(
            inputs["pixel_values"], inputs["input_ids"]
        )


def test_retrieval_scores_are_cosines_and_match_logits():
    setup = TestVlmoForImageTextRetrieval()
    model = setup.model_of("relative")
    inputs = setup.make_inputs(model.config, rows=3)
    outputs = run(model, inputs)
    for name in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(outputs[name].norm(dim=1), torch.ones(3), **CLOSE)
    expected = model.logit_scale.exp() * outputs["image_embeds"] @ outputs["text_embeds"].T
    torch.testing.assert_close(outputs["logits_per_image"], expected.detach(), **CLOSE)
    two_texts = {**inputs, "input_ids": inputs["input_ids"][:2], "attention_mask": inputs["attention_mask"][:2]}
    outputs = run(model, two_texts)
    assert outputs["logits_per_image"].shape == (3, 2)
    assert "loss" not in outputs
    with torch.no_grad():
        scores = model.score_pairs(inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"])
        pooled = model.vlmo(**inputs).pooler_output
    torch.testing.assert_close(scores, model.itm_head(pooled)[:, 1].detach(), **CLOSE)


@pytest.mark.parametrize("chunk_size", (1, 2, 8))
def test_chunks_have_the_gradient_of_the_whole_batch_and_keep_fewer_activations(chunk_size):
    setup = TestVlmoForImageTextRetrieval()
    model = setup.model_of("relative").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    inputs = setup.make_inputs(model.config, rows=5)

    def train(**options):
        kept = []
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda saved: kept.append(saved.numel()) or saved, lambda saved: saved
        ):
            loss = model(**inputs, **options).loss
        loss.backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        return {"loss": loss.detach(), **gradients}, sum(kept)

    whole, size = train()
    chunks, smaller_size = train(chunk_size=chunk_size)
    assert_same(whole, chunks, **CLOSE)
    assert smaller_size < size / 5
    with torch.no_grad():
        assert_same(run(model, inputs), run(model, inputs, chunk_size=chunk_size))


def test_language_stage_trains_the_text_side_only():
    model = TestVlmoForMaskedLM().model_of("relative")
    model.freeze_for_language_stage()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kinds = {name for name in states_of(model) if "experts.text" in name or "position_bias_table" in name}
    prefixes = ("vlmo.text_embeddings.", "vlmo.token_type_embeddings.", "vlmo.norm.", "mlm_head.")
    assert trained == kinds | {name for name in states_of(model) if name.startswith(prefixes)}


def test_parameters_tell_their_group_layer_and_decay():
    model = SETUP.model_of("relative")
    names = [name for name, _ in model.named_parameters()]
    assert {name for name in names if model.get_parameter_group(name) == "head"} == {
        name for name in names if name.startswith("classifier.")
    }
    assert {model.get_parameter_layer(name)[1] for name in names} == {4}
    assert model.get_parameter_layer("vlmo.image_embeddings.cls_token")[0] == 0
    assert model.get_parameter_layer("vlmo.layers.1.attention.qkv.weight")[0] == 2
    assert model.get_parameter_layer("classifier.dense.weight")[0] == 4
    plain, original = model.no_weight_decay(), model.no_weight_decay(original=True)
    decayed_by_the_original = {"vlmo.layers.0.experts.text.norm.weight", "vlmo.layers.0.attention_scale"}
    assert decayed_by_the_original <= plain - original
    assert {"vlmo.norm.weight", "vlmo.layers.0.attention.position_bias_table"} <= plain & original
    assert not {"vlmo.layers.0.attention.qkv.weight", "classifier.dense.weight"} & (plain | original)


@pytest.mark.parametrize(
    ("setup", "tasks"),
    ((SETUP, {"visual-question-answering"}), (TestVlmoForImageTextRetrieval(), set())),
    ids=("answers", "retrieval"),
)
def test_repository_carries_the_pipeline_of_its_own_head_only(setup, tasks, tmp_path):
    setup.model_of("relative").save_pretrained(tmp_path)
    listed = json.loads((tmp_path / "config.json").read_text()).get("custom_pipelines") or {}
    assert set(listed) == tasks
    assert (tmp_path / "visual_question_answering.py").exists() == bool(tasks)
