"""The address of one matrix: text to value and back, order, refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks import Site, SiteError

ATTENTION = ("W_Q", "W_K", "W_V", "W_O")
MLP = ("W_in", "W_gate", "W_out")
layers = st.integers(0, 200)
joint_sites = st.builds(Site, layers, st.sampled_from((*ATTENTION, *MLP)))
head_sites = st.builds(Site, layers, st.sampled_from(ATTENTION), st.integers(0, 128))


@pytest.mark.parametrize(
    ("site", "address"),
    [
        (Site(3, "W_out"), "blocks.3.mlp.W_out"),
        (Site(0, "W_gate"), "blocks.0.mlp.W_gate"),
        (Site(5, "W_Q"), "blocks.5.attn.W_Q"),
        (Site(12, "W_O", 3), "blocks.12.attn.W_O[3]"),
    ],
)
def test_an_address_is_written_in_transformer_lens_names(site: Site, address: str) -> None:
    assert str(site) == address
    assert Site.parse(address) == site


@given(st.one_of(joint_sites, head_sites))
def test_text_and_back_is_the_same_site(site: Site) -> None:
    assert Site.parse(str(site)) == site
    assert hash(Site.parse(str(site))) == hash(site)


@given(st.lists(st.one_of(joint_sites, head_sites)))
def test_sites_sort_in_the_order_of_the_forward_pass(sites: list[Site]) -> None:
    order = (*ATTENTION, *MLP)
    by_hand = sorted(sites, key=lambda s: (s.layer, order.index(s.matrix), -1 if s.head is None else s.head))
    assert sorted(sites) == by_hand


@given(head_sites)
def test_a_head_belongs_to_its_joint_matrix(site: Site) -> None:
    assert site.joint == Site(site.layer, site.matrix)
    assert site.joint.at_head(site.head) == site
    assert (site.part, site.prefix) == ("attn", f"blocks.{site.layer}")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "blocks.3.W_out",
            "'blocks.3.W_out' is not the address of one matrix: "
            "write blocks.LAYER.attn.W_Q, blocks.LAYER.attn.W_Q[HEAD] or blocks.LAYER.mlp.W_in.",
        ),
        ("blocks.*.mlp.W_out", "'blocks.*.mlp.W_out' is not the address of one matrix"),
        ("blocks.-1.mlp.W_out", "'blocks.-1.mlp.W_out' is not the address of one matrix"),
        ("blocks.1.attn.W_Q[-1]", "is not the address of one matrix"),
        ("", "'' is not the address of one matrix"),
        ("blocks.3.attn.W_out", "'blocks.3.attn.W_out' names no matrix: W_out lives in blocks.3.mlp."),
        ("blocks.3.mlp.W_up", "no matrix is called 'W_up': sites are W_Q, W_K, W_V, W_O, W_in, W_gate, W_out."),
        ("blocks.3.mlp.W_in[0]", "'W_in' has no heads: only W_Q, W_K, W_V, W_O take a head index."),
    ],
)
def test_what_is_no_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(SiteError) as error:
        Site.parse(address)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, "W_Q"), "blocks.-1 names no block: layers count from 0."),
        ((0, "W_Q", -1), "'W_Q[-1]' names no head: heads count from 0."),
    ],
)
def test_a_site_does_not_count_from_the_end(arguments: tuple, message: str) -> None:
    with pytest.raises(SiteError) as error:
        Site(*arguments)
    assert message in str(error.value)
