"""Tests that every model passes under the library's Trainer: exact resume, accumulation."""

import shutil

import torch
from transformers import Trainer, TrainingArguments

from tests.common.setup import ModelSetup, different, states_of


class TrainingTests(ModelSetup):
    """`make_inputs` gives the examples: each row is one."""

    def examples(self, config, number: int) -> list[dict[str, torch.Tensor]]:
        inputs = self.make_inputs(config, rows=number, seed=9)
        return [{name: value[row] for name, value in inputs.items()} for row in range(number)]

    def trainer(self, variant: str, folder, **options) -> Trainer:
        model = self.model_of(variant)
        return Trainer(
            model=model,
            args=TrainingArguments(
                **{
                    "output_dir": str(folder),
                    "per_device_train_batch_size": 2,
                    "learning_rate": 1e-2,
                    "max_steps": 4,
                    "save_steps": 2,
                    "logging_steps": 1,
                    # The random order is drawn from the state of the process, dropout from the checkpoint's.
                    "train_sampling_strategy": "sequential",
                    "use_cpu": True,
                    "disable_tqdm": True,
                    "report_to": "none",
                    "seed": 4,
                    **options,
                }
            ),
            train_dataset=self.examples(model.config, 8),
        )

    def test_resumed_training_ends_with_the_same_weights(self, variant, tmp_path):
        straight = self.trainer(variant, tmp_path / "straight")
        start = states_of(straight.model)
        straight.train()
        trained = states_of(straight.model)  # statistics of batch norms move in what follows
        assert different(start, trained)
        # Dropout is on: the random state is part of what has to be restored.
        inputs = self.make_inputs(straight.model.config)
        assert straight.model.train()(**inputs).loss != straight.model(**inputs).loss
        resumed = self.trainer(variant, tmp_path / "resumed")
        shutil.copytree(tmp_path / "straight" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
        torch.manual_seed(99)  # whatever the state of this process, the checkpoint's counts
        resumed.train(resume_from_checkpoint=True)
        assert different(trained, states_of(resumed.model)) == []
        histories = (straight.state.log_history, resumed.state.log_history)
        losses = [[entry["loss"] for entry in history if "loss" in entry] for history in histories]
        assert losses[0] == losses[1]

    def test_accumulated_steps_equal_a_large_batch(self, variant, tmp_path):
        """The loss is scaled by the number of targets of the whole step, not of each part."""
        trained = []
        for batch_size, steps in ((4, 1), (1, 4)):
            trainer = self.trainer(
                variant,
                tmp_path / str(batch_size),
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=steps,
                max_steps=1,
                optim="sgd",
                save_strategy="no",
            )
            for module in trainer.model.modules():  # masks of dropout would differ
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
                elif hasattr(module, "attention_dropout"):
                    module.attention_dropout = 0.0
                elif hasattr(module, "drop_prob"):
                    module.drop_prob = 0.0
            trainer.train()
            trained.append(states_of(trainer.model))
        assert trained[0].keys() == trained[1].keys()
        for name, value in trained[0].items():
            torch.testing.assert_close(trained[1][name], value, atol=1e-6, rtol=1e-5)
