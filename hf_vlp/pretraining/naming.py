"""Names and models without what wraps them: DDP, compilation, adapters."""

from torch import nn


def plain_name(name: str) -> str:
    """The name that the model itself gives to a parameter, without the prefixes of wrappers and adapters."""
    for prefix in ("module.", "_orig_mod.", "base_model.model."):
        name = name.removeprefix(prefix)
    return name


def plain_model(model: nn.Module) -> nn.Module:
    """The model itself, without DDP, compilation or adapters around it."""
    while True:
        if hasattr(model, "get_base_model"):
            model = model.get_base_model()
        elif isinstance(inner := getattr(model, "module", getattr(model, "_orig_mod", None)), nn.Module):
            model = inner
        else:
            return model


__all__ = ["plain_model", "plain_name"]
