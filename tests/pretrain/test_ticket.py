"""Drawing tickets: exact counts, ties, widths; and the file that holds one."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from earlybert.core import cli
from earlybert.core.errors import UserError
from earlybert.core.files import content_hash
from earlybert.pretrain.ticket.drawing import (
    all_ticket,
    draw,
    keep_mask,
    mask_distance,
    random_ticket,
    random_ticket_like,
    round_widths,
)
from earlybert.pretrain.ticket.ticket import FullShape, Scope, Ticket, TicketRule, TicketSource, masks, prune_count

BASE = FullShape(num_layers=12, num_heads=12, head_size=64, intermediate_size=3072)
LARGE = FullShape(num_layers=24, num_heads=16, head_size=64, intermediate_size=4096)
SMALL = FullShape(num_layers=3, num_heads=4, head_size=8, intermediate_size=48)
SOURCE = TicketSource(kind="search", stage="search", step=40, seed=7, coefficients_sha256="ab" * 32)
Coefficients = np.ndarray


def near_one(layers: int, units: int, seed: int = 0) -> Coefficients:
    """As a search leaves them: close to 1, many equal in fp32."""
    return (1 + 1e-3 * np.random.default_rng(seed).standard_normal((layers, units))).astype(np.float32)


def small_ticket(**rule: Any) -> Ticket:
    rule = {"width_multiple": 8, **rule}
    return draw(SMALL, near_one(3, 4), near_one(3, 48), TicketRule(**rule), SOURCE)


def brute_force_keep(coefficients: Coefficients, pruned: int) -> np.ndarray:
    """Takes out the smallest (|c|, layer, index) one by one, sparing the last unit of a layer."""
    keep = np.ones(coefficients.shape, dtype=bool)
    order = sorted((abs(float(c)), layer, unit) for (layer, unit), c in np.ndenumerate(coefficients))
    for _, layer, unit in order:
        if (~keep).sum() < pruned and keep[layer].sum() > 1:
            keep[layer, unit] = False
    return keep


@pytest.mark.parametrize(
    ("layers", "units", "ratio", "scope", "pruned"),
    [
        (12, 12, 1 / 4, "layer", 12 * 3),
        (12, 12, 1 / 3, "layer", 12 * 4),
        (12, 12, 0.333333, "layer", 12 * 4),
        (12, 12, 5 / 12, "layer", 12 * 5),
        (12, 12, 1 / 2, "layer", 12 * 6),
        (24, 16, 0.375, "layer", 24 * 6),
        (12, 3072, 0.3, "global", 11_059),
        (12, 3072, 0.4, "global", 14_746),
        (12, 3072, 0.5, "global", 18_432),
        (24, 4096, 0.3, "global", 29_491),
        (24, 4096, 0.4, "global", 39_322),
        (12, 3072, 0.3, "layer", 12 * 922),
        (12, 3072, 0.4, "layer", 12 * 1229),
        (12, 3072, 0.5, "layer", 12 * 1536),
        (24, 4096, 0.4, "layer", 24 * 1638),
    ],
)
def test_counts_of_the_paper(layers: int, units: int, ratio: float, scope: Any, pruned: int) -> None:
    keep = keep_mask(near_one(layers, units), ratio, scope)
    assert int((~keep).sum()) == pruned
    if scope == "layer":
        assert (~keep).sum(axis=1).tolist() == [pruned // layers] * layers


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_is_pruned_is_the_brute_force_choice(scope: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    coefficients = rng.choice(np.array([-1.2, -0.5, 0.0, 0.5, 0.7, 1.2], dtype=np.float32), (4, 9))
    ratio = float(rng.uniform(0.1, 0.95))
    found = keep_mask(coefficients, ratio, scope)
    if scope == "global":
        expected = brute_force_keep(coefficients, prune_count(ratio, 36))
    else:
        expected = np.stack([brute_force_keep(row[None], prune_count(ratio, 9))[0] for row in coefficients])
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("ratio", "units", "count"), [(0.5, 3, 2), (0.5, 5, 3), (0.1, 4, 0), (0.125, 4, 1), (0, 9, 0)])
def test_counts_round_half_up(ratio: float, units: int, count: int) -> None:
    assert prune_count(ratio, units) == count


def test_ties_fall_by_layer_and_then_index() -> None:
    equal = np.ones((3, 4), dtype=np.float32)
    assert keep_mask(equal, 0.25, "layer").tolist() == [[False, True, True, True]] * 3
    # Six of twelve: the first layer gives three (one head stays), the second the rest.
    assert keep_mask(equal, 0.5, "global").tolist() == [
        [False, False, False, True],
        [False, False, False, True],
        [True] * 4,
    ]


def test_values_are_compared_in_fp32() -> None:
    """Two float64 values that fp32 cannot tell apart are a tie, and ties fall by index."""
    assert keep_mask(np.array([[1.0 + 1e-12, 1.0]]), 0.5, "layer").tolist() == [[False, True]]


def test_magnitude_counts_not_sign() -> None:
    coefficients = np.array([[-2.0, 0.5, -0.1, 1.0]], dtype=np.float32)
    assert keep_mask(coefficients, 0.5, "layer").tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_ratio_zero_prunes_nothing(scope: Any, multiple: int) -> None:
    assert keep_mask(np.zeros((3, 16), dtype=np.float32), 0.0, scope, multiple).all()


@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_every_layer_keeps_its_minimum(multiple: int) -> None:
    """One layer is so weak that a global cut would empty it."""
    coefficients = near_one(4, 48)
    coefficients[2] *= 1e-3
    keep = keep_mask(coefficients, 0.5, "global", multiple)
    assert keep[2].sum() == multiple
    strongest = set(np.argsort(np.abs(coefficients[2]))[-multiple:].tolist())
    assert set(np.flatnonzero(keep[2]).tolist()) == strongest
    if multiple == 1:
        # What the weak layer could not give, the others gave.
        assert int((~keep).sum()) == prune_count(0.5, 4 * 48)


def test_ratio_near_one_leaves_one_head_a_layer() -> None:
    for scope in ("layer", "global"):
        keep = keep_mask(near_one(3, 12), 0.99, scope)
        assert keep.sum(axis=1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", range(40))
def test_width_multiple_moves_each_cut_a_little(seed: int) -> None:
    rng = np.random.default_rng(seed)
    multiple = int(rng.choice([2, 8, 32, 49, 64]))
    layers, units = int(rng.integers(1, 9)), multiple * int(rng.integers(2, 12))
    # Layers of different strength, so that the exact cut gives unequal widths.
    coefficients = (rng.standard_normal((layers, units)) * rng.uniform(0.2, 2, (layers, 1))).astype(np.float32)
    ratio = float(rng.uniform(0, 0.95))
    scope: Scope = "global" if seed % 2 else "layer"
    keep = keep_mask(coefficients, ratio, scope, multiple)
    widths, exact = keep.sum(axis=1), keep_mask(coefficients, ratio, scope).sum(axis=1)
    assert not (widths % multiple).any() and widths.min() >= multiple and widths.max() <= units
    for row, mask, width in zip(np.abs(coefficients), keep, widths, strict=True):
        assert row[mask].min() >= np.sort(row)[-width]
    if exact.min() >= multiple:
        # No minimum interferes: cuts move by less than one multiple, the sum by at most half a one.
        assert np.abs(widths - exact).max() < multiple
        groups = [slice(None)] if scope == "global" else [slice(i, i + 1) for i in range(layers)]
        for group in groups:
            assert abs(int(widths[group].sum()) - int(exact[group].sum())) <= multiple / 2


def test_budget_of_the_large_model_with_a_width_multiple() -> None:
    keep = keep_mask(near_one(24, 4096), 0.3, "global", 64)
    assert abs(int((~keep).sum()) - 29_491) <= 32


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ([13, 16, 11], [16, 16, 8]),
        ([12, 12, 12, 12], [16, 16, 8, 8]),
        ([9, 9, 9, 9], [16, 8, 8, 8]),
        ([8, 24], [8, 24]),
    ],
)
def test_layers_nearest_to_the_next_multiple_go_up(widths: list[int], expected: list[int]) -> None:
    assert round_widths(np.array(widths), 8).tolist() == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(UserError, match="not finite"):
        keep_mask(np.array([[1.0, value]], dtype=np.float32), 0.5, "layer")


def test_coefficients_of_another_shape_are_refused() -> None:
    with pytest.raises(UserError, match=r"head coefficients have shape \[3, 5\]; this model needs \[3, 4\]"):
        draw(SMALL, near_one(3, 5), near_one(3, 48), TicketRule(width_multiple=8), SOURCE)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"head_ratio": 1.0}, "draw.head_ratio is 1"),
        ({"neuron_ratio": -0.1}, "draw.neuron_ratio is -0.1"),
        ({"head_ratio": float("nan")}, "draw.head_ratio is nan"),
        ({"width_multiple": 7}, "draw.width_multiple is 7.*48"),
        ({"width_multiple": 0}, "draw.width_multiple is 0"),
        ({"head_scope": "all"}, "draw.head_scope is 'all'"),
    ],
)
def test_impossible_rules_are_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_ticket(**rule)


def test_ticket_states_what_was_asked_and_what_was_done() -> None:
    ticket = small_ticket(head_ratio=0.25, neuron_ratio=0.3)
    assert ticket.requested == {"heads": 3, "neurons": 43}
    kept = sum(len(layer) for layer in ticket.neurons)
    assert ticket.realised == {"heads": 3, "neurons": 144 - kept} and abs(kept - 101) <= 4
    found = masks(ticket)
    assert [np.flatnonzero(row).tolist() for row in found["neurons"]] == [list(kept) for kept in ticket.neurons]
    assert [np.flatnonzero(row).tolist() for row in found["heads"]] == [list(kept) for kept in ticket.heads]


def test_ticket_that_cuts_nothing() -> None:
    ticket = all_ticket(SMALL)
    assert ticket.realised == ticket.requested == {"heads": 0, "neurons": 0}
    assert all(found.all() for found in masks(ticket).values())


def test_file_gives_the_same_ticket_back(tmp_path: Path) -> None:
    ticket = small_ticket()
    ticket.save(tmp_path / "ticket.json")
    loaded = Ticket.load(tmp_path / "ticket.json")
    assert loaded == ticket and loaded.sha256 == ticket.sha256
    # The folder of a run stands for its ticket.
    assert Ticket.load(tmp_path) == ticket
    content = json.loads((tmp_path / "ticket.json").read_text())
    assert content["format"] == "earlybert-ticket/1" and content["source"]["step"] == 40
    assert content["rule"]["minimum_heads"] == 1 and content["rule"]["minimum_neurons"] == 8
    assert {"model", "heads", "neurons", "requested", "realised", "sha256"} < content.keys()


def test_hash_is_that_of_the_canonical_content(tmp_path: Path) -> None:
    small_ticket().save(tmp_path / "ticket.json")
    content = json.loads((tmp_path / "ticket.json").read_text())
    stated = content.pop("sha256")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == stated


def test_changed_bytes_are_detected(tmp_path: Path) -> None:
    """Any digit changed inside the indices, the rule or the source is noticed."""
    path = tmp_path / "ticket.json"
    small_ticket().save(path)
    text = path.read_text()
    end = text.index('"sha256"')
    digits = [place for place, character in enumerate(text[:end]) if character.isdigit()]
    for place in np.random.default_rng(0).choice(digits, 30, replace=False):
        path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        with pytest.raises(UserError) as caught:
            Ticket.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def stored(tmp_path: Path, **changes: Any) -> Path:
    """A ticket file with other content and the hash that belongs to it; a change to None leaves a key out."""
    content = {key: value for key, value in (small_ticket().content() | changes).items() if value is not None}
    path = tmp_path / "ticket.json"
    path.write_text(json.dumps(content | {"sha256": content_hash(content)}))
    return path


HEADS = [[0, 1], [0, 1], [0, 1]]
NEURONS = [[0, 1]] * 3
MALFORMED: dict[str, dict[str, Any]] = {
    "no heads": {"heads": None},
    "no rule": {"rule": None},
    "no source": {"source": None},
    "no model": {"model": None},
    "heads a number": {"heads": 3},
    "heads of numbers": {"heads": [1, 2, 3]},
    "rule a list": {"rule": ["head_ratio"]},
    "rule with an unknown key": {"rule": {"ratio": 0.5}},
    "model with a missing size": {"model": {"num_layers": 3}},
    "layer missing": {"heads": HEADS[:2]},
    "layer empty": {"heads": [[0, 1], [], [0]]},
    "index too large": {"heads": [[0, 1], [0, 4], [0]]},
    "index negative": {"neurons": [[0, 1], [-1, 4], [0]]},
    "indices unsorted": {"neurons": [[1, 0], [0], [0]]},
    "index twice": {"neurons": [[1, 1], [0], [0]]},
    "index a string": {"heads": [["0"], [0], [0]]},
    "index a fraction": {"heads": [[0.5], [0], [0]]},
    "ratio a string": {"rule": {"head_ratio": "third"}},
    "source of an unknown kind": {"source": {"kind": "guess"}},
    "counts that do not fit the indices": {"realised": {"heads": 0, "neurons": 0}},
    "size a string": {"model": {"num_layers": 3, "num_heads": "4", "head_size": 8, "intermediate_size": 48}},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused(name: str, tmp_path: Path) -> None:
    path = stored(tmp_path, **MALFORMED[name])
    with pytest.raises(UserError) as caught:
        Ticket.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"format": "earlybert-ticket/2"}', '{"heads": [[0]]}'])
def test_other_files_are_not_tickets(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ticket.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        Ticket.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_absent_and_binary_files_are_not_tickets(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.json", "binary.json", "."):
        with pytest.raises(UserError):
            Ticket.load(tmp_path / name)


def test_ticket_for_another_model_is_named() -> None:
    with pytest.raises(UserError) as caught:
        small_ticket().require_model(BASE, "mine.json")
    assert str(caught.value) == "mine.json: is a ticket for a model with num_layers 3; here it must be 12"


def test_random_tickets_are_reproducible_and_follow_the_rule() -> None:
    rule = TicketRule(width_multiple=1)
    first, again, other = (random_ticket(BASE, rule, seed) for seed in (1, 1, 2))
    assert first == again and first.sha256 == again.sha256
    assert first.heads != other.heads and first.neurons != other.neurons
    assert first.realised == {"heads": 48, "neurons": 11_059}
    assert first.source == TicketSource(kind="random", seed=1)


def test_random_ticket_like_another_has_its_widths() -> None:
    ticket = small_ticket()
    likes = [random_ticket_like(ticket, seed) for seed in range(20)]
    for like in likes:
        for kind in ("heads", "neurons"):
            assert [len(kept) for kept in getattr(like, kind)] == [len(kept) for kept in getattr(ticket, kind)]
            assert all(list(kept) == sorted(set(kept)) for kept in getattr(like, kind))
    assert random_ticket_like(ticket, 3) == likes[3] and len({like.neurons for like in likes}) == 20
    # Every unit has a chance.
    assert set().union(*(like.heads[0] for like in likes)) == {0, 1, 2, 3}


def test_random_ticket_like_another_survives_a_file(tmp_path: Path) -> None:
    like = random_ticket_like(small_ticket(), 1)
    like.save(tmp_path / "like.json")
    assert Ticket.load(tmp_path / "like.json") == like


@pytest.mark.parametrize(("ratio", "null_line"), [(1 / 3, 0.444), (0.4, 0.48), (0.3, 0.42)])
def test_distance_of_independent_masks_is_on_the_null_line(ratio: float, null_line: float) -> None:
    first, second = (keep_mask(near_one(12, 3072, seed), ratio, "global") for seed in (1, 2))
    assert mask_distance(first, second) == pytest.approx(null_line, abs=0.01)


def test_mask_distance_counts_differences() -> None:
    first = np.array([[True, False, True], [True, True, False]])
    second = np.array([[True, True, True], [True, True, True]])
    assert mask_distance(first, second) == pytest.approx(2 / 6)
    assert mask_distance(first, first) == 0.0


def test_what_a_ticket_is_for_needs_no_labels(tmp_path: Path) -> None:
    """A recipe's corpus section, of which a run with --data makes nothing, may lack the labels of its losses."""
    tickets = []
    for losses in ("[]", "[masked, next_sentence]"):
        given = ["--losses", losses, "--corpus.objective", "full-sentences", "--out", str(tmp_path / "ticket.json")]
        cli.main(["ticket", "random", "--config", "quickstart", "--seed", "3", *given])
        tickets.append(Ticket.load(tmp_path / "ticket.json"))
    shape = FullShape(num_layers=2, num_heads=4, head_size=32, intermediate_size=512)
    assert tickets[0] == tickets[1] and tickets[0].model == shape
