"""Other people's names: every row of the table, and every matrix of every architecture by Hugging Face's own name."""

import pytest
import torch
from models import ARCHITECTURES, borrowed, hugging_face
from torch import nn

import surgery
from hooks import SiteError, place_of
from hooks._aliases import canonical

TABLE = [
    ("W_q", "attn.W_Q"), ("q_proj", "attn.W_Q"), ("W_k", "attn.W_K"), ("k_proj", "attn.W_K"), ("W_v", "attn.W_V"),
    ("v_proj", "attn.W_V"), ("W_o", "attn.W_O"), ("o_proj", "attn.W_O"), ("out_proj", "attn.W_O"),
    ("attn.c_proj", "attn.W_O"), ("attention.dense", "attn.W_O"), ("self_attn.dense", "attn.W_O"), ("U_in", "mlp.W_in"),
    ("up_proj", "mlp.W_in"), ("c_fc", "mlp.W_in"), ("fc1", "mlp.W_in"), ("dense_h_to_4h", "mlp.W_in"),
    ("gate_proj", "mlp.W_gate"), ("U_out", "mlp.W_out"), ("down_proj", "mlp.W_out"), ("mlp.c_proj", "mlp.W_out"),
    ("fc_out", "mlp.W_out"), ("fc2", "mlp.W_out"), ("dense_4h_to_h", "mlp.W_out"),
]  # fmt: skip


@pytest.mark.parametrize(("alias", "here"), TABLE)
@pytest.mark.parametrize("gated", [False, True])
def test_every_row_of_the_table(alias: str, here: str, gated: bool) -> None:
    assert canonical(alias, gated=gated) == f"blocks.*.{here}"
    assert canonical(f"*{alias}", gated=gated) == f"blocks.*.{here}"
    assert canonical(f"{alias}.weight", gated=gated) == f"blocks.*.{here}"
    for prefix in (
        "model.layers.3",
        "transformer.h.3",
        "gpt_neox.layers.3",
        "model.decoder.layers.3",
        "h.3",
        "blocks.3",
    ):
        assert canonical(f"{prefix}.{alias}", gated=gated) == f"blocks.3.{here}"


def test_heads_and_choices_of_layers_pass_through() -> None:
    assert canonical("model.layers.{3,4}.self_attn.q_proj[2]", gated=True) == "blocks.{3,4}.attn.W_Q[2]"
    assert canonical("model.layers.*.self_attn.k_proj[*]", gated=True) == "blocks.*.attn.W_K[*]"
    assert canonical("model.layers.[0,-1].self_attn.q_proj[0-2]", gated=True) == "blocks.[0,-1].attn.W_Q[0-2]"
    assert canonical("transformer.h.[0-3].attn.attention.v_proj", gated=False) == "blocks.[0-3].attn.W_V"


def test_fc_in_is_the_gate_where_there_is_one() -> None:
    assert canonical("fc_in", gated=False) == "blocks.*.mlp.W_in"
    assert canonical("fc_in", gated=True) == "blocks.*.mlp.W_gate"
    with borrowed("bridge llama") as model:
        assert surgery.sites(model, "fc_in") == ["blocks.0.mlp.W_gate", "blocks.1.mlp.W_gate"]
        assert surgery.sites(model, "U_in") == ["blocks.0.mlp.W_in", "blocks.1.mlp.W_in"]
    with borrowed("bridge gptj") as model:
        assert surgery.sites(model, "fc_in") == ["blocks.0.mlp.W_in", "blocks.1.mlp.W_in"]


@pytest.mark.parametrize("name", ["blocks.0.mlp.W_in", "blocks.*.attn.W_[QK][*]", "*", "", "zzz.q_project"])
def test_what_is_no_alias_comes_back_as_it_is(name: str) -> None:
    assert canonical(name, gated=False) == name


@pytest.mark.parametrize("name", ["model.layer.1.self_attn.q_proj", "visual.q_proj", "model.layers.q_proj", "xq_proj"])
def test_a_slip_before_an_alias_is_not_an_edit_of_every_layer(name: str) -> None:
    with borrowed("bridge llama") as model, pytest.raises(SiteError, match="no matrix is named"):
        surgery.sites(model, name)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "mixtral"])
def test_hugging_face_s_name_of_a_matrix_finds_that_matrix(architecture: str) -> None:
    original = hugging_face(architecture)
    layers = [(n, m) for n, m in original.named_modules() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"]
    fused = ("c_attn", "query_key_value")
    with borrowed(f"bridge {architecture}") as model:
        n_found = 0
        for name, layer in layers:
            if "head" in name or name == "embed_out":
                continue
            if name.endswith(fused):
                with pytest.raises(SiteError) as error:
                    surgery.sites(model, f"{name}.weight")
                assert str(error.value) == (
                    f"'{name}.weight' names a fused matrix: name its parts, W_Q, W_K and W_V, instead."
                )
                continue
            (address,) = surgery.sites(model, f"{name}.weight")
            stored = layer.weight.T if isinstance(layer, nn.Linear) else layer.weight
            assert torch.equal(place_of(model, address).matrix(), stored), name
            n_found += 1
        assert n_found == {"gpt2": 6, "neox": 6, "gptj": 12, "phi": 12}.get(architecture, 14)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "transformer.h.0.attn.c_attn",
            "'transformer.h.0.attn.c_attn' names a fused matrix: name its parts, W_Q, W_K and W_V, instead.",
        ),
        (
            "gpt_neox.layers.1.attention.query_key_value",
            "names a fused matrix: name its parts, W_Q, W_K and W_V, instead.",
        ),
        ("gate_up_proj", "'gate_up_proj' names a fused matrix: name its parts, W_gate and W_in, instead."),
        (
            "transformer.h.0.c_proj",
            "'transformer.h.0.c_proj' is ambiguous: write attn.c_proj (W_O) or mlp.c_proj (W_out).",
        ),
        ("c_proj.weight", "'c_proj.weight' is ambiguous: write attn.c_proj (W_O) or mlp.c_proj (W_out)."),
    ],
)
def test_fused_and_ambiguous_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(SiteError) as error:
        canonical(name, gated=False)
    assert message in str(error.value)
