"""Loading a model as it was at a step of its training: from a revision on the hub, or from a Hugging Face folder.

The weights are the checkpoint's own: nothing is folded or centred.
"""

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import nn

__all__ = ["HostName", "load"]

HostName: TypeAlias = Literal["bridge", "hooked"]
"""A TransformerBridge, or a HookedTransformer (transformer-lens 3.9 only)."""
_NAMED_AFTER = ("llama", "gemma")
"""Words in a path from which TransformerLens 3.9 takes the architecture of a HookedTransformer, whatever is in it."""


def load(
    source: str,
    revision: str | None = None,
    *,
    host: HostName = "bridge",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> nn.Module:
    """The model with its raw weights, and its tokenizer.

    Args:
        source: a model's name on the hub, or the path of a folder that `save_pretrained` wrote.
        revision: a branch, tag or commit on the hub; None for the newest, and for a folder.
        host: which of TransformerLens's two models to make.
        dtype: of the weights.
        device: where they go; TransformerLens's choice by default.

    Raises:
        OSError: if there is no such model or revision, the folder is incomplete, or the hub cannot be reached.
        ImportError: if a HookedTransformer is asked for and there is none.
    """
    make = _bridge if host == "bridge" else _hooked
    try:
        return make(source, revision, dtype, device).eval()
    except (OSError, ValueError) as error:
        raise OSError(_why(source, revision, error)) from error


def _bridge(source: str, revision: str | None, dtype: torch.dtype, device: torch.device | str | None) -> nn.Module:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(source, revision=revision, dtype=dtype, device=device)


def _hooked(source: str, revision: str | None, dtype: torch.dtype, device: torch.device | str | None) -> nn.Module:
    # Not HookedTransformer.from_pretrained: it refuses folders, and prints.
    try:
        from transformer_lens import HookedTransformer, loading_from_pretrained
    except ImportError as error:
        raise ImportError(
            f"transformer-lens {version('transformer-lens')} has no HookedTransformer any more: load with "
            "host='bridge', or install 'transformer-lens>=3.9,<4'."
        ) from error
    folder = Path(source).is_dir()
    misleading = next((word for word in _NAMED_AFTER if word in source.lower()), None)
    if folder and misleading is not None:
        raise OSError(
            f"transformer-lens 3.9 takes the architecture from the word {misleading!r} in the path and not from "
            "config.json"
        )
    pinned: dict = {} if revision is None else {"revision": revision}
    cfg = loading_from_pretrained.get_pretrained_model_config(source, dtype=dtype, device=device, **pinned)
    if folder:
        cfg.tokenizer_name = source
    state = loading_from_pretrained.get_pretrained_state_dict(source, cfg, dtype=dtype, **pinned)
    with warnings.catch_warnings():
        # 3.9 announces its own removal; whoever asks for this host does so by name, and the other one is there.
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        model = HookedTransformer(cfg, move_to_device=False)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    model.move_model_modules_to_device()
    return model


def _why(source: str, revision: str | None, error: Exception) -> str:
    """What went wrong, and what to do."""
    named = repr(source) if revision is None else f"{source!r} at revision {revision!r}"
    first_line = str(error).strip().split("\n")[0][:200]
    if Path(source).is_dir():
        return (
            f"the folder {source!r} is no model ({first_line}): it needs config.json, the weights and the tokenizer's "
            "files. Write one with model.save_pretrained(folder) and tokenizer.save_pretrained(folder), or load with "
            "host='bridge'."
        )
    if "Valid official model names" in str(error):
        return (
            f"transformer-lens {version('transformer-lens')} makes no HookedTransformer of {source!r}: it knows some "
            "models, by their names. Look for a typing error, or load with host='bridge'."
        )
    kinds = {type(cause).__name__ for cause in _causes(error)}
    if "RevisionNotFoundError" in kinds or "not a valid git identifier" in str(error):
        return (
            f"{source!r} has no revision {revision!r} on the hub: Pythia's are called step0, step1, step2, step4 to "
            "step512, and step1000, step2000 to step143000. Give one that the model's page lists under 'Files'."
        )
    if "RepositoryNotFoundError" in kinds or "not a valid model identifier" in str(error):
        return (
            f"there is no folder and no model on the hub of the name {source!r}: names are such as "
            "'EleutherAI/pythia-70m'. Look for a typing error; a private model needs a login (hf auth login)."
        )
    if not isinstance(error, OSError):
        return f"TransformerLens makes no model of {named} ({first_line}): give one that it supports."
    return (
        f"{named} is not in the local cache, and the hub cannot be reached ({first_line}). Go online once, without "
        "HF_HUB_OFFLINE; or download a folder for each step where there is a network (hf download NAME --revision "
        "step1000 --local-dir FOLDER/step1000) and give FOLDER."
    )


def _causes(error: BaseException) -> list[BaseException]:
    """The error and what led to it."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found
