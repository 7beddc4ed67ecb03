"""Fine-tune VLMo or VL-BEiT on own questions in plain Python: answer vocabulary, soft labels, a faster new head.

    python examples/scripts/finetune_questions.py MODEL DATA OUTPUT [MAX_STEPS]

DATA is `scenes`, or files with the columns image, question and answers (or lists of questions and answers to each
picture). MODEL is any checkpoint of the two, such as one of pre-training. The same from a YAML:
`vlmo_base_vqa_v2.yaml`, `vl_beit_base_vqa_v2.yaml`.
"""

import sys

from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

import hf_vlp  # noqa: F401 - registers the models
from hf_vlp.data.answers import AnswerVocabulary
from hf_vlp.data.sources import DataArguments, load_records
from hf_vlp.data.task_collators import QuestionCollator
from hf_vlp.evaluation import evaluate_model, format_scores
from hf_vlp.evaluation_tasks import training_answers
from hf_vlp.hub.export import save_repository
from hf_vlp.pretraining.arguments import VlpTrainingArguments
from hf_vlp.pretraining.trainer import VlpTrainer


def main(model_id: str, data: str, output: str, max_steps: str = "1000") -> None:
    arguments = DataArguments(source=data, record_type="questions")
    records = load_records(arguments, "train")
    vocabulary = AnswerVocabulary(dict.fromkeys(answer for _, answer in training_answers(records)))
    names = {"id2label": vocabulary.id2label, "label2id": vocabulary.label2id}
    processor = AutoProcessor.from_pretrained(model_id)
    model = AutoModelForVisualQuestionAnswering.from_pretrained(model_id, ignore_mismatched_sizes=True, **names)
    trainer = VlpTrainer(
        model=model,
        args=VlpTrainingArguments(
            output_dir=output,
            per_device_train_batch_size=32,
            max_steps=int(max_steps),
            learning_rate=3e-5,
            head_learning_rate_multiplier=20,
            warmup_steps=0.1,
            save_strategy="no",
        ),
        train_dataset=records,
        data_collator=QuestionCollator(processor, vocabulary=vocabulary),
        processing_class=processor,
    )
    trainer.train()
    scores = evaluate_model(
        model, processor, load_records(arguments, "test"), "visual_question_answering", training_records=records
    )
    print(format_scores("test", scores))
    save_repository(output, model=model, processor=processor)


if __name__ == "__main__":
    main(*sys.argv[1:])
