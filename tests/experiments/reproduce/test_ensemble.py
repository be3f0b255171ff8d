"""Many networks at once are what each of them would be alone, trained by autograd and torch.optim.SGD."""

import pytest
import torch
from torch import nn

import implicit_bregman as ib
from implicit_bregman.experiments.learning.training import epoch_batches
from implicit_bregman.experiments.reproduce.ensemble import INITS, Ensemble, Member, make_network
from implicit_bregman.experiments.reproduce.spirals import Spirals
from implicit_bregman.nn.feedforward import KINDS

MEMBERS = tuple(
    Member(kind, seed, rate, init)
    for kind, rate in (("bregman", 0.2), ("standard", 0.1), ("euclidean", 0.3))
    for init in INITS
    for seed in (0, 5)
)
EPOCHS, BATCH = 3, 10


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """64 points: the last batch of an epoch is smaller."""
    return Spirals(samples=64).points()


def alone(member: Member, depth: int, geometry: str, x: torch.Tensor, labels: torch.Tensor) -> nn.Sequential:
    network = make_network(member, 2, depth, 2, ib.geometry(geometry))
    optimizer = torch.optim.SGD(network.parameters(), lr=member.rate)
    batches = epoch_batches(len(x), BATCH, member.seed)
    for _ in range(EPOCHS * 7):
        index = next(batches)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[index]), labels[index]).backward()
        optimizer.step()
    return network


@pytest.mark.parametrize(("geometry", "depth"), [("arctan", 3), ("tanh", 5), ("scaled_tanh", 1)])
def test_batched_training_is_training_alone(geometry: str, depth: int, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, labels = data[0] / 1.6, data[1]
    ensemble = Ensemble(MEMBERS, 2, depth, 2, ib.geometry(geometry))
    ensemble.train(x, labels, EPOCHS, BATCH)
    for index, member in enumerate(MEMBERS):
        network = alone(member, depth, geometry, x, labels)
        start = make_network(member, 2, depth, 2, ib.geometry(geometry))
        for trained, expected, initial in zip(
            ensemble.network(index).parameters(), network.parameters(), start.parameters(), strict=True
        ):
            torch.testing.assert_close(trained, expected, atol=2e-6, rtol=1e-5)
            assert not torch.equal(expected, initial)
        torch.testing.assert_close(ensemble.scores(x)[index], network(x), atol=1e-5, rtol=1e-5)
        for batched, single in zip(ensemble.layer_outputs(x), network[0].layer_outputs(x), strict=True):
            torch.testing.assert_close(batched[index], single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_alone_is_as_among_others(kind: str, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Without members of a kind its terms are not computed at all."""
    chosen = [index for index, member in enumerate(MEMBERS) if member.kind == kind]
    some = Ensemble([MEMBERS[index] for index in chosen], 2, 3, 2, ib.geometry("arctan"))
    everything = Ensemble(MEMBERS, 2, 3, 2, ib.geometry("arctan"))
    for ensemble in (some, everything):
        ensemble.train(*data, 1, BATCH)
    torch.testing.assert_close(torch.tensor(some.parameters()), torch.tensor(everything.parameters())[chosen])


def test_training_in_stages_is_training_at_once(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    geometry = ib.geometry("arctan")
    once, first = (Ensemble(MEMBERS, 2, 3, 2, geometry) for _ in range(2))
    once.train(*data, 3, BATCH)
    first.train(*data, 1, BATCH)
    second = Ensemble(MEMBERS, 2, 3, 2, geometry, start=first.parameters())
    second.train(*data, 2, BATCH, done=1)
    assert second.parameters() == once.parameters()


def test_deterministic_standard_and_euclidean_networks_are_one_iteration(
    data: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """W = I against 0 + I: the same function and the same gradient, so the same training but for rounding."""
    members = [Member(kind, 0, 0.1, "deterministic") for kind in ("standard", "euclidean")]
    ensemble = Ensemble(members, 2, 3, 2, ib.geometry("arctan"))
    ensemble.train(*data, 3, BATCH)
    standard, euclidean = ensemble.scores(data[0])
    torch.testing.assert_close(standard, euclidean, atol=1e-5, rtol=1e-5)


def test_bregman_layers_without_weights_are_the_identity(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    ensemble = Ensemble([Member("bregman", 0, 0.1, "deterministic")], 2, 3, 2, ib.geometry("arctan"))
    for output in ensemble.layer_outputs(data[0]):
        torch.testing.assert_close(output[0], data[0])


def test_the_epochs_are_reported_and_the_global_seed_is_left_alone(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    seen: list[int] = []
    before = torch.random.get_rng_state()
    ensemble = Ensemble(MEMBERS[:1], 2, 1, 2, ib.geometry("arctan"))
    ensemble.train(*data, 2, BATCH, seen.append)
    assert seen == [0, 1, 2]
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"kind": "nope"}, "standard.*nope"),
        ({"init": "nope"}, "deterministic.*nope"),
        ({"rate": 0.0}, "rate must be positive"),
    ],
)
def test_bad_members_are_refused(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Member(**{"kind": "bregman", "seed": 0, "rate": 0.1, **arguments})


def test_bad_ensembles_are_refused(data: tuple[torch.Tensor, torch.Tensor]) -> None:
    geometry = ib.geometry("arctan")
    with pytest.raises(ValueError, match="at least one network"):
        Ensemble([], 2, 3, 2, geometry)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        Ensemble(MEMBERS, 2, 0, 2, geometry)
    with pytest.raises(ValueError, match="24 numbers for each of 1"):
        Ensemble(MEMBERS[:1], 2, 3, 2, geometry, start=[[0.0] * 5])
    with pytest.raises(ValueError, match="x must lie inside"):
        Ensemble(MEMBERS[:1], 2, 3, 2, geometry).train(2 * data[0], data[1], 1, BATCH)


def test_the_spirals() -> None:
    x, labels = Spirals(samples=100, noise=0.0).points()
    assert x.shape == (100, 2)
    assert labels.tolist() == [0, 1] * 50
    assert float(x.abs().max()) == pytest.approx(1.5)
    assert torch.equal(x, Spirals(samples=100, noise=0.0).points()[0])
    assert not torch.equal(x, Spirals(samples=100, noise=0.0, seed=1).points()[0])
    for arguments in ({"samples": 1}, {"turns": 0.0}, {"noise": -1.0}, {"reach": 1.6}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            Spirals(**arguments)
