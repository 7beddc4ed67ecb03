"""Tests that every captioner passes: caches, beams, samples, prompts, several texts per picture, wrong inputs.

Models whose captions do not depend on the picture would pass most of these, so one test says that they do. Captions
are compared token by token, scores within 1e-4 (log-probabilities of a few tokens, other orders of summation).
"""

import pytest
import torch

from tests.common.setup import ModelSetup

NEW_TOKENS = 6
SCORES = {"atol": 1e-4, "rtol": 1e-4}


class GenerationTests(ModelSetup):
    """Declare `make_inputs`; the rest has defaults for a model that takes `pixel_values` and `input_ids`."""

    picture_input = "pixel_values"

    def pictures(self, config, number: int = 3) -> dict[str, torch.Tensor]:
        return {self.picture_input: self.make_inputs(config, rows=number, seed=5)[self.picture_input]}

    def picture_embeds(self, model, pictures) -> dict[str, torch.Tensor]:
        """The pictures as `generate` takes them once they are encoded."""
        return {"image_embeds": model.get_image_features(**pictures).pooler_output}

    def picture_encoder(self, model) -> torch.nn.Module:
        """The module that encodes pictures, called once per picture and no more."""
        return model.base_model.vision_model

    def cache_rows(self, cache) -> tuple[set[int], set[int]]:
        """Numbers of rows that the layers of a cache hold for the text and for the pictures."""
        text = {layer.keys.shape[0] for layer in cache.self_attention_cache.layers}
        return text, {layer.keys.shape[0] for layer in cache.cross_attention_cache.layers}

    def prompts(self, config, number: int) -> list[torch.Tensor]:
        """Texts of several lengths, each (length,), that begin with the begin token."""
        generator = torch.Generator().manual_seed(6)
        begin = torch.tensor([config.bos_token_id])
        words = config.get_text_config().vocab_size - 1
        return [torch.cat([begin, torch.randint(words, (1 + row % 3,), generator=generator)]) for row in range(number)]

    def padded(self, prompts, padding: int) -> dict[str, torch.Tensor]:
        length = max(map(len, prompts))
        ids = torch.full((len(prompts), length), padding)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = prompt
            mask[row, length - len(prompt) :] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def generate(self, model, inputs, **options):
        """Ids of exactly `NEW_TOKENS` new tokens: an end token would hide what comes after it."""
        options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, **options}
        return model.generate(**inputs, **options)

    def test_different_pictures_get_different_captions(self, variant):
        model = self.model_of(variant)
        captions = self.generate(model, self.pictures(model.config, 6)).tolist()
        assert len({tuple(caption) for caption in captions}) > 1
        assert {caption[0] for caption in captions} == {model.config.bos_token_id}

    @pytest.mark.parametrize("num_beams", (1, 3))
    def test_cache_changes_no_caption(self, variant, num_beams):
        model = self.model_of(variant)
        pictures = self.pictures(model.config)
        options = {"num_beams": num_beams, "return_dict_in_generate": True, "output_scores": True}
        cached = self.generate(model, pictures, use_cache=True, **options)
        plain = self.generate(model, pictures, use_cache=False, **options)
        assert torch.equal(cached.sequences, plain.sequences)
        for first, second in zip(cached.scores, plain.scores):
            torch.testing.assert_close(first, second, **SCORES)
        assert cached.past_key_values is not None
        assert plain.past_key_values is None

    def test_static_cache_gives_the_captions_of_a_growing_one(self, variant):
        model = self.model_of(variant)
        inputs = {**self.pictures(model.config), **self.padded(self.prompts(model.config, 3), 0)}
        growing = self.generate(model, inputs)
        assert torch.equal(self.generate(model, inputs, cache_implementation="static"), growing)

    def test_captions_do_not_depend_on_the_batch(self, variant):
        model = self.model_of(variant)
        pictures = self.pictures(model.config)
        together = self.generate(model, pictures, num_beams=2)
        for row in range(3):
            alone = self.generate(model, {name: value[row : row + 1] for name, value in pictures.items()}, num_beams=2)
            assert torch.equal(alone[0], together[row])

    def test_beams_share_the_keys_of_their_picture(self, variant):
        model = self.model_of(variant)
        pictures = self.pictures(model.config)
        outputs = self.generate(model, pictures, num_beams=4, return_dict_in_generate=True)
        assert self.cache_rows(outputs.past_key_values) == ({12}, {3})

    @pytest.mark.parametrize("options", ({}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}))
    def test_each_picture_is_encoded_once(self, variant, options):
        model = self.model_of(variant)
        pictures = self.pictures(model.config)
        encoded = []
        self.picture_encoder(model).register_forward_hook(lambda _, args, output: encoded.append(len(output[0])))
        self.generate(model, pictures, **options)
        assert encoded == [3]

    def test_samples_of_a_picture_share_it(self, variant):
        model = self.model_of(variant)
        pictures = self.pictures(model.config)
        options = {"do_sample": True, "return_dict_in_generate": True}
        torch.manual_seed(1)
        samples = self.generate(model, pictures, num_return_sequences=4, **options)
        assert samples.sequences.shape == (12, 1 + NEW_TOKENS)
        assert self.cache_rows(samples.past_key_values) == ({12}, {3})
        torch.manual_seed(1)
        repeated = {name: value.repeat_interleave(4, dim=0) for name, value in pictures.items()}
        assert torch.equal(samples.sequences, self.generate(model, repeated, **options).sequences)

    def test_beams_return_their_best_sequences_in_order(self, variant):
        model = self.model_of(variant)
        options = {"num_beams": 4, "return_dict_in_generate": True, "output_scores": True}
        outputs = self.generate(model, self.pictures(model.config), num_return_sequences=3, **options)
        assert outputs.sequences.shape == (9, 1 + NEW_TOKENS)
        scores = outputs.sequences_scores.view(3, 3)
        assert torch.equal(scores, scores.sort(descending=True).values)
        best = self.generate(model, self.pictures(model.config), num_beams=4)
        assert torch.equal(outputs.sequences[::3], best)

    @pytest.mark.parametrize("num_beams", (1, 2))
    def test_padded_prompts_continue_as_if_alone(self, variant, num_beams):
        model = self.model_of(variant)
        pictures = self.pictures(model.config)
        prompts = self.prompts(model.config, 3)
        padding = model.config.pad_token_id
        together = self.generate(model, {**pictures, **self.padded(prompts, padding)}, num_beams=num_beams)
        for row, prompt in enumerate(prompts):
            picture = {name: value[row : row + 1] for name, value in pictures.items()}
            alone = self.generate(model, {**picture, "input_ids": prompt[None]}, num_beams=num_beams)
            assert torch.equal(together[row, -len(prompt) - NEW_TOKENS :], alone[0])

    def test_begin_token_alone_is_the_same_as_no_prompt(self, variant):
        model = self.model_of(variant)
        pictures = self.pictures(model.config)
        begin = torch.full((3, 1), model.config.bos_token_id)
        assert torch.equal(self.generate(model, {**pictures, "input_ids": begin}), self.generate(model, pictures))

    @pytest.mark.parametrize("num_beams", (1, 2))
    def test_several_prompts_of_a_picture_share_it(self, variant, num_beams):
        model = self.model_of(variant)
        pictures = self.pictures(model.config, 2)
        prompts = self.padded(self.prompts(model.config, 6), model.config.pad_token_id)
        shared = self.generate(model, {**pictures, **prompts}, num_beams=num_beams)
        repeated = {name: value.repeat_interleave(3, dim=0) for name, value in pictures.items()}
        assert torch.equal(shared, self.generate(model, {**repeated, **prompts}, num_beams=num_beams))

    @pytest.mark.parametrize("num_beams", (1, 2))
    def test_encoded_pictures_get_the_captions_of_the_pictures(self, variant, num_beams):
        model = self.model_of(variant)
        pictures = self.pictures(model.config)
        with torch.no_grad():
            embeds = self.picture_embeds(model, pictures)
        captions = self.generate(model, pictures, num_beams=num_beams)
        assert torch.equal(self.generate(model, embeds, num_beams=num_beams), captions)

    @pytest.mark.parametrize("num_beams", (1, 2))
    def test_embedded_prompts_continue_as_their_words_do(self, variant, num_beams):
        """What comes back is new text alone: there are no ids of the prompt to begin with."""
        model = self.model_of(variant)
        pictures = self.pictures(model.config)
        prompts = self.padded(self.prompts(model.config, 3), model.config.pad_token_id)
        words = self.generate(model, {**pictures, **prompts}, num_beams=num_beams)
        ids = prompts.pop("input_ids")
        prompts["inputs_embeds"] = model.get_input_embeddings()(ids).detach()
        embedded = self.generate(model, {**pictures, **prompts}, num_beams=num_beams)
        assert torch.equal(embedded, words[:, ids.shape[1] :])

    def test_captions_end_at_the_end_token(self, variant):
        model = self.model_of(variant)
        pictures = self.pictures(model.config)
        model.generation_config.eos_token_id = None
        free = self.generate(model, pictures)
        end = int(free[0, 3])  # this token becomes the end
        padding = model.config.pad_token_id
        ended = self.generate(model, pictures, min_new_tokens=0, eos_token_id=end, pad_token_id=padding)
        for before, after in zip(free.tolist(), ended.tolist()):
            stop = before.index(end, 1) + 1 if end in before[1:] else len(before)
            assert after[:stop] == before[:stop]
            assert set(after[stop:]) <= {padding}

    def test_generate_without_a_picture_is_refused(self, variant):
        model = self.model_of(variant)
        with pytest.raises(ValueError, match=self.picture_input):
            model.generate()
        with pytest.raises(ValueError, match=self.picture_input):
            model.generate(input_ids=torch.full((1, 1), model.config.bos_token_id))

    def test_prompts_that_do_not_divide_among_pictures_are_refused(self, variant):
        model = self.model_of(variant)
        prompts = self.padded(self.prompts(model.config, 3), model.config.pad_token_id)
        with pytest.raises(ValueError, match=r"3 rows .* 2 images"):
            model.generate(**self.pictures(model.config, 2), **prompts)
