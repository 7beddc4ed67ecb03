"""Visual tokenizer of BEiT v2 (VQ-KD): a picture becomes one of `codebook_size` token ids for each patch.

Paper: Peng et al., "BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers",
https://arxiv.org/abs/2208.06366. VL-BEiT and BEiT-3 predict these ids behind masked patches. Published weights: see
`hf_vlp.conversion.vqkd`.

Differences from the original code:

* pictures always have values in [0, 1]; the original takes a batch whose largest value is above 1 for one that was
  scaled to 127.5 already, so that its ids depended on the batch. Here such a batch is an error;
* encoder and decoder are the library's BEiT, the decoder over a picture of code vectors with patches of one pixel;
* the codebook starts from vectors of the first batch, drawn far from each other, where the original runs k-means; a
  code that is no longer chosen is replaced in the same way (decisions of this package);
* `VlBeitVqkdForTraining` can also reconstruct pixels, for training without a teacher (a decision of this package).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import BeitConfig, BeitModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_vl_beit_vqkd import VlBeitVqkdConfig
from .saving import SelfContainedSaving

# Vectors whose distances to all codes are held in memory at once: 64 MB for each 2048 codes.
_ROWS_AT_ONCE = 8192
# Resizing in floating point may go beyond [0, 1] by rounding, and by no more.
_PIXEL_TOLERANCE = 1e-4


@dataclass
class VlBeitVqkdOutput(ModelOutput):
    """Output of `VlBeitVqkdTokenizer`; patches in rows from the top left.

    token_ids: (pictures, patches), int64, numbers of codes.
    code_vectors: (pictures, patches, code_dim), float32, before they are scaled to unit norm.
    encoder_patch_features: (pictures, patches, hidden_size), the encoder's last states after its norm, without CLS.
    """

    token_ids: torch.LongTensor | None = None
    code_vectors: torch.FloatTensor | None = None
    encoder_patch_features: torch.FloatTensor | None = None


@dataclass
class VlBeitVqkdForTrainingOutput(ModelOutput):
    """Output of `VlBeitVqkdForTraining`.

    loss: reconstruction + commitment_loss_weight x commitment, a scalar; `None` without a target.
    losses: "reconstruction" and "commitment", before weighting.
    token_ids: (pictures, patches), int64.
    reconstruction: (pictures, patches, values): pixels in [-1, 1] as (channel, row, column), or features.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    token_ids: torch.LongTensor | None = None
    reconstruction: torch.FloatTensor | None = None


class _Float32Module(nn.Module):
    """A module that keeps float32 when the model is cast: half precision would move vectors to other codes."""

    def _apply(self, fn, recurse=True):
        def keep(tensor):
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep, recurse)


class VqkdProjection(_Float32Module):
    """Linear, tanh, Linear in float32: the way into the codes, and out of the decoder. (..., dim) -> (..., out)."""

    def __init__(self, dim: int, output_dim: int):
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, output_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self.output(torch.tanh(self.dense(hidden_states.float())))


class VqkdCodebook(_Float32Module):
    """Unit vectors, and how often each is chosen.

    weight: (codes, code_dim), moved by running means, not by gradients. cluster_size: (codes,), running mean of how
    many vectors of a step each code was chosen for; 0 everywhere until the first step of training.
    """

    def __init__(self, config: VlBeitVqkdConfig):
        super().__init__()
        self.decay = config.codebook_decay
        self.revive_below = config.revive_below
        self.register_buffer("weight", torch.empty(config.codebook_size, config.code_dim))
        self.register_buffer("cluster_size", torch.empty(config.codebook_size))

    def find(self, vectors: torch.Tensor) -> torch.Tensor:
        """The nearest code of each vector by Euclidean distance; (rows, code_dim) -> (rows,), int64."""
        # Without the square of the vector itself, which is the same for all codes.
        squares = self.weight.square().sum(dim=1)
        chunks = vectors.split(_ROWS_AT_ONCE)
        return torch.cat([(squares - 2 * chunk @ self.weight.t()).argmin(dim=1) for chunk in chunks])

    @torch.no_grad()
    def revive(self, vectors: torch.Tensor):
        """Put vectors of the batch in the place of codes that are hardly chosen; of all codes in the first step.

        Vectors are drawn with a probability that grows with the squared distance to their code, so that places without
        a code get one. The first process draws for all. (rows, code_dim), of unit norm.
        """
        distributed = _is_distributed()
        mean = self.cluster_size.mean()
        dead = self.cluster_size <= self.revive_below * mean
        distances = (vectors - self.weight[self.find(vectors)]).square().sum(dim=1)
        num_codes = len(self.weight)
        drawn = vectors[torch.multinomial(distances + 1e-8, num_codes, replacement=len(vectors) < num_codes)]
        fair_share = torch.tensor(len(vectors) / num_codes, device=vectors.device)
        if distributed:
            torch.distributed.broadcast(drawn, src=0)
            torch.distributed.all_reduce(fair_share)
        drawn = drawn[(dead.cumsum(0) - 1).clamp(min=0)]  # the first drawn, the likeliest, to the first such code
        self.weight.copy_(torch.where(dead[:, None], drawn, self.weight))
        # As if it had been chosen as often as the others: it has some steps to be found in.
        self.cluster_size.copy_(torch.where(dead, fair_share, self.cluster_size))

    @torch.no_grad()
    def update(self, vectors: torch.Tensor, token_ids: torch.Tensor):
        """Move each code that was chosen towards the mean of its vectors, over all processes.

        (rows, code_dim) of unit norm, (rows,).
        """
        counts = torch.bincount(token_ids, minlength=len(self.weight)).to(vectors.dtype)
        sums = torch.zeros_like(self.weight).index_add_(0, token_ids, vectors)
        if _is_distributed():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        self.cluster_size.lerp_(counts, 1 - self.decay)
        means = nn.functional.normalize(sums, dim=1)
        moved = nn.functional.normalize(torch.lerp(self.weight, means, 1 - self.decay), dim=1)
        self.weight.copy_(torch.where(counts[:, None] > 0, moved, self.weight))


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def make_transformer(config: VlBeitVqkdConfig, **changes) -> BeitModel:
    """The library's BEiT with absolute positions, without LayerScale, relative bias and pooler."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    names += ("layer_norm_eps", "initializer_range", "drop_path_rate", "image_size", "patch_size", "num_channels")
    settings = {name: getattr(config, name) for name in names}
    beit_config = BeitConfig(
        use_absolute_position_embeddings=True,
        layer_scale_init_value=0.0,  # none
        use_mean_pooling=False,  # keeps the norm behind the last block
        **{**settings, **changes},
    )
    beit_config._attn_implementation = config._attn_implementation
    return BeitModel(beit_config, add_pooling_layer=False)


def check_pixels(pixel_values: torch.Tensor, config: VlBeitVqkdConfig):
    """Raise ValueError unless these are pictures of the configured size with values in [0, 1].

    While a graph is being compiled or exported, values are not looked at.
    """
    shape = (config.num_channels, config.image_size, config.image_size)
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != shape:
        raise ValueError(
            f"The visual tokenizer takes pictures of the shape (pictures, {', '.join(map(str, shape))}), not "
            f"{tuple(pixel_values.shape)}: resize them to its config.image_size={config.image_size}."
        )
    if not pixel_values.is_floating_point():
        raise ValueError(
            f"The visual tokenizer takes floating-point pixels in [0, 1], not {pixel_values.dtype}: divide by 255."
        )
    if torch.compiler.is_compiling() or pixel_values.is_meta or not pixel_values.numel():
        return
    low, high = (value.item() for value in torch.aminmax(pixel_values))
    if not (low >= -_PIXEL_TOLERANCE and high <= 1 + _PIXEL_TOLERANCE):  # NaN is neither
        raise ValueError(
            f"The visual tokenizer takes pixels in [0, 1]; these lie in [{low:.3g}, {high:.3g}]. Give pictures that "
            "were divided by 255 and not normalised (its own image processor does so)."
        )


class VlBeitVqkdPreTrainedModel(SelfContainedSaving, PreTrainedModel):
    """What tokenizer and training model share."""

    config: VlBeitVqkdConfig
    base_model_prefix = "vqkd"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["BeitLayer"]
    _keep_in_fp32_modules_strict = ["code_projection", "codebook", "decoder_projection"]
    accepts_loss_kwargs = False

    _exported_classes = {"AutoModel": "VlBeitVqkdTokenizer", "AutoModelForPreTraining": "VlBeitVqkdForTraining"}

    @torch.no_grad()
    def _init_weights(self, module):
        """Initial values: normal with `initializer_range`, biases 0, norms 1 and 0; codes are random unit vectors."""
        super()._init_weights(module)
        if isinstance(module, VqkdCodebook):
            init.normal_(module.weight)
            init.copy_(module.weight, nn.functional.normalize(module.weight, dim=1))
            init.zeros_(module.cluster_size)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: vectors, class tokens and positions."""
        exempt = ("cls_token", "position_embeddings")
        return {name for name, value in self.named_parameters() if value.ndim < 2 or name.endswith(exempt)}


class VlBeitVqkdTokenizer(VlBeitVqkdPreTrainedModel):
    """From pictures to visual tokens.

    >>> tokenizer = VlBeitVqkdTokenizer.from_pretrained("path/to/tokenizer").eval()
    >>> ids = tokenizer.get_token_ids(torch.rand(2, 3, 224, 224))  # (2, 196)

    Loads from a checkpoint of `VlBeitVqkdForTraining` as well, whose decoder is left aside.
    """

    _auto_class = "AutoModel"
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^decoder_projection\."]

    def __init__(self, config: VlBeitVqkdConfig):
        super().__init__(config)
        self.encoder = make_transformer(config)
        self.code_projection = VqkdProjection(config.hidden_size, config.code_dim)
        self.codebook = VqkdCodebook(config)
        self.post_init()

    @property
    def num_tokens(self) -> int:
        """Visual tokens of a picture."""
        return self.config.num_tokens

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embeddings.patch_embeddings

    def encode(self, pixel_values: torch.FloatTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and code vectors of the patches; see `VlBeitVqkdOutput`."""
        check_pixels(pixel_values, self.config)
        scaled = 2 * pixel_values.float() - 1  # in float32: in half precision some of the 256 levels fall together
        dtype = self.encoder.embeddings.patch_embeddings.projection.weight.dtype
        features = self.encoder(scaled.to(dtype)).last_hidden_state[:, 1:]
        return features, self.code_projection(features)

    @can_return_tuple
    def forward(self, pixel_values: torch.FloatTensor, **kwargs) -> VlBeitVqkdOutput:
        """Tokens of pictures with values in [0, 1], (pictures, channels, side, side)."""
        features, code_vectors = self.encode(pixel_values)
        return VlBeitVqkdOutput(self._find(code_vectors), code_vectors, features)

    @torch.no_grad()
    def get_token_ids(self, pixel_values: torch.FloatTensor) -> torch.LongTensor:
        """Token ids of the patches, row by row from the top left, without gradient.

        Args:
            pixel_values: values in [0, 1], (pictures, channels, side, side), on any device.

        Returns (pictures, patches), int64. Raises ValueError for pictures of another size or values outside [0, 1].
        """
        return self._find(self.encode(pixel_values.to(self.device))[1])

    def _find(self, code_vectors: torch.Tensor) -> torch.LongTensor:
        with torch.autocast(code_vectors.device.type, enabled=False):
            vectors = nn.functional.normalize(code_vectors.flatten(0, 1), dim=1)
            return self.codebook.find(vectors).view(code_vectors.shape[:2])


class VlBeitVqkdForTraining(VlBeitVqkdTokenizer):
    """Training of the tokenizer: the codes of a picture must suffice to reconstruct a target.

    Formula: reconstruction + commitment_loss_weight x commitment. Reconstruction is 1 - cos(target, decoder(codes)),
    mean over patches, for features of a teacher (the paper's); the mean squared error over values in [-1, 1] for
    pixels. Commitment is the mean squared error between the unit vectors and their codes, which get no gradient; the
    reconstruction's gradient passes the choice of codes unchanged (straight through). In training mode each call moves
    the codebook, also under gradient accumulation. With a process group all processes move it alike.

    References: BEiT v2, section 2.2 (arXiv 2208.06366); van den Oord et al., VQ-VAE, appendix A.1 (arXiv 1711.00937).
    """

    _auto_class = "AutoModelForPreTraining"
    _keys_to_ignore_on_load_unexpected = []
    _teacher: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __init__(self, config: VlBeitVqkdConfig):
        super().__init__(config)
        self.decoder = make_transformer(
            config,
            num_channels=config.code_dim,
            image_size=config.window_size,
            patch_size=1,
            num_hidden_layers=config.decoder_num_hidden_layers,
            drop_path_rate=0.0,
        )
        self.decoder_projection = VqkdProjection(config.hidden_size, config.output_dim)
        self.post_init()

    def set_teacher(self, teacher: Callable[[torch.Tensor], torch.Tensor] | None):
        """Have the features of a teacher as target where `forward` is given none.

        Args:
            teacher: pictures in [0, 1] -> (pictures, patches, target_dim). It is neither trained nor saved. `None`
                removes it.
        """
        # Not as a submodule: its weights are no part of this model.
        object.__setattr__(self, "_teacher", teacher)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        target_features: torch.FloatTensor | None = None,
        return_loss: bool = True,
        **kwargs,
    ) -> VlBeitVqkdForTrainingOutput:
        """Quantise, reconstruct, compare.

        Args:
            pixel_values: values in [0, 1], (pictures, channels, side, side).
            target_features: (pictures, patches, target_dim), with `config.target="features"`; by default those of the
                teacher.
            return_loss: without it no target is needed.

        Raises ValueError when features are the target and there are none, or of another shape.
        """
        code_vectors = self.encode(pixel_values)[1]
        with torch.autocast(code_vectors.device.type, enabled=False):
            vectors = nn.functional.normalize(code_vectors.flatten(0, 1), dim=1)  # (pictures x patches, code_dim)
            if self.training:
                self.codebook.revive(vectors.detach())
            token_ids = self.codebook.find(vectors.detach())
            codes = self.codebook.weight[token_ids]
            commitment = nn.functional.mse_loss(vectors, codes)
            if self.training:
                self.codebook.update(vectors.detach(), token_ids)
            codes = vectors + (codes - vectors).detach()
        reconstruction = self._decode(codes.view(code_vectors.shape))
        loss = losses = None
        if return_loss:
            target = self.make_target(pixel_values, target_features)
            losses = {"reconstruction": self._compare(reconstruction, target), "commitment": commitment}
            loss = losses["reconstruction"] + self.config.commitment_loss_weight * commitment
        return VlBeitVqkdForTrainingOutput(loss, losses, token_ids.view(code_vectors.shape[:2]), reconstruction)

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        """(pictures, patches, code_dim) -> (pictures, patches, values)."""
        side = self.config.window_size
        dtype = self.decoder.embeddings.patch_embeddings.projection.weight.dtype
        code_map = codes.transpose(1, 2).unflatten(2, (side, side)).to(dtype)
        return self.decoder_projection(self.decoder(code_map).last_hidden_state[:, 1:])

    def make_target(
        self, pixel_values: torch.FloatTensor, target_features: torch.FloatTensor | None = None
    ) -> torch.FloatTensor:
        """What the decoder shall give: pixels of the patches in [-1, 1], or the features of the teacher.

        Returns (pictures, patches, values), float32. Raises ValueError as `forward` does.
        """
        if self.config.target == "pixels":
            patches = nn.functional.unfold(pixel_values.float(), self.config.patch_size, stride=self.config.patch_size)
            return 2 * patches.transpose(1, 2) - 1
        if target_features is None:
            if self._teacher is None:
                raise ValueError(
                    'config.target="features" needs a teacher: call set_teacher, or give target_features; to train '
                    'without one set target="pixels".'
                )
            with torch.no_grad():
                target_features = self._teacher(pixel_values)
        expected = (len(pixel_values), self.config.num_tokens, self.config.target_dim)
        if tuple(target_features.shape) != expected:
            raise ValueError(
                f"The teacher's features have the shape {tuple(target_features.shape)}, expected {expected}: "
                "pictures, patches, config.target_dim."
            )
        return target_features.float()

    def _compare(self, reconstruction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.reconstruction_errors(reconstruction, target).mean()

    def reconstruction_errors(self, reconstruction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean squared error of each patch, or 1 - cosine for features; (..., values) twice -> (...)."""
        if self.config.target == "pixels":
            return (reconstruction - target).square().mean(dim=-1)
        return 1 - nn.functional.cosine_similarity(reconstruction, target, dim=-1)


__all__ = [
    "VlBeitVqkdForTraining",
    "VlBeitVqkdForTrainingOutput",
    "VlBeitVqkdOutput",
    "VlBeitVqkdPreTrainedModel",
    "VlBeitVqkdTokenizer",
]
