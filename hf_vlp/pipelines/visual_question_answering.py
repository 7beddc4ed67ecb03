"""Visual question answering pipeline: a picture and a question in, answers out, as transformers 4's.

transformers 5 removed the task `"visual-question-answering"` (alias `"vqa"`), though it still has models for it. This
class keeps the old contract: classifiers such as VLMo and ViLT give the `top_k` most likely answers, each with the
sigmoid of its logit as score (a separate probability for each answer: they do not add up to 1); models that generate
(BLIP, BLIP-2) give their text, without a score.

Differences from the old pipeline: bytes, `{"bytes", "path"}` dicts and any iterable are inputs too; a picture with
several questions is read and processed once; pictures of different sizes may share a batch; a question too long for
the model is cut with a warning, where it used to fail; a picture that cannot be read is named in the error.

The file travels with exported checkpoints: it may import transformers, torch, its sibling `image_pipeline.py`, and
nothing else of this package.
"""

import inspect
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForVisualQuestionAnswering
from transformers.utils import logging

from .image_pipeline import ImagePipeline, Numbered, is_indexable, is_single, load_image

logger = logging.get_logger(__name__)


@dataclass
class _Picture:
    """A picture that several questions are about; its tensors are kept once they have been made."""

    source: Any
    features: dict[str, torch.Tensor] | None = None


class _Rows(Dataset):
    """Indexable dicts with `image` and `question`, or pictures that are each asked all `questions` in turn.

    Rows after each other that have the same picture share its tensors.
    """

    def __init__(self, items, questions: list | None = None):
        self.items = items
        self.questions = questions
        self._place = self._item = None
        self._picture = None

    def __len__(self):
        return len(self.items) * (1 if self.questions is None else len(self.questions))

    def __getitem__(self, index):
        place, which = divmod(index, 1 if self.questions is None else len(self.questions))
        if place != self._place:  # an item of a dataset may be decoded anew each time that it is looked up
            self._place, self._item = place, self.items[place]
        row = self._item if self.questions is None else _join(self._item, self.questions[which])
        if isinstance(row, Mapping) and "image" in row:
            source, last = row["image"], self._picture and self._picture.source
            # Only the last one is kept: with thousands of pictures their tensors would fill the memory.
            if not (source is last or (isinstance(source, str) and source == last)):
                self._picture = _Picture(source)
            row = {**row, "image": self._picture}
        return Numbered(place if len(self.items) > 1 else which, row)


class VisualQuestionAnsweringPipeline(ImagePipeline):
    """Answer questions about pictures with any model that `AutoModelForVisualQuestionAnswering` loads.

    Needs either a processor, or an image processor and a tokenizer.

    Example:

    ```python
    >>> import hf_vlp
    >>> from transformers import pipeline

    >>> oracle = pipeline("visual-question-answering", model="dandelin/vilt-b32-finetuned-vqa")
    >>> oracle(image="parrots.png", question="How many birds are there?", top_k=2)
    [{'score': 0.99, 'answer': '2'}, {'score': 0.01, 'answer': '3'}]
    ```
    """

    _pipeline_calls_generate = True
    # Here a number of answers, not an option of `generate`.
    _non_generation_params = ("top_k",)

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        # An adapter's own `forward` takes anything and hands it on.
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepted = set(inspect.signature(inner.forward).parameters)
        if not {"pixel_values", "input_ids"} <= self._accepted:
            raise ValueError(
                f"{type(inner).__name__} does not take a picture and a text. Load the checkpoint with"
                " `AutoModelForVisualQuestionAnswering`."
            )
        if self.tokenizer is not None and set(self.tokenizer.get_vocab()) <= set(self.tokenizer.all_special_tokens):
            # What the library makes of a folder without tokenizer files; every word would be unknown, silently.
            raise ValueError(
                "The tokenizer knows no words, only special tokens: its files are missing beside the model. Save a"
                " tokenizer there, or pass `tokenizer=`."
            )

    def _sanitize_parameters(
        self,
        top_k=None,
        padding=None,
        truncation=None,
        timeout=None,
        max_new_tokens=None,
        generate_kwargs=None,
        **generation_arguments,
    ):
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k={top_k!r} must be a whole number of at least 1: how many answers are returned.")
        given = {"padding": padding, "truncation": truncation, "timeout": timeout}
        preprocess_params = {name: value for name, value in given.items() if value is not None}
        if self._generates:
            forward_params = self._generation_parameters(
                max_new_tokens, generate_kwargs, generation_arguments, "top_k, padding, truncation"
            )
        else:
            unknown = sorted(generation_arguments)
            unknown += ["max_new_tokens"] * (max_new_tokens is not None) + ["generate_kwargs"] * bool(generate_kwargs)
            if unknown:
                raise TypeError(
                    f"The visual-question-answering pipeline got unknown arguments {unknown}. With"
                    f" {type(self.model).__name__}, which chooses among fixed answers instead of generating text, it"
                    " takes top_k, padding, truncation, timeout, batch_size and num_workers."
                )
            forward_params = {}
        return preprocess_params, forward_params, {} if top_k is None else {"top_k": top_k}

    def __call__(self, image=None, question=None, **kwargs):
        """Answer one question about one picture, or many.

        Args:
            image: One picture: PIL image, path, `http(s)` URL, base64 text, encoded bytes or `{"bytes", "path"}`. Or
                several: a list, tuple, `KeyDataset` or other iterable of these. Or, without `question`, a dict with
                `image` and `question`, or a list, a dataset, a generator or any other iterable of such dicts, whose
                further keys are ignored.
            question: One question, or a list of them. Each is asked about each picture.
            top_k (`int`): Answers returned for each question, 5 if not given; at most as many as the model knows.
            timeout (`float`): Seconds to wait for a URL.
            padding, truncation: As tokenizers take them. Questions are padded to the longest of a batch, and cut to
                what the model has positions for, if not given.
            max_new_tokens, generate_kwargs, fields of `GenerationConfig`: For models that generate.
            batch_size, num_workers (`int`): Questions per call of the model; processes that read pictures.

        Returns:
            For one picture and one question a list of dicts `{"score": float, "answer": str}`, best first; models that
            generate leave out `score` and return one dict, or `num_return_sequences`. For several pictures or
            questions in lists a list of such lists: in the order of the dicts, or all pictures with the first
            question, then with the second, and so on. For streamed dicts, and for pictures from a generator with one
            question, an iterator over such lists.

        Raises:
            ValueError: A picture cannot be read (the message has its name and its place), a question is missing.
            TypeError: An input is no picture or no question, an argument is unknown.
        """
        if image is None:
            raise ValueError("The visual-question-answering pipeline was called without a picture.")
        if question is None:
            if is_single(image):
                return super().__call__(image, **kwargs)
            if not is_indexable(image):
                return self.call_many(image, **kwargs)
            answers = super().__call__(_Rows(image), **kwargs)
            return list(answers) if isinstance(image, (list, tuple)) else answers

        if isinstance(question, str) or not isinstance(question, Iterable):
            questions = [question]
        else:
            questions = list(question)
            if is_single(image):
                image = [image]
        if is_single(image):
            return super().__call__(_join(image, question), **kwargs)
        if len(questions) == 1 and not is_indexable(image):
            return self.call_many((_join(picture, questions[0]) for picture in image), **kwargs)
        pictures = image if is_indexable(image) else list(image)
        # Picture by picture, so that each is read once; handed back question by question.
        answers = list(super().__call__(_Rows(pictures, questions), **kwargs))
        return [answer for position in range(len(questions)) for answer in answers[position :: len(questions)]]

    def preprocess_one(self, inputs, padding=False, truncation=True, timeout=None):
        """Read the picture and tokenize the question of one dict."""
        if not (isinstance(inputs, Mapping) and "image" in inputs):
            raise ValueError(
                f"Expected a picture with a question, got {_name(inputs)} alone. Call the pipeline with image=... and"
                ' question=..., or with dicts {"image": ..., "question": ...}.'
            )
        question = inputs.get("question")
        if not isinstance(question, str):
            raise TypeError(
                f"`question` must be a string, got {question!r:.80}. Several questions about a picture go into a list,"
                " pipe(image=..., question=[...]), or into a dict each."
            )
        picture = inputs["image"] if isinstance(inputs["image"], _Picture) else _Picture(inputs["image"])
        if getattr(self.processor, "image_token", None) is not None:
            # BLIP-2 and its like: the text has a placeholder for each visual token, so both are encoded together.
            image = load_image(picture.source, timeout=timeout)
            encoded = self.processor(images=image, text=question, return_tensors="pt").to(self.dtype)
            names = [name for name in encoded if name not in self.image_processor.model_input_names]
            return {"question": {name: encoded.pop(name)[0].tolist() for name in names}, "picture": dict(encoded)}
        if picture.features is None:
            image = load_image(picture.source, timeout=timeout)
            features = self.image_processor(images=image, return_tensors="pt").to(self.dtype)
            picture.features = {name: value for name, value in features.items() if name in self._accepted}
        return {"question": self._tokenize(question, padding, truncation), "picture": picture.features}

    def _tokenize(self, question: str, padding, truncation) -> dict[str, list[int]]:
        """Token ids and masks of a question, without what the model does not take (VLMo: token types)."""
        config = self.model.config.get_text_config()
        limits = [self.tokenizer.model_max_length]
        limits += [getattr(config, name, None) for name in ("max_text_length", "max_position_embeddings")]
        room = min(limit for limit in limits if isinstance(limit, int))
        encoded = self.tokenizer(question, padding=False, truncation=False, verbose=False)
        if truncation and len(encoded["input_ids"]) > room:
            logger.warning_once(
                f"A question of {len(encoded['input_ids'])} tokens was cut to the {room} that"
                f" {type(self.model).__name__} takes: {question!r:.80}. This is told once."
            )
            encoded = self.tokenizer(question, truncation=truncation, max_length=room)
            if getattr(self.tokenizer, "is_fast", False):
                self.tokenizer.backend_tokenizer.no_truncation()  # it would be saved with the tokenizer
        if padding:
            encoded = self.tokenizer.pad(encoded, padding=padding, max_length=room)
        encoded.setdefault("attention_mask", [1] * len(encoded["input_ids"]))
        return {name: list(ids) for name, ids in encoded.items() if name in self._accepted}

    def _forward(self, model_inputs, **generate_kwargs):
        questions, pictures = model_inputs["question"], model_inputs["picture"]
        if isinstance(questions, Mapping):  # one, not a batch
            questions, pictures = [questions], [pictures]
        # Some models (ViLT) keep the shape of a picture. Those of equal shape go together: so none is padded.
        groups = defaultdict(list)
        for row, picture in enumerate(pictures):
            groups[tuple((name, tuple(value.shape)) for name, value in picture.items())].append(row)
        answers = [None] * len(questions)
        answer = self._generate if self._generates else self._classify
        for rows in groups.values():
            features = {name: torch.cat([pictures[row][name] for row in rows]) for name in pictures[rows[0]]}
            for row, result in zip(rows, answer(features, [questions[row] for row in rows], **generate_kwargs)):
                answers[row] = result
        return {"answers": answers}

    def _classify(self, features, questions) -> torch.Tensor:
        """The score of each answer, (questions, labels)."""
        longest = max(len(question["input_ids"]) for question in questions)
        fill = {"input_ids": self.tokenizer.pad_token_id or 0}
        text = {
            # On the right, whatever the tokenizer prefers: the models count positions from the left.
            name: [question[name] + [fill.get(name, 0)] * (longest - len(question[name])) for question in questions]
            for name in questions[0]
        }
        text = {name: torch.tensor(rows, device=self.device) for name, rows in text.items()}
        logits = getattr(self.model(**features, **text), "logits", None)
        if logits is None or tuple(logits.shape) != (len(questions), len(self.model.config.id2label)):
            raise ValueError(
                f"{type(self.model).__name__} gives no score for each of the {len(self.model.config.id2label)} labels"
                " in its configuration. Load the checkpoint with `AutoModelForVisualQuestionAnswering`."
            )
        return logits.float().sigmoid()

    def _generate(self, features, questions, **generate_kwargs) -> list[torch.Tensor]:
        """The token ids of the answers to each question, (answers, length) for each."""
        generate_kwargs = self._prepare_generate_kwargs(generate_kwargs, return_dict_in_generate=False)
        has_placeholders = getattr(self.processor, "image_token", None) is not None
        sequences = self.generate_in_groups(features, questions, generate_kwargs, continues_text=has_placeholders)
        if has_placeholders:
            # These repeat the question in front of the answer.
            for row, (ids, question) in enumerate(zip(sequences, questions)):
                prompt = torch.tensor(question["input_ids"], device=ids.device)
                if ids.shape[1] >= len(prompt) and bool((ids[:, : len(prompt)] == prompt).all()):
                    sequences[row] = ids[:, len(prompt) :]
        return sequences

    def postprocess(self, model_outputs, top_k=5):
        """The best answers to one question."""
        answers = model_outputs["answers"][0]
        if self._generates:
            texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
            return [{"answer": text.strip()} for text in texts[:top_k]]
        scores, labels = answers.topk(min(top_k, len(answers)))
        id2label = self.model.config.id2label
        return [{"score": score, "answer": id2label[label]} for score, label in zip(scores.tolist(), labels.tolist())]


def _join(picture: Any, question: Any) -> dict[str, Any]:
    """One input of the model; a dict may stand for its picture, as rows of a dataset do."""
    if isinstance(picture, Mapping) and "image" in picture:
        if picture.get("question") is not None:
            raise ValueError("A dict with a question of its own and `question=` were given. Leave out one of them.")
        picture = picture["image"]
    return {"image": picture, "question": question}


def _name(value: Any) -> str:
    return f"a dict with {sorted(map(str, value))}" if isinstance(value, Mapping) else f"a {type(value).__name__}"


# What the base class writes into `config.custom_pipelines`.
VisualQuestionAnsweringPipeline._registered_impl = {
    "visual-question-answering": {
        "impl": VisualQuestionAnsweringPipeline,
        "pt": (AutoModelForVisualQuestionAnswering,),
        "type": "multimodal",
    }
}
