"""VL-BEiT: one Transformer trained from nothing, in one stage, by masked prediction on pictures, texts and pairs.

Paper: Bao et al., "VL-BEiT: Generative Vision-Language Pretraining", https://arxiv.org/abs/2206.01127. Its authors
released neither code nor weights. Blocks and paths are those of VLMo, masking of pictures is BEiT's
(https://arxiv.org/abs/2106.08254); where the sources are silent this package decides, see `VlBeitConfig`.

Choices that the paper does not name:

* text first, then the picture; T_CLS is the pooled position of pairs;
* words alone and words of pairs share a head, patches alone and patches of pairs another;
* hidden patches keep their positions and types; I_CLS is never predicted;
* in training, `VlBeitForPreTraining` computes logits of hidden positions only: the losses are the same, and nothing
  is spent on what no loss reads.
"""

import os
from dataclasses import dataclass
from inspect import get_annotations

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.output_capturing import resolve_hidden_states_indices, selected_hidden_states

from .configuration_mome import MomeConfig
from .configuration_vl_beit import VlBeitConfig
from .modeling_mome import (
    RECORDED,
    RESIZABLE,
    MomeForImagesAndTextClassification,
    MomeForImageTextRetrieval,
    MomeForMaskedImageModeling,
    MomeForMaskedLM,
    MomeForVisualQuestionAnswering,
    MomeModel,
    MomePreTrainedModel,
    check_classes,
    check_word_labels,
    split_hub_options,
)
from .mome import MomeImageEmbeddings, MomeMaskedLanguageHead
from .mome_losses import classification_loss, masked_image_targets
from .mome_segmentation import MomeSegmentationHead, semantic_segmentation_loss, spread_out_indices


@dataclass
class VlBeitForPreTrainingOutput(ModelOutput):
    """Output of `VlBeitForPreTraining`.

    loss: weighted sum of the losses, a scalar.
    losses: the terms before weighting, those whose inputs were given: "mlm" (words of texts), "mim" (patches of
        pictures), "mvlm_text" and "mvlm_image" (words and patches of pairs).
    mlm_logits, mvlm_text_logits: (texts, length, vocabulary).
    mim_logits, mvlm_image_logits: (pictures, patches, visual vocabulary). In training there are no logits where there
        are targets.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    mlm_logits: torch.FloatTensor | None = None
    mim_logits: torch.FloatTensor | None = None
    mvlm_text_logits: torch.FloatTensor | None = None
    mvlm_image_logits: torch.FloatTensor | None = None


class VlBeitPreTrainedModel(MomePreTrainedModel):
    """What all VL-BEiT classes share; see `MomePreTrainedModel`."""

    config: VlBeitConfig
    base_model_prefix = "vl_beit"
    # Retrieval has its projections and matching head from fine-tuning alone.
    _head_prefixes = ("classifier.", "segmentation_head.", "itc_", "itm_head.", "logit_scale")

    _exported_classes = {
        "AutoModel": "VlBeitModel",
        "AutoModelForPreTraining": "VlBeitForPreTraining",
        "AutoModelForMaskedImageModeling": "VlBeitForMaskedImageModeling",
        "AutoModelForMaskedLM": "VlBeitForMaskedLM",
        "AutoModelForVisualQuestionAnswering": "VlBeitForVisualQuestionAnswering",
        "AutoModelForSequenceClassification": "VlBeitForImagesAndTextClassification",
        "AutoModelForZeroShotImageClassification": "VlBeitForImageTextRetrieval",
        "AutoModelForImageClassification": "VlBeitForImageClassification",
        "AutoModelForSemanticSegmentation": "VlBeitForSemanticSegmentation",
    }

    @torch.no_grad()
    def _init_weights(self, module):
        """Initial values of BEiT.

        Linear layers, convolutions (but those of the convolutional stem), class and mask token: normal with
        `initializer_range`, cut at one standard deviation; biases 0. With `rescale_by_depth` the layers that end a
        residual branch of block l are divided by sqrt(2 l), in every expert. The last layer of image classification
        is scaled by 0.001. Everything else as in VLMo.
        """
        super()._init_weights(module)
        std = self.config.initializer_range

        def cut_normal(tensor: torch.Tensor, scale: float = 1.0):
            init.trunc_normal_(tensor, std=std * scale, a=-std * scale, b=std * scale)

        # The convolutions of a model without a head are those of its stem.
        is_stem = self.config.vision_stem == "convolution" and self.base_model is self
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and not is_stem):
            cut_normal(module.weight, getattr(module, "initial_scale", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, MomeImageEmbeddings):
            cut_normal(module.cls_token)
        if isinstance(getattr(module, "mask_token", None), nn.Parameter):
            cut_normal(module.mask_token)

    def no_weight_decay(self, original: bool = False) -> set[str]:
        """Names of the parameters without weight decay.

        Vectors, tokens, positions and their bias; with `original`, those of BEiT's optimizer: vectors, class token and
        absolute positions, while the position bias and the mask token decay.
        """
        if not original:
            return super().no_weight_decay()
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim < 2 or name.endswith(("cls_token", "image_embeddings.position_embeddings"))
        }

    def _make_base_model(self) -> "VlBeitModel":
        return VlBeitModel(self.config)


class VlBeitModel(MomeModel, VlBeitPreTrainedModel):
    """The Transformer without a head: encodes a picture, a text, or a pair of both.

    >>> model = VlBeitModel.from_pretrained("path/or/id")
    >>> model(**processor(images=picture)).last_hidden_state  # I_CLS and the patches
    >>> model(**processor(images=picture, text="a dog on a beach")).last_hidden_state  # text first, then the picture
    """

    @classmethod
    def from_beit_pretrained(cls, beit: str | os.PathLike | PreTrainedModel, **options) -> "VlBeitModel":
        """Start from a BEiT, see `MomeModel.from_beit_pretrained` for the options.

        Type embeddings, which it lacks, are 0, so that a picture alone gives what it gives in BEiT. A decision of this
        package, as in the conversion of files.
        """
        loaded = super().from_beit_pretrained(beit, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.token_type_embeddings.weight.data.zero_()
        return loaded

    @classmethod
    def from_vlmo_pretrained(
        cls,
        vlmo: str | os.PathLike | PreTrainedModel,
        *,
        dtype: torch.dtype | None = None,
        output_loading_info: bool = False,
        **kwargs,
    ) -> "VlBeitModel":
        """Start from a VLMo: all weights of its Transformer, every expert included.

        Args:
            vlmo: Hub id, folder or object of a VLMo, with whatever head. Objects are copied.
            dtype: data type of the weights; that of the VLMo when not given.
            output_loading_info: also return a dict with the `missing_keys`: none, and `unexpected_keys`, of the head.
            kwargs: fields of `VlBeitConfig`, sizes where `from_pretrained` can change them, and options of the Hub
                (`revision`, `token`, ...).

        Raises TypeError for models of another architecture, ValueError for sizes that differ.
        """
        config_kwargs, hub_options = split_hub_options(kwargs)
        source = AutoModel.from_pretrained(vlmo, **hub_options) if isinstance(vlmo, (str, os.PathLike)) else vlmo
        model_type = getattr(getattr(source, "config", None), "model_type", None)
        if model_type != "vlmo":
            raise TypeError(f"Give a VLMo or the id or folder of one, not a {model_type or type(vlmo).__name__}.")
        prefix = f"{source.base_model_prefix}."
        source, whole = source.base_model, source
        unused = [] if whole is source else [n for n, _ in whole.named_parameters() if not n.startswith(prefix)]
        fields = {name: getattr(source.config, name) for name in get_annotations(MomeConfig)}
        resized = {name: config_kwargs.pop(name) for name in RESIZABLE if name in config_kwargs}
        model, theirs = cls(cls.config_class(**{**fields, **config_kwargs})), source.state_dict()
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in theirs.items()}:
            raise ValueError(f"{config_kwargs} makes a model of other sizes than the VLMo: leave sizes as they are.")
        model.load_state_dict(theirs)
        model.resize_inputs(**resized)
        model = model.to(dtype or source.dtype).eval()
        return (model, {"missing_keys": [], "unexpected_keys": unused}) if output_loading_info else model


class VlBeitMeanPooledClassifier(nn.Module):
    """Labels from the mean of the patches: norm and a linear layer; (pictures, patches, dim) -> (pictures, labels)."""

    def __init__(self, config: VlBeitConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.output = nn.Linear(config.hidden_size, config.num_labels)
        self.output.initial_scale = 0.001

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.output(self.norm(patches.mean(dim=1)))


class VlBeitForImageClassification(VlBeitPreTrainedModel):
    """Labels of a picture, from the mean of its patches, as BEiT is fine-tuned."""

    _auto_class = "AutoModelForImageClassification"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: VlBeitConfig):
        super().__init__(config)
        check_classes(config)
        self._add_base_model()
        self.classifier = VlBeitMeanPooledClassifier(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | torch.FloatTensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify pictures (batch, channels, size, size).

        `labels` are class numbers, (batch,), of which -100 does not count, or shares of the classes, (batch, labels),
        as mixed pictures have them. Returns the mean cross-entropy and logits (batch, labels).
        """
        outputs = self._encode(only_first=False, pixel_values=pixel_values, final_norm=False, **kwargs)
        logits = self.classifier(outputs.image_hidden_state[:, 1:])
        loss = None if labels is None else classification_loss(logits, labels)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class VlBeitForImagesAndTextClassification(MomeForImagesAndTextClassification, VlBeitPreTrainedModel):
    """Is a statement true of two pictures (NLVR2): two fusion passes, the second with its own picture type.

    Needs a configuration with `type_vocab_size=3`; `from_pretrained` adds the third type to any other checkpoint.
    """


class VlBeitForImageTextRetrieval(MomeForImageTextRetrieval, VlBeitPreTrainedModel):
    """Dual encoder for retrieval, with a matching head that scores its candidates again.

    Pre-training has neither contrast nor matching: both are learnt in fine-tuning, together (paper, section 3.2).

    >>> images = model.get_image_features(**processor(images=pictures)).pooler_output
    >>> texts = model.get_text_features(**processor(text=captions, padding=True)).pooler_output
    >>> similarity = images @ texts.T
    """

    _trains_matching = True


class VlBeitForMaskedImageModeling(MomeForMaskedImageModeling, VlBeitPreTrainedModel):
    """Visual tokens of hidden patches of pictures (MIM)."""


class VlBeitForMaskedLM(MomeForMaskedLM, VlBeitPreTrainedModel):
    """Masked words of a text alone, or of a text with its picture."""

    _tied_weights_keys = {"mlm_head.decoder.weight": "vl_beit.text_embeddings.word_embeddings.weight"}


class VlBeitForPreTraining(VlBeitPreTrainedModel):
    """Joint pre-training: masked words of texts, hidden patches of pictures, and both of pairs.

    >>> outputs = model(**batch)  # of hf_vlp.data.masked_collators.JointPreTrainingCollator
    >>> outputs.loss, outputs.losses["mvlm_image"]
    """

    _auto_class = "AutoModelForPreTraining"
    _tied_weights_keys = {"mlm_head.decoder.weight": "vl_beit.text_embeddings.word_embeddings.weight"}

    def __init__(self, config: VlBeitConfig):
        super().__init__(config)
        self._add_base_model()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mlm_head = MomeMaskedLanguageHead(config)
        self.mim_head = nn.Linear(config.hidden_size, config.visual_vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        visual_token_ids: torch.LongTensor | None = None,
        text_input_ids: torch.LongTensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        text_labels: torch.LongTensor | None = None,
        image_pixel_values: torch.FloatTensor | None = None,
        image_bool_masked_pos: torch.BoolTensor | None = None,
        image_visual_token_ids: torch.LongTensor | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> VlBeitForPreTrainingOutput:
        """One step on pairs, texts and pictures; sources that are not given have no term.

        Args:
            input_ids, attention_mask: texts of the pairs with masked words, (pairs, length).
            labels: the masked words, (pairs, length), -100 elsewhere.
            pixel_values: pictures of the pairs, (pairs, channels, size, size).
            bool_masked_pos: (pairs, patches), True where a patch is hidden, row by row; for targets, needed.
            visual_token_ids: (pairs, patches), classes of all patches; those of hidden ones are the targets.
            text_input_ids, text_attention_mask, text_labels: likewise of texts alone.
            image_pixel_values, image_bool_masked_pos, image_visual_token_ids: likewise of pictures alone.
            return_loss: False for logits without losses.

        A term needs its targets too. States and attentions are not returned: each pass has its own. Raises ValueError
        when nothing is given, for pairs of which one side is missing, for targets without inputs, and for labels,
        masks or visual tokens that do not fit.
        """
        if (input_ids is None) != (pixel_values is None):
            raise ValueError(
                "input_ids and pixel_values are the two sides of pairs: give both, or text_input_ids for texts alone, "
                "image_pixel_values for pictures alone."
            )
        if input_ids is None and text_input_ids is None and image_pixel_values is None:
            raise ValueError(
                "Pre-training needs pairs, texts or pictures: give input_ids and pixel_values, or others."
            )
        for name, targets, inputs in (
            ("labels", labels, input_ids),
            ("visual_token_ids", visual_token_ids, pixel_values),
            ("text_labels", text_labels, text_input_ids),
            ("image_visual_token_ids", image_visual_token_ids, image_pixel_values),
        ):
            if targets is not None and inputs is None:
                raise ValueError(f"{name} are targets of inputs that are not given.")
        kwargs = {name: value for name, value in kwargs.items() if name not in RECORDED}  # of which pass?
        if not return_loss:
            labels = text_labels = visual_token_ids = image_visual_token_ids = None
        losses, logits = {}, {}

        def predict(name, head, states, targets):
            if targets is not None:
                check_word_labels(targets, states.shape)
            if targets is not None and self.training and not torch.compiler.is_compiling():
                hidden = targets != -100
                losses[name] = classification_loss(head(states[hidden]), targets[hidden])
                return
            logits[f"{name}_logits"] = head(states)
            if targets is not None:
                losses[name] = classification_loss(logits[f"{name}_logits"].flatten(0, 1), targets.flatten())

        def find_targets(token_ids, masked_pos, num_images):
            if token_ids is None:
                return None
            shape = (num_images, self.config.window_size**2, self.config.visual_vocab_size)
            return masked_image_targets(token_ids, masked_pos, shape)

        if text_input_ids is not None:
            outputs = self._encode(
                only_first=False, input_ids=text_input_ids, attention_mask=text_attention_mask, **kwargs
            )
            predict("mlm", self.mlm_head, outputs.text_hidden_state, text_labels)
        if image_pixel_values is not None:
            embeddings = self.vl_beit.image_embeddings(image_pixel_values, image_bool_masked_pos, self.mask_token)
            outputs = self._encode(only_first=False, image_embeds=embeddings, **kwargs)
            targets = find_targets(image_visual_token_ids, image_bool_masked_pos, len(embeddings))
            predict("mim", self.mim_head, outputs.image_hidden_state[:, 1:], targets)
        if input_ids is not None:
            embeddings = self.vl_beit.image_embeddings(pixel_values, bool_masked_pos, self.mask_token)
            outputs = self._encode(
                only_first=False,
                input_ids=input_ids,
                attention_mask=attention_mask,
                image_embeds=embeddings,
                **kwargs,
            )
            predict("mvlm_text", self.mlm_head, outputs.text_hidden_state, labels)
            targets = find_targets(visual_token_ids, bool_masked_pos, len(embeddings))
            predict("mvlm_image", self.mim_head, outputs.image_hidden_state[:, 1:], targets)
        loss = sum(getattr(self.config, f"{name}_loss_weight") * value for name, value in losses.items())
        return VlBeitForPreTrainingOutput(loss=loss if losses else None, losses=losses or None, **logits)


class VlBeitForSemanticSegmentation(VlBeitPreTrainedModel):
    """A class for every pixel: UPerNet over the outputs of four blocks, with an auxiliary head in training.

    Pictures of any size, by overlapping windows of the model's: `hf_vlp.predict_sliding`.
    """

    _auto_class = "AutoModelForSemanticSegmentation"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: VlBeitConfig):
        super().__init__(config)
        self._add_base_model()
        self.segmentation_head = MomeSegmentationHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        **kwargs,
    ) -> SemanticSegmenterOutput:
        """Segment pictures (batch, channels, size, size).

        `labels` (batch, height, width) are class numbers, `semantic_loss_ignore_index` where none is known. Returns
        the mean cross-entropy over labelled pixels, in training with the auxiliary term, and logits (batch, labels,
        height / 4, width / 4) for patches of 16 pixels: four times as fine as the patches. Raises ValueError for
        labels that are no class.
        """
        config = self.config
        asked = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        chosen = selected_hidden_states(asked or None)  # None for all of them, or for none
        # State 0 is the input of the first block. States that nobody reads are not kept.
        read = [index + 1 for index in config.out_indices or spread_out_indices(config.num_hidden_layers)]
        recorded = True if asked is True else [*read, *(chosen or ())]
        outputs = self._encode(
            only_first=False, pixel_values=pixel_values, final_norm=False, output_hidden_states=recorded, **kwargs
        )
        maps = []
        for index in read:
            patches = outputs.hidden_states[index][:, 1:].transpose(1, 2)  # behind I_CLS: (batch, dim, patches)
            maps.append(patches.unflatten(2, (config.window_size, config.window_size)))
        logits, auxiliary_logits = self.segmentation_head(maps)
        loss = None if labels is None else semantic_segmentation_loss(logits, auxiliary_logits, labels, config)
        hidden_states = outputs.hidden_states if asked else None
        if chosen is not None:
            kept = resolve_hidden_states_indices(self, chosen)
            hidden_states = tuple(state if index in kept else None for index, state in enumerate(hidden_states))
        return SemanticSegmenterOutput(loss, logits, hidden_states, outputs.attentions)


class VlBeitForVisualQuestionAnswering(MomeForVisualQuestionAnswering, VlBeitPreTrainedModel):
    """Answers of a closed list to questions about pictures."""


__all__ = [
    "VlBeitForImageClassification",
    "VlBeitForImageTextRetrieval",
    "VlBeitForImagesAndTextClassification",
    "VlBeitForMaskedImageModeling",
    "VlBeitForMaskedLM",
    "VlBeitForPreTraining",
    "VlBeitForSemanticSegmentation",
    "VlBeitForVisualQuestionAnswering",
    "VlBeitModel",
    "VlBeitPreTrainedModel",
]
