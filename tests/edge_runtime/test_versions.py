"""Versions of a model: chains of deltas as bytes, and what a holder of one version makes of them."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import PeerError
from edge_runtime.updates import TensorLayout, make_codec
from edge_runtime.updates.versions import MAX_DELTAS, Chain, Delta, Versions, gather, model_id, replaced

ids = st.binary(min_size=8, max_size=8)
chains = st.builds(
    Chain, ids, st.lists(st.builds(Delta, ids, st.binary(max_size=20)), max_size=5).map(tuple)
)  # fmt: skip
LAYOUT = TensorLayout.of({"a": (2, 3), "b": (4,), "c": ()})


@given(chains)
def test_a_chain_is_read_as_it_was_written(chain):
    data = chain.pack()
    assert len(data) == chain.nbytes
    again = Chain.unpack(data)
    assert again.start == chain.start
    assert [(one.to, bytes(one.payload)) for one in again.deltas] == [(one.to, one.payload) for one in chain.deltas]


@given(st.binary(max_size=80))
def test_any_bytes_are_a_chain_or_the_peers_error(data):
    with contextlib.suppress(PeerError):
        assert Chain.unpack(data).pack() == data


@given(chains.filter(lambda chain: chain.deltas), st.data())
def test_a_chain_cut_short_is_refused_or_ends_with_a_whole_delta(chain, data):
    whole = chain.pack()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with contextlib.suppress(PeerError):
        assert Chain.unpack(cut).pack() == cut


def test_a_chain_of_too_many_deltas_is_refused():
    deltas = tuple(Delta(bytes(8), b"") for _ in range(MAX_DELTAS + 1))
    assert len(Chain.unpack(Chain(bytes(8), deltas[1:]).pack()).deltas) == MAX_DELTAS
    with pytest.raises(PeerError, match="longer than 256"):
        Chain.unpack(Chain(bytes(8), deltas).pack())


@given(chains, st.data())
def test_a_holder_of_any_version_in_the_chain_needs_what_comes_after_it(chain, data):
    versions = [chain.start, *(one.to for one in chain.deltas)]
    place = data.draw(st.integers(0, len(versions) - 1))
    rest = chain.after(versions[place])
    assert rest is not None
    assert chain.deltas[len(chain.deltas) - len(rest) :] == rest
    assert len(rest) <= len(chain.deltas) - place
    assert versions[len(versions) - 1 - len(rest)] == versions[place]
    assert chain.after(b"another") is None


def test_a_part_goes_out_and_in_again():
    part = LAYOUT.subset(["a", "c"])
    values = np.arange(LAYOUT.size, dtype=np.float32)
    taken = gather(values, LAYOUT, part)
    np.testing.assert_array_equal(taken, [0, 1, 2, 3, 4, 5, 10])
    again = replaced(values, LAYOUT, part, -taken)
    np.testing.assert_array_equal(again, [0, -1, -2, -3, -4, -5, 6, 7, 8, 9, -10])
    np.testing.assert_array_equal(values, np.arange(LAYOUT.size))


def test_ids_tell_models_apart_by_their_bits():
    zero = np.zeros(LAYOUT.size, np.float32)
    assert model_id(zero) == model_id(zero.copy())
    assert model_id(zero) != model_id(-zero)


def test_a_delta_to_values_that_no_model_has_is_the_peers_error():
    float32, float16 = make_codec("float32"), make_codec("float16")
    huge = float32.encode_vector(np.full(LAYOUT.size, 3e38, np.float32), LAYOUT)
    for full in (float32, float16):
        versions = Versions(LAYOUT, LAYOUT, full, float32)
        with pytest.raises(PeerError, match="cannot be: tensor a holds"):
            versions.advance(np.full(LAYOUT.size, 3e38, np.float32), huge)
