"""The trainer of self-critical sequence training (Rennie et al., 2017): CIDEr-D of samples against a baseline."""

import inspect

import torch

from hf_vlp.data.collators import CaptionCollator, record_captions
from hf_vlp.metrics.captioning import CiderDScorer
from hf_vlp.objectives.self_critical import mean_of_others, self_critical_loss
from hf_vlp.pretraining.arguments import SelfCriticalArguments
from hf_vlp.pretraining.naming import plain_model
from hf_vlp.pretraining.trainer import VlpTrainer


class SelfCriticalCollator(CaptionCollator):
    """Batches of pictures with all their references: `pixel_values` (images, 3, H, W) and `references`, a list each.

    A batch of bad pictures only has one white picture with an empty list of references, which earns nothing.
    """

    def __call__(self, records: list[dict]) -> dict:
        self._references: list[list[str]] = []
        batch = super().__call__(records)
        return {"pixel_values": batch["pixel_values"], "references": self._references or [[]]}

    def _image(self, record):
        image = super()._image(record)
        if image is not None:
            self._references.append(record_captions(record))
        return image


def sampled_mask(tokens: torch.Tensor, end_token_id: int) -> torch.Tensor:
    """1 on generated tokens up to the first end token, this one included; tokens (rows, length) without the begin."""
    is_end = (tokens == end_token_id).long()
    return (is_end.cumsum(1) - is_end == 0).float()


class SelfCriticalTrainer(VlpTrainer):
    """Trains a captioner on the reward of its own samples.

    The pictures of a batch are encoded once, with gradient; the greedy captions, the samples and the forward pass that
    gives the samples their gradient all start from there. Dropout is off throughout, so that the probabilities that
    receive the gradient are those that were sampled from.

    Args:
        scorer: rewards of texts, usually a `CiderDScorer` with an end token.
        settings: number of samples, baseline, length, temperature.

    `processing_class` must be the processor; the collator gives `pixel_values` and `references`
    (`SelfCriticalCollator`), and `eval_collator` the batches of the cross-entropy that evaluations measure.
    """

    # The loss is a mean over the tokens of its own batch, so Trainer divides it by the accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(self, *args, scorer: CiderDScorer, settings: SelfCriticalArguments | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.loss_is_scaled_for_ga = False
        self.scorer = scorer
        self.settings = settings or SelfCriticalArguments()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # Stock: the model's own loss. Evaluation keeps it.
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        model.eval()
        try:
            loss = self._self_critical_loss(model, inputs["pixel_values"], inputs["references"])
        finally:
            model.train()
        self._num_samples += len(inputs["pixel_values"])
        return (loss, {"loss": loss}) if return_outputs else loss

    def _self_critical_loss(self, model, pixel_values: torch.Tensor, references: list[list[str]]) -> torch.Tensor:
        settings, num_samples = self.settings, self.settings.num_samples
        unwrapped = self.accelerator.unwrap_model(model)
        plain = plain_model(unwrapped)
        image_embeds = plain.get_image_features(pixel_values).pooler_output  # (images, tokens, dim)
        options = {"image_embeds": image_embeds.detach(), "max_new_tokens": settings.max_new_tokens, "num_beams": 1}
        with torch.no_grad():
            sampled = unwrapped.generate(
                **options,
                do_sample=True,
                temperature=settings.temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=num_samples,
            )  # (images * samples, 1 + length)
            greedy = unwrapped.generate(**options, do_sample=False) if settings.baseline == "greedy" else None
        end = self._end_token_id(plain)
        sample_rewards = self._rewards(sampled, [texts for texts in references for _ in range(num_samples)], end)
        if greedy is not None:
            baseline = self._rewards(greedy, references, end).repeat_interleave(num_samples)
            self.record("reward_greedy", float(baseline.mean()), len(references))
        else:
            baseline = mean_of_others(sample_rewards, num_samples)
        self.record("reward_sample", float(sample_rewards.mean()), len(references))

        forward_options = {}
        if "output_branch_logits" in inspect.signature(plain.forward).parameters:
            forward_options["output_branch_logits"] = False  # they would double the memory
        outputs = model(input_ids=sampled[:, :-1], image_embeds=image_embeds, use_cache=False, **forward_options)
        log_probs = (outputs.logits.float() / settings.temperature).log_softmax(-1)
        tokens = sampled[:, 1:]
        log_probs = log_probs.gather(2, tokens.unsqueeze(2)).squeeze(2)  # (images * samples, length)
        mask = sampled_mask(tokens, end)
        self.record("sampled_tokens", float(mask.sum(1).mean()), len(references))
        device = log_probs.device
        return self_critical_loss(log_probs, mask, sample_rewards.to(device), baseline.to(device))

    @staticmethod
    def _end_token_id(model) -> int:
        end = model.generation_config.eos_token_id
        end = model.config.eos_token_id if end is None else end
        return end[0] if isinstance(end, list | tuple) else end

    def _rewards(self, ids: torch.Tensor, references: list[list[str]], end: int) -> torch.Tensor:
        """Reward of each row of token ids (rows, 1 + length); 0 where there is no reference."""
        tokens = ids[:, 1:].cpu()
        finished = (tokens == end).any(1).tolist()
        texts = self.processing_class.batch_decode(tokens, skip_special_tokens=True)
        rewards = torch.zeros(len(texts))
        scored = [row for row, captions in enumerate(references) if captions]
        if scored:
            values = self.scorer.score(
                [texts[row] for row in scored],
                [references[row] for row in scored],
                finished=[finished[row] for row in scored],
            )
            rewards[scored] = torch.as_tensor(values, dtype=torch.float32)
        return rewards


__all__ = ["SelfCriticalCollator", "SelfCriticalTrainer", "sampled_mask"]
