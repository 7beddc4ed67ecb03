"""Answers to questions about pictures in files, folders and on the web; what is bad is reported, not fatal."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from hf_vlp.data.image_io import ImageError, load_image
from hf_vlp.loading import load_complete


@dataclass(frozen=True)
class AnsweredQuestion:
    """A picture's path or address, a question, and either its answers or why the picture could not be read.

    answers: best first, as the pipeline gives them: `{"answer": str, "score": float}`, without a score from models
        that generate.
    """

    picture: str
    question: str
    answers: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None


def load_answerer(model_id: str, *, device: str | None = None):
    """The visual-question-answering pipeline of a folder or Hub id, on an accelerator where there is one.

    Raises OSError or ValueError when there is no such model, or one that has not been trained for it.
    """
    from transformers import AutoProcessor, ProcessorMixin

    from hf_vlp.pipelines import pipeline

    model = load_complete("AutoModelForVisualQuestionAnswering", model_id, device=device)
    processor = AutoProcessor.from_pretrained(model_id)
    # Of a checkpoint without a processor, AutoProcessor gives one of its parts.
    parts = {"processor": processor}
    if not isinstance(processor, ProcessorMixin):
        parts = {"tokenizer": model_id, "image_processor": model_id}
    return pipeline("visual-question-answering", model=model, device=model.device, **parts)


def ask_pictures(
    answerer,
    pictures: Iterable[str],
    questions: Sequence[str],
    *,
    batch_size: int = 8,
    top_k: int = 1,
    **generation,
) -> Iterator[AnsweredQuestion]:
    """Ask every question about every picture, batch by batch, in their order.

    Args:
        answerer: a visual-question-answering pipeline, as `load_answerer` returns it.
        pictures: paths and addresses; each is read once, and only a batch of them at a time.
        questions: at least one.
        batch_size: questions that are answered together.
        top_k: answers to each question.
        generation: options of `generate`, such as `max_new_tokens`, for models that generate their answers.

    Yields an `AnsweredQuestion` for each picture and question, picture by picture; with an error in the place of
    answers when the picture cannot be read.
    """
    questions = [questions] if isinstance(questions, str) else list(questions)
    if not questions or not all(isinstance(question, str) and question.strip() for question in questions):
        raise ValueError(f"questions={questions!r}: give at least one, and none that is empty.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    pictures = iter(pictures)
    while batch := list(islice(pictures, max(1, batch_size // len(questions)))):
        images, errors = {}, {}
        for picture in batch:
            try:
                images[picture] = load_image(picture)
            except ImageError as error:
                errors[picture] = str(error)
        rows = [{"image": image, "question": question} for image in images.values() for question in questions]
        answers = iter(answerer(rows, batch_size=batch_size, top_k=top_k, **generation) if rows else [])
        for picture in batch:
            for question in questions:
                if picture in errors:
                    yield AnsweredQuestion(picture, question, error=errors[picture])
                else:
                    yield AnsweredQuestion(picture, question, answers=next(answers))


__all__ = ["AnsweredQuestion", "ask_pictures", "load_answerer"]
