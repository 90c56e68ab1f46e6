"""From a pattern to the sites it names.

`*` matches anything, dots included; `?` one character; `[abc]`, `[0-3]`, `[!a]` a class; `{a,b}` alternatives. A final
`[3]`, `[*]` or `[0:4]` after an attention matrix is its head index: one head, all, or a slice as in Python. Without it
a pattern matches the layer's whole matrices only.
"""

import re
from difflib import get_close_matches

from torch import nn

from hooks.aliases import canonical
from hooks.hosts import Host, host_of
from hooks.places import Place
from hooks.sites import ATTENTION_MATRICES, MATRICES, Site, SiteError

_HEAD = re.compile(r"(?P<joint>.*)\[(?P<index>-?\d+|\*|-?\d*:-?\d*)\]")


def match_sites(model: nn.Module, pattern: str) -> list[Site]:
    """Every site of the model that the pattern names, in the order of the forward pass; never empty.

    Raises:
        SiteError: if it names none, with the nearest names that exist, or a head index is out of range or not on
        attention.
    """
    return match_on(host_of(model), pattern)


def place_of(model: nn.Module, address: str | Site) -> Place:
    """Where the one matrix at an exact address lives.

    Raises:
        SiteError: if this model has no such matrix.
    """
    site = address if isinstance(address, Site) else Site.parse(address)
    return host_of(model).place(site)


def match_on(host: Host, pattern: str) -> list[Site]:
    """As `match_sites`, on a host."""
    joint_sites = list(host.joint_sites())
    gated = any(site.matrix == "W_gate" for site in joint_sites)
    known = canonical(pattern, gated=gated)
    head = _HEAD.fullmatch(known)
    joint, index = (head["joint"], head["index"]) if head else (known, None)
    expression = _expression(joint, pattern)
    sites = [site for site in joint_sites if expression.fullmatch(str(site))]
    if not sites:
        raise _nothing(host, pattern, joint, expression)
    if index is None:
        return sites
    return [site.at_head(h) for site in sites for h in _heads(host, site, index, pattern)]


def _heads(host: Host, site: Site, index: str, pattern: str) -> list[int]:
    if site.matrix not in ATTENTION_MATRICES:
        raise SiteError(
            f"{pattern!r} asks for heads of '{site}', which has none: "
            f"a head index goes with {', '.join(ATTENTION_MATRICES)} only."
        )
    n = host.n_heads(site.matrix)
    if index == "*":
        return list(range(n))
    if ":" in index:
        start, stop = (int(bound) if bound else None for bound in index.split(":"))
        chosen = list(range(n))[start:stop]
        if chosen:
            return chosen
    elif -n <= int(index) < n:
        return [int(index) % n]
    raise SiteError(f"{pattern!r} names no head: {site} has {n} heads, 0 to {n - 1}. Name one of these, or [*].")


def _expression(glob: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(_regex(glob, pattern))
    except re.error as error:
        raise SiteError(f"{pattern!r} has a class that cannot be read ({error}): write [QK] or [0-3].") from None


def _regex(glob: str, pattern: str) -> str:
    """The glob as a regular expression; alternatives nest."""
    parts, depth, i = [], 0, 0
    while i < len(glob):
        char = glob[i]
        if char == "*":
            parts.append(".*")
        elif char == "?":
            parts.append(".")
        elif char == "[":
            end = glob.find("]", i + 2)
            if end < 0:
                raise SiteError(
                    f"{pattern!r} has a '[' that is never closed: write classes as [QK], heads as a final [3]."
                )
            negated = glob[i + 1] in "!^"
            inside = "".join(c if c == "-" else re.escape(c) for c in glob[i + 1 + negated : end])
            parts.append(f"[{'^' * negated}{inside}]")
            i = end
        elif char == "{":
            parts.append("(?:")
            depth += 1
        elif char == "}" and depth:
            parts.append(")")
            depth -= 1
        elif char == "," and depth:
            parts.append("|")
        else:
            parts.append(re.escape(char))
        i += 1
    if depth:
        raise SiteError(f"{pattern!r} has a '{{' that is never closed: write alternatives as {{in,out}}.")
    return "".join(parts)


def _nothing(host: Host, pattern: str, joint: str, expression: re.Pattern[str]) -> SiteError:
    """Why nothing matched: a matrix that cannot be edited, no such layer, or a slip of the pen."""
    what = f"no matrix is named {pattern!r}" if pattern.strip() else "an empty pattern names no matrix"
    every = [Site(layer, matrix) for layer in range(host.n_layers) for matrix in MATRICES]
    meant = next((site for site in every if expression.fullmatch(str(site))), None)
    if meant is not None:
        return SiteError(f"{what}: {host.why_not(meant)}. List what can be edited with surgery.sites(model).")
    near = get_close_matches(joint, map(str, host.joint_sites()), n=3, cutoff=0.6)
    hint = f"Nearest: {', '.join(near)}. " if near else ""
    return SiteError(
        f"{what}: this model has {host.n_layers} layers, blocks.0 to blocks.{host.n_layers - 1}. "
        f"{hint}List all with surgery.sites(model)."
    )
