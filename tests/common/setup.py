"""What a test class declares about its model, and the tools that all mixins share.

A model's test file writes one class per model:

    class TestVcGptForConditionalGeneration(ModelingTests, GenerationTests, AdapterTests, TrainingTests):
        model_class = VcGptForConditionalGeneration
        variants = {"base": {}, "untied": {"tie_word_embeddings": False}}
        def make_config(self, **choices): ...
        def make_inputs(self, config, rows=2, seed=0): ...

Every test of a mixin that takes `variant` runs once per entry of `variants`; `selected` restricts a test to some of
them. Attributes and methods below say what applies to the model; the rest of them have defaults.
"""

import re
from pathlib import Path

import torch
from transformers.utils import ModelOutput


class ModelSetup:
    """Declarations of a test class."""

    model_class: type
    # A class that the head is built on, and the auto classes that find the two; "" where there is none.
    base_model_class: type | None = None
    auto_class: str = "AutoModel"

    # Name -> keyword arguments of `make_config`. The first one is the main variant.
    variants: dict[str, dict] = {"base": {}}
    # Pattern of a test's name -> the variants it runs for.
    selected: dict[str, tuple[str, ...]] = {}

    # Inputs that only the loss needs, and masks over tokens (1 on tokens).
    label_inputs: tuple[str, ...] = ("labels",)
    mask_inputs: tuple[str, ...] = ("attention_mask",)
    # Inputs of shape (rows, length) and what stands on their padding; empty for a model without text.
    padding_values: dict[str, int] = {}
    padding_sides: tuple[str, ...] = ("left", "right")
    # Outputs with the text along dimension 1 (padding must not change them), and with the vocabulary last.
    text_outputs: tuple[str, ...] = ()
    vocabulary_outputs: tuple[str, ...] = ()
    # Outputs that depend on the other rows of the batch, such as a matrix of all pairs.
    batch_outputs: tuple[str, ...] = ()
    # Parameters whose gradient is zero by mathematics: a bias of the keys cancels in the softmax.
    zero_gradients = r"\bk_proj\.bias$"
    # Parameters that the loss of a head does not reach: experts of other modalities, tables kept for round trips.
    idle_parameters = r"^$"
    # Parameters of the library's own towers: it draws them by a plain normal, not by the tower's scheme, when they are
    # missing from a checkpoint (transformers 5.23, for schemes that a parent module applies to its children).
    plainly_initialised = r"^$"

    def make_config(self, **choices):
        """A tiny configuration; dropout above zero, so that tests in training mode mean something."""
        raise TypeError(f"{type(self).__name__} does not define make_config.")

    def make_inputs(self, config, rows: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
        """Inputs of `forward` with labels, the first dimension of each being rows; one row has padding on the right.

        The label of the first token is -100 where labels are shifted: with padding on the left it would count.
        """
        raise TypeError(f"{type(self).__name__} does not define make_inputs.")

    def expected_shapes(self, config, inputs) -> dict[str, list[tuple[int, ...]]]:
        """Shapes of the outputs that `output_hidden_states` and `output_attentions` ask for, layer by layer."""
        raise TypeError(f"{type(self).__name__} does not define expected_shapes.")

    def pytest_generate_tests(self, metafunc):
        if "variant" in metafunc.fixturenames:
            chosen = list(self.variants)
            for pattern, names in self.selected.items():
                if re.search(pattern, metafunc.function.__name__):
                    chosen = [name for name in names if name in self.variants]
            metafunc.parametrize("variant", chosen)
        for name, values in self.further_parameters().items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values)

    def further_parameters(self) -> dict[str, list]:
        """Other arguments that tests are repeated over."""
        return {"padding_side": list(self.padding_sides)}

    @property
    def main_variant(self) -> str:
        return next(iter(self.variants))

    def config_of(self, variant: str):
        return self.make_config(**self.variants[variant])

    def model_of(self, variant: str, seed: int = 0, model_class=None):
        """A model in evaluation mode, every parameter moved away from its initial value.

        Biases and norms would otherwise be 0 and 1, and hide that they were lost.
        """
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            model = (model_class or self.model_class)(self.config_of(variant))
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model.eval()

    def inputs_without_labels(self, config, **options) -> dict[str, torch.Tensor]:
        inputs = self.make_inputs(config, **options)
        return {name: value for name, value in inputs.items() if name not in self.label_inputs}


@torch.no_grad()
def run(model, inputs: dict, **options) -> dict[str, torch.Tensor]:
    """All tensors that the model returns, flat: `hidden_states.0` is the first of a tuple."""
    return flatten(model(**inputs, **options))


def flatten(outputs) -> dict[str, torch.Tensor]:
    flat = {}
    items = outputs.items() if isinstance(outputs, (dict, ModelOutput)) else enumerate(outputs)
    for name, value in items:
        if isinstance(value, torch.Tensor):
            flat[str(name)] = value
        elif isinstance(value, (tuple, list, dict)):
            flat |= {f"{name}.{inner}": tensor for inner, tensor in flatten(value).items()}
    return flat


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], *, atol=0.0, rtol=0.0, names=None):
    """The same names, and equal tensors; `names` keeps only outputs of these names."""

    def kept(outputs):
        return {name: value for name, value in outputs.items() if names is None or name.split(".")[0] in names}

    first, second = kept(first), kept(second)
    assert first
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], atol=atol, rtol=rtol, msg=lambda m, name=name: f"{name}: {m}")


def states_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def different(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names that one of the two lacks, and names of tensors that are not bit-equal."""
    names = first.keys() & second.keys()
    return sorted(
        (first.keys() ^ second.keys()) | {name for name in names if not torch.equal(first[name], second[name])}
    )


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file of a folder, folders in it included, with its bytes."""
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}
