"""Other people's names for the same matrices.

| here     | LASER (paper; code)         | Hugging Face                                                              |
|----------|-----------------------------|---------------------------------------------------------------------------|
| `W_Q`    | `W_q`; `q_proj`             | `q_proj`                                                                  |
| `W_K`    | `W_k`; `k_proj`             | `k_proj`                                                                  |
| `W_V`    | `W_v`; `v_proj`             | `v_proj`                                                                  |
| `W_O`    | `W_o`; `out_proj`, `o_proj` | `o_proj`, `out_proj`, `attn.c_proj`, `attention.dense`, `self_attn.dense` |
| `W_in`   | `U_in`; `fc_in` (no gate)   | `up_proj`, `c_fc`, `fc_in`, `fc1`, `dense_h_to_4h`                        |
| `W_gate` | `fc_in` on gated MLPs       | `gate_proj`                                                               |
| `W_out`  | `U_out`; `fc_out`           | `down_proj`, `mlp.c_proj`, `fc_out`, `fc2`, `dense_4h_to_h`               |

LASER's published code calls `gate_proj` `fc_in` on Llama, so on a model with gates `fc_in` is `W_gate`, and `U_in`, the
paper's own name, is `W_in`. A leading `model.layers.3`, `transformer.h.3`, `gpt_neox.layers.3` or
`model.decoder.layers.3` is `blocks.3`; a trailing `.weight` is ignored. Without a layer, or after a `*`, an alias means
every layer; after anything else it is not taken for one, so that a slip in `model.layers.3` does not become an edit of
every layer. Our own names without a layer mean every layer too: `W_out`, `attn.W_Q[3]`, `mlp.*`.
"""

import re

from hooks._globs import split_index
from hooks.sites import ATTENTION_MATRICES, MATRICES, Matrix, SiteError

_PLAIN: dict[str, Matrix] = {
    **dict.fromkeys(("W_q", "q_proj"), "W_Q"),
    **dict.fromkeys(("W_k", "k_proj"), "W_K"),
    **dict.fromkeys(("W_v", "v_proj"), "W_V"),
    **dict.fromkeys(("W_o", "o_proj", "out_proj", "attn.c_proj", "attention.dense", "self_attn.dense"), "W_O"),
    **dict.fromkeys(("U_in", "up_proj", "c_fc", "fc1", "dense_h_to_4h"), "W_in"),
    "gate_proj": "W_gate",
    **dict.fromkeys(("U_out", "down_proj", "mlp.c_proj", "fc_out", "fc2", "dense_4h_to_h"), "W_out"),
}
_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "gate_up_proj")
_OUTSIDE = ("W_E", "W_U", "W_pos", "embed_tokens", "embed_in", "wte", "wpe", "lm_head", "embed_out")
_LAYER = r"(?:(?:(?:transformer|model|gpt_neox|decoder)\.)*(?:h|layers|blocks)\.(?P<layer>[^.]+)\.|\*\.?)?"
_PART = r"(?:(?:self_attn|attn|attention|mlp)\.)*"


def canonical(pattern: str, *, gated: bool) -> str:
    """The pattern in TransformerLens's names; one that uses no alias and names a layer comes back as it is.

    Raises:
        SiteError: if it names a fused matrix, which is edited by its parts, the ambiguous `c_proj`, or an embedding.
    """
    name, index = split_index(pattern.removesuffix(".weight"))
    head = "" if index is None else f"[{index}]"
    last = name.rsplit(".", 1)[-1]
    if last in _OUTSIDE:
        raise SiteError(
            f"{pattern!r} is not edited here: only the matrices of the blocks are, {', '.join(MATRICES)}. List them "
            "with surgery.sites(model)."
        )
    if last in _FUSED:
        parts = "W_gate and W_in" if last == "gate_up_proj" else "W_Q, W_K and W_V"
        raise SiteError(f"{pattern!r} names a fused matrix: name its parts, {parts}, instead.")
    if last == "c_proj" and not name.endswith(("attn.c_proj", "mlp.c_proj")):
        raise SiteError(f"{pattern!r} is ambiguous: write attn.c_proj (W_O) or mlp.c_proj (W_out).")
    aliases: dict[str, Matrix] = {**_PLAIN, "fc_in": "W_gate" if gated else "W_in"}
    for alias, matrix in aliases.items():
        found = re.fullmatch(_LAYER + _PART + re.escape(alias), name)
        if found is not None:
            part = "attn" if matrix in ATTENTION_MATRICES else "mlp"
            return f"blocks.{found['layer'] or '*'}.{part}.{matrix}{head}"
    return f"blocks.*.{pattern}" if pattern.startswith(("W_", "attn.", "mlp.")) else pattern
