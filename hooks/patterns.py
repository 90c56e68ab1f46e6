"""From a pattern to the sites it names.

`*` matches anything, dots included; `?` one character; `[abc]`, `[a-z]`, `[!a]` a class of characters; `{a,b}`
alternatives. In a layer's place brackets hold numbers, as a final bracket after an attention matrix does for its heads:
`[3]`, `[-1]` from the end, `[*]` all, `[3:6]` a slice as in Python, `[3-6]` with both ends, `[0,4]` several, `[!0]` all
others. Without a head index a pattern matches the layers' whole matrices only; without a layer, as `W_out` or
`attn.W_Q[3]`, those of every layer.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from torch import nn

from hooks._aliases import canonical
from hooks._globs import LONGEST, Glob, Numbered, split_index
from hooks.hosts import Host, host_of
from hooks.places import Place
from hooks.sites import ATTENTION_MATRICES, Site, SiteError

__all__ = ["match_each", "match_on", "match_sites", "place_of"]


def match_each(model: nn.Module, patterns: str | Site | Iterable[str | Site]) -> list[Site]:
    """Every site that a pattern (or any of several) names, each once, in the order of the forward pass.

    Raises:
        TypeError: if that is neither a pattern nor several.
        SiteError: as `match_sites`.

    >>> from hooks import match_each
    >>> [str(site) for site in match_each(model, ["W_out", "blocks.0.attn.W_Q[1]"])]
    ['blocks.0.attn.W_Q[1]', 'blocks.0.mlp.W_out', 'blocks.1.mlp.W_out']
    """
    given: list[object] = [patterns]
    if isinstance(patterns, Iterable) and not isinstance(patterns, str | Mapping):
        given = list(patterns)
    for pattern in given:
        if not isinstance(pattern, str | Site):
            raise TypeError(
                f"{repr(pattern)[:80]} is not a pattern but of type {type(pattern).__name__}: give a string such as "
                "'blocks.*.mlp.W_out', or a list of these."
            )
    host = host_of(model)
    joint_sites = host.joint_sites()
    return sorted({site for pattern in given for site in match_on(host, str(pattern), joint_sites)})


def match_sites(model: nn.Module, pattern: str) -> list[Site]:
    """Every site of the model that the pattern names, in the order of the forward pass; never empty.

    >>> from hooks import match_sites
    >>> [str(site) for site in match_sites(model, "blocks.-1.attn.W_[QK][0]")]
    ['blocks.1.attn.W_Q[0]', 'blocks.1.attn.W_K[0]']

    Raises:
        SiteError: if it names none, with the nearest names that exist, or a head index is out of range or not on
        attention.
    """
    return match_on(host_of(model), pattern)


def place_of(model: nn.Module, address: str | Site) -> Place:
    """Where the one matrix at an exact address lives.

    >>> from hooks import place_of
    >>> place = place_of(model, "blocks.0.attn.W_Q[1]")
    >>> place.d_in, place.d_out, place.input.hook  # transformer-lens 3: a HookedTransformer
    (16, 8, 'blocks.0.ln1.hook_normalized')

    Raises:
        SiteError: if this model has no such matrix.
    """
    site = address if isinstance(address, Site) else Site.parse(address)
    return host_of(model).place(site)


def match_on(host: Host, pattern: str, joint_sites: Sequence[Site] | None = None) -> list[Site]:
    """As `match_sites`, on a host. Several patterns share one listing of its matrices, `host.joint_sites()`."""
    if len(pattern) > LONGEST:
        raise SiteError(
            f"'{pattern[:40]}...' has {len(pattern):,} characters: a pattern has at most {LONGEST:,}. Give several "
            "patterns."
        )
    joint_sites = host.joint_sites() if joint_sites is None else joint_sites
    gated = any(site.matrix == "W_gate" for site in joint_sites)
    joint, index = split_index(canonical(pattern, gated=gated))
    pattern = pattern if len(pattern) <= 80 else f"{pattern[:77]}..."  # from here on it is for messages
    glob = Glob(joint, host.n_layers, pattern=pattern)
    sites = [site for site in joint_sites if glob.matches(str(site))]
    if not sites:
        raise _nothing(host, pattern, joint, glob, joint_sites)
    glob.check_layers()
    if index is None:
        return sites
    return [site.at_head(h) for site in sites for h in _heads(host, site, index, pattern)]


def _heads(host: Host, site: Site, index: str, pattern: str) -> list[int]:
    if site.matrix not in ATTENTION_MATRICES:
        raise SiteError(
            f"{pattern!r} asks for heads of '{site}', which has none: "
            f"a head index goes with {', '.join(ATTENTION_MATRICES)} only."
        )
    return Numbered(host.n_heads(site.matrix), "head", str(site), pattern).chosen(index)


def _nothing(host: Host, pattern: str, joint: str, glob: Glob, joint_sites: Sequence[Site]) -> SiteError:
    """Why nothing matched: a matrix that cannot be edited, no such layer, or a slip of the pen."""
    what = f"no matrix is named {pattern!r}" if pattern.strip() else "an empty pattern names no matrix"
    matching = next((site for site in host.every_site if glob.matches(str(site))), None)
    if matching is not None:
        return SiteError(f"{what}: {host.why_not(matching)}. List what can be edited with surgery.sites(model).")
    near = get_close_matches(joint, map(str, joint_sites), n=3, cutoff=0.6)
    hint = f"Nearest: {', '.join(near)}. " if near else ""
    return SiteError(
        f"{what}: this model has {host.n_layers} layers, blocks.0 to blocks.{host.n_layers - 1}. "
        f"{hint}List all with surgery.sites(model)."
    )
