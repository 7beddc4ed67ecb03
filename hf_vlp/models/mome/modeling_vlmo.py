"""VLMo: one Transformer as picture encoder, text encoder, dual encoder and fusion encoder.

Paper: Bao et al., "VLMo: Unified Vision-Language Pre-Training with Mixture-of-Modality-Experts", NeurIPS 2022,
https://arxiv.org/abs/2111.02358. Reference weights: the files of the original release, turned into ours by
`hf-vlp convert vlmo`.

Differences from the paper and from the original code:

* runs on one process, on the CPU and in any batch; the original needs a process group on GPUs;
* a batch without a masked word has MLM loss 0 (NaN in the original); hard negatives are drawn from a softmax without
  the own pair, the same distribution as the original's, which divides by zero when the own pair takes it all;
* the four fusion passes of a pre-training step run as one batch, pictures are embedded once, and the last block
  computes only the positions that are read; all numbers stay the same;
* `VlmoForImageClassification` has no counterpart in the release; its head is a decision of this package;
* reproduced as they are: untied vocabulary head, logit scales without a limit, an unused text position table.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_vlmo import VlmoConfig
from .modeling_mome import (
    RECORDED,
    MomeForImagesAndTextClassification,
    MomeForImageTextRetrieval,
    MomeForMaskedImageModeling,
    MomeForMaskedLM,
    MomeForVisualQuestionAnswering,
    MomeModel,
    MomePreTrainedModel,
    cat_texts,
    project,
)
from .mome import MomeMaskedLanguageHead
from .mome_losses import (
    HardNegatives,
    classification_loss,
    contrastive_logits,
    contrastive_loss,
    draw_hard_negatives,
    gather_features,
    masked_language_loss,
    matching_loss,
)


@dataclass
class VlmoForPreTrainingOutput(ModelOutput):
    """Output of `VlmoForPreTraining`; B pairs in this process, G in all that are gathered, own rows first.

    loss: weighted sum of the losses, a scalar. losses: the three terms before weighting: "mlm", "itc", "itm".
    mlm_logits: (B, length, vocabulary) for the masked texts, each fused with its picture.
    itm_logits: (3B, 2): pairs, texts with negative pictures, pictures with negative texts; index 1 is "match".
    logits_per_image, logits_per_text: scaled similarities, (G, G); vl_logits_per_image: those of the vision-language
        branch.
    image_embeds, text_embeds, image_vl_embeds, text_vl_embeds: unit-norm features, each (B, dim).
    itm_negative_image_index, itm_negative_text_index: the drawn negatives, each (B,), positions among G.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    mlm_logits: torch.FloatTensor | None = None
    itm_logits: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    vl_logits_per_image: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_vl_embeds: torch.FloatTensor | None = None
    text_vl_embeds: torch.FloatTensor | None = None
    itm_negative_image_index: torch.LongTensor | None = None
    itm_negative_text_index: torch.LongTensor | None = None


class VlmoPreTrainedModel(MomePreTrainedModel):
    """What all VLMo classes share; see `MomePreTrainedModel`."""

    config: VlmoConfig
    base_model_prefix = "vlmo"

    _exported_classes = {
        "AutoModel": "VlmoModel",
        "AutoModelForPreTraining": "VlmoForPreTraining",
        "AutoModelForMaskedImageModeling": "VlmoForMaskedImageModeling",
        "AutoModelForMaskedLM": "VlmoForMaskedLM",
        "AutoModelForVisualQuestionAnswering": "VlmoForVisualQuestionAnswering",
        "AutoModelForSequenceClassification": "VlmoForImagesAndTextClassification",
        "AutoModelForZeroShotImageClassification": "VlmoForImageTextRetrieval",
        "AutoModelForImageClassification": "VlmoForImageClassification",
    }

    def no_weight_decay(self, original: bool = False) -> set[str]:
        """Names of the parameters without weight decay.

        Vectors, tokens, positions and their bias; with `original`, exactly those of the original's optimizer: biases
        and the position bias, whose names contain "bias", the norms of attention, text embeddings, vocabulary head and
        the final one - while norms of experts and task heads, scales, class token and position embeddings decay.
        """
        if not original:
            return super().no_weight_decay()
        ends = ("text_embeddings.layer_norm.weight", "mlm_head.layer_norm.weight", "attention_norm.weight")
        final = ("norm.weight", f"{self.base_model_prefix}.norm.weight")
        biases = ("bias", "q_bias", "v_bias", "position_bias_table")
        return {
            name
            for name, _ in self.named_parameters()
            if name.endswith(ends) or name in final or name.rsplit(".", 1)[-1] in biases
        }

    def freeze_for_language_stage(self):
        """Freeze what stage 2 of the paper freezes: attention, its norms, scales, all of the picture, the pooler.

        Text embeddings, type table, text experts with their norms, position bias, final norm, vocabulary head train.
        """
        self.requires_grad_(False)
        base = self.base_model
        trained = [base.text_embeddings, base.token_type_embeddings, base.norm, getattr(self, "mlm_head", None)]
        trained += [layer.experts["text"] for layer in base.layers]
        for module in trained:
            if module is not None:
                module.requires_grad_(True)
        for layer in base.layers:
            if layer.attention.position_bias_table is not None:
                layer.attention.position_bias_table.requires_grad_(True)

    def _make_base_model(self) -> "VlmoModel":
        return VlmoModel(self.config)


class VlmoModel(MomeModel, VlmoPreTrainedModel):
    """The Transformer without a head: encodes a picture, a text, or a pair of both.

    >>> model = VlmoModel.from_pretrained("path/or/id")
    >>> model(**processor(images=picture)).pooler_output  # a picture
    >>> model(**processor(images=picture, text="a dog on a beach")).last_hidden_state  # text first, then the picture
    """


class VlmoForImageClassification(VlmoPreTrainedModel):
    """Labels of a picture: the pooled I_CLS and a linear layer.

    The paper fine-tunes its picture path on ImageNet; the release has no code for it. This head is the plainest one.
    """

    _auto_class = "AutoModelForImageClassification"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: VlmoConfig):
        super().__init__(config)
        self._add_base_model()
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify pictures (batch, channels, size, size); `labels` (batch,) are class numbers, -100 does not count.

        Returns the mean cross-entropy and logits (batch, labels).
        """
        outputs = self._encode(pixel_values=pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else classification_loss(logits, labels)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class VlmoForImagesAndTextClassification(MomeForImagesAndTextClassification, VlmoPreTrainedModel):
    """Is a statement true of two pictures (NLVR2): two fusion passes, the second with its own picture type.

    Needs a configuration with `type_vocab_size=3`; `from_pretrained` adds the third type to any other checkpoint.
    """


class VlmoForImageTextRetrieval(MomeForImageTextRetrieval, VlmoPreTrainedModel):
    """Dual encoder for retrieval and zero-shot classification, with a matching head for re-ranking if it has one.

    >>> images = model.get_image_features(**processor(images=pictures)).pooler_output
    >>> texts = model.get_text_features(**processor(text=captions, padding=True)).pooler_output
    >>> similarity = images @ texts.T
    """


class VlmoForMaskedImageModeling(MomeForMaskedImageModeling, VlmoPreTrainedModel):
    """Visual tokens of hidden patches (stage 1): masked image modelling on pictures alone, as BEiT does."""


class VlmoForMaskedLM(MomeForMaskedLM, VlmoPreTrainedModel):
    """Masked words of a text alone (stage 2), or of a text with its picture."""

    _tied_weights_keys = {"mlm_head.decoder.weight": "vlmo.text_embeddings.word_embeddings.weight"}


class VlmoForPreTraining(VlmoPreTrainedModel):
    """Pre-training on pairs (stage 3): masked words, contrast, and matching with hard negatives.

    >>> outputs = model(**batch)  # of hf_vlp.data.task_collators.PreTrainingCollator
    >>> outputs.loss, outputs.losses["itm"]
    """

    _auto_class = "AutoModelForPreTraining"
    _tied_weights_keys = {"mlm_head.decoder.weight": "vlmo.text_embeddings.word_embeddings.weight"}

    def __init__(self, config: VlmoConfig):
        super().__init__(config)
        dim = config.hidden_size
        self._add_base_model()
        self.mlm_head = MomeMaskedLanguageHead(config)
        self.itm_head = nn.Linear(dim, 2)
        self.itc_text_projection = nn.Linear(dim, dim, bias=False)
        self.itc_image_projection = nn.Linear(dim, dim, bias=False)
        self.itc_text_vl_projection = nn.Linear(dim, dim, bias=False)
        self.itc_image_vl_projection = nn.Linear(dim, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.logit_vl_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.FloatTensor, vl_branch: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Unit-norm features of pictures, `pooler_output` (images, dim); `vl_branch` takes the other branch's."""
        outputs = self._encode(only_first=False, pixel_values=pixel_values, output_vl_branch=vl_branch, **kwargs)
        return project(outputs, self.itc_image_vl_projection if vl_branch else self.itc_image_projection, vl_branch)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        vl_branch: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Unit-norm features of texts, `pooler_output` (texts, dim); `vl_branch` takes the other branch's."""
        texts = {"input_ids": input_ids, "attention_mask": attention_mask}
        outputs = self._encode(only_first=False, output_vl_branch=vl_branch, **texts, **kwargs)
        return project(outputs, self.itc_text_vl_projection if vl_branch else self.itc_text_projection, vl_branch)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        mlm_input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        itm_negative_image_index: torch.LongTensor | None = None,
        itm_negative_text_index: torch.LongTensor | None = None,
        num_matching: int | None = None,
        **kwargs,
    ) -> VlmoForPreTrainingOutput:
        """One step on B pairs: three objectives on two unimodal passes and one fusion pass of 4B rows.

        Args:
            input_ids, attention_mask: captions without masks, (B, length).
            pixel_values: their pictures, (B, channels, size, size).
            mlm_input_ids: the captions with masked words, (B, length); default `input_ids`.
            labels: the masked words, (B, length), -100 elsewhere; without them there is no loss.
            itm_negative_image_index, itm_negative_text_index: (B,), negatives drawn before, positions among the pairs
                of all processes, own ones first; drawn by similarity when not given.
            num_matching: pairs of the batch that take part in matching, the first ones (default all with `labels` or
                given negatives, else none): less work, and another training. Not in the original.

        Raises ValueError for matching in a batch of one pair, which has no negative, and when the negatives of only
        one kind are given.
        """
        if input_ids is None or pixel_values is None:
            raise ValueError("Pre-training needs pairs: give pixel_values and input_ids.")
        if (itm_negative_image_index is None) != (itm_negative_text_index is None):
            raise ValueError("Give itm_negative_image_index and itm_negative_text_index together, or neither.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        rows, length = input_ids.shape
        if num_matching is None:
            num_matching = rows if labels is not None or itm_negative_image_index is not None else 0
        num_matching = min(num_matching, rows)
        kwargs = {name: value for name, value in kwargs.items() if name not in RECORDED}  # of which pass?
        patches = self.vlmo.image_embeddings(pixel_values)  # once for all passes
        image = self._encode(image_embeds=patches, output_vl_branch=True, **kwargs)
        text = self._encode(input_ids=input_ids, attention_mask=attention_mask, output_vl_branch=True, **kwargs)
        features = {
            "image_embeds": project(image, self.itc_image_projection).pooler_output,
            "text_embeds": project(text, self.itc_text_projection).pooler_output,
            "image_vl_embeds": project(image, self.itc_image_vl_projection, vl_branch=True).pooler_output,
            "text_vl_embeds": project(text, self.itc_text_vl_projection, vl_branch=True).pooler_output,
        }
        gathered = {name: gather_features(value) if self.training else value for name, value in features.items()}
        logits = contrastive_logits(gathered["image_embeds"], gathered["text_embeds"], self.logit_scale)
        vl_logits = contrastive_logits(gathered["image_vl_embeds"], gathered["text_vl_embeds"], self.logit_vl_scale)

        texts = [input_ids if mlm_input_ids is None else mlm_input_ids]
        masks, images = [attention_mask], [patches]
        negatives = None
        if num_matching:
            negatives = HardNegatives(itm_negative_image_index, itm_negative_text_index)
            if itm_negative_image_index is None:
                negatives = draw_hard_negatives(logits, rows)
            kept = HardNegatives(*(index[:num_matching] for index in negatives))
            negative_images, negative_ids, negative_masks = self._take_negatives(
                kept, pixel_values, patches, input_ids, attention_mask
            )
            own = slice(None, num_matching)
            texts += [input_ids[own], input_ids[own], negative_ids]
            masks += [attention_mask[own], attention_mask[own], negative_masks]
            images += [patches[own], negative_images, patches[own]]
        fused = self._encode(
            only_first=False,
            input_ids=cat_texts(texts, self.config.pad_token_id or 0),
            attention_mask=cat_texts(masks, 0),
            image_embeds=torch.cat(images),
            num_outputs=length,
            **kwargs,
        )
        mlm_logits = self.mlm_head(fused.text_hidden_state[:rows, :length])
        itm_logits = self.itm_head(fused.pooler_output[rows:]) if num_matching else None

        loss = losses = None
        if labels is not None:
            losses = {
                "mlm": masked_language_loss(mlm_logits, labels),
                "itc": 0.5 * (contrastive_loss(logits) + contrastive_loss(vl_logits)),
            }
            if num_matching:
                losses["itm"] = matching_loss(itm_logits)
            loss = sum(getattr(self.config, f"{name}_loss_weight") * value for name, value in losses.items())
        return VlmoForPreTrainingOutput(
            loss=loss,
            losses=losses,
            mlm_logits=mlm_logits,
            itm_logits=itm_logits,
            logits_per_image=logits,
            logits_per_text=logits.t(),
            vl_logits_per_image=vl_logits,
            itm_negative_image_index=negatives.image_index if negatives else None,
            itm_negative_text_index=negatives.text_index if negatives else None,
            **features,
        )


class VlmoForVisualQuestionAnswering(MomeForVisualQuestionAnswering, VlmoPreTrainedModel):
    """Answers of a closed list to questions about pictures."""


__all__ = [
    "VlmoForImageClassification",
    "VlmoForImageTextRetrieval",
    "VlmoForImagesAndTextClassification",
    "VlmoForMaskedImageModeling",
    "VlmoForMaskedLM",
    "VlmoForPreTraining",
    "VlmoForVisualQuestionAnswering",
    "VlmoModel",
    "VlmoPreTrainedModel",
]
