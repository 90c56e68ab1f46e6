"""The modes of a model in which an analysis would measure something else than the model."""

from torch import nn

__all__ = ["check_deterministic", "check_trainable"]


def check_deterministic(model: nn.Module) -> None:
    """Refuse a model that gives another answer at every call.

    Raises:
        ValueError: in train mode, if the model has dropout.
    """
    inner = getattr(model, "original_model", model)
    rates = [_dropout(module) for module in inner.modules() if module.training]
    if any(rates):
        raise ValueError(
            f"the model is in train mode and has dropout ({max(rates)}), so its output changes at every call: "
            "call model.eval() first."
        )


def check_trainable(model: nn.Module) -> None:
    """Refuse a model through which torch computes no gradients.

    Raises:
        ValueError: if parameters were made in inference mode.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "the model's parameters were made in inference mode, where torch computes no gradients: use by_ablation, "
            "or load the model outside torch.inference_mode()."
        )


def _dropout(module: nn.Module) -> float:
    """The rate of a dropout layer, or of attention that drops by itself, as Hugging Face's does; else 0."""
    rate = module.p if isinstance(module, nn.Dropout) else module.__dict__.get("attention_dropout", 0.0)
    return rate if isinstance(rate, float) else 0.0
