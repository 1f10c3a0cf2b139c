"""Secure aggregation: one round's CPU time and bytes, Flower's SecAgg+ beside ours, then ours alone at its sizes.

Every round runs in a fresh process with all its roles, in CPU time of one thread; a client's figures are medians over
the clients that stay to the end, and all are medians of repeats. Rounds whose sum is not the exact one fail. Clients
that drop do so after sharing their keys. Upload and download are all of a client's messages.

1. Both from float32 values, the same neighbours and threshold, Flower with its defaults (22 bits a value, modulus
   2^32, and what it uploads: int64). "Signed" is the part that makes and verifies Ed25519 signatures; Flower has none,
   so its server can put its own keys in any client's place, and the bars are told with that part and without.
2. A million values of 16 bits: everybody is everybody's neighbour, and a ring for 20 % drops.
3. Cohorts of rising size with the neighbours that `choose_neighbours` gives for 10 % corrupt and 10 % dropping out.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bars import Bar
from processes import machine, save
from secagg_rounds import Figures, Round, play

from edge_runtime.secagg import choose_neighbours

PARTS = ("flower", "large", "cohorts")
CLIENT_TIMES, SERVER_TIMES, UPLOAD_MOST = 15, 100, 0.5
CLIENT_MOST_S, SERVER_MOST_S = 0.1, 0.9
AES = "aes-128-ctr"
BESIDE_FLOWER = (
    Round(100, 100_000, 20, 11, 10, bits=32, floats=True),
    Round(100, 100_000, 20, 11, 10, bits=32, prg=AES, floats=True),
    Round(100, 100_000, 20, 11, 10, bits=21, floats=True),
    Round(100, 100_000, 20, 11, 10, bits=16, floats=True),
)
LARGE = tuple(
    Round(100, 1_000_000, neighbours, threshold, drops, bits=16, prg=prg)
    for neighbours, threshold, drops in ((0, 51, 10), (44, 28, 20))
    for prg in (AES, "chacha20")
)
COHORTS = (10, 100, 1000)
HEAD = f"{'client ms':>10} {'signed':>7} {'server s':>9} {'signed':>7} {'upload kB':>10} {'download kB':>12}"


@dataclass(frozen=True, slots=True)
class Row:
    """One side's figures of one round."""

    side: str
    asked: Round
    found: Figures

    def __str__(self) -> str:
        found = self.found
        return (
            f"{1e3 * found.client_s:10.2f} {1e3 * found.client_signatures_s:7.2f} {found.server_s:9.3f} "
            f"{found.server_signatures_s:7.3f} {found.upload_bytes / 1e3:10.1f} {found.download_bytes / 1e3:12.1f}"
        )

    def as_json(self) -> dict[str, Any]:
        return {"side": self.side, **asdict(self.asked), **rounded(asdict(self.found))}


def rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {
        name: rounded(value) if isinstance(value, dict) else value if value > 1e3 else float(f"{value:.4g}")
        for name, value in figures.items()
    }


def main() -> None:
    options = parse(sys.argv[1:])
    print(f"Machine: {machine()}; one thread, CPU time, medians of {options.repeats} rounds in fresh processes")
    rows: list[Row] = []
    bars: list[Bar] = []
    if "flower" in options.only:
        rows += print_beside_flower(options.repeats, bars)
    if "large" in options.only:
        rows += print_large(options.repeats, bars)
    if "cohorts" in options.only:
        rows += print_cohorts(options.repeats)
    if bars:
        print("\nBars", *bars, sep="\n   ")
    if options.json:
        command = {"command": "hedgerow bench secagg", "flower": version("flwr"), "repeats": options.repeats}
        save(Path(options.json), command, [row.as_json() for row in rows], list(map(str, bars)))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="tables to print")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args(arguments)


def measured(side: str, asked: Round, repeats: int, label: str) -> Row:
    row = Row(side, asked, play(side, asked, repeats))
    print(f"   {label:48}{row}", flush=True)
    return row


# Table 1.


def print_beside_flower(repeats: int, bars: list[Bar]) -> list[Row]:
    print("\n1. 100 clients, 100,000 float32 values, 20 neighbours, threshold 11, 10 drop")
    print(f"   {'':48}{HEAD}")
    theirs = measured("flower", BESIDE_FLOWER[0], repeats, f"Flower {version('flwr')} SecAgg+, int64")
    ours = [measured("ours", asked, repeats, f"ours, {asked.bits} bit, {asked.prg}") for asked in BESIDE_FLOWER]
    print(f"   {'Flower / ours':24}{'client':>10}{'unsigned':>10}{'server':>10}{'unsigned':>10}{'upload':>10}")
    for row in ours:
        ratios = times_less(theirs.found, row.found)
        print(f"   {f'{row.asked.bits} bit, {row.asked.prg}':24}" + "".join(f"{ratio:9.1f}x" for ratio in ratios))
    bars += beside_flower_bars(theirs, ours)
    return [theirs, *ours]


def times_less(theirs: Figures, ours: Figures) -> tuple[float, ...]:
    """Flower's CPU and bytes over ours: client, client without signatures, server, server without them, upload."""
    return (
        theirs.client_s / ours.client_s,
        theirs.client_s / (ours.client_s - ours.client_signatures_s),
        theirs.server_s / ours.server_s,
        theirs.server_s / (ours.server_s - ours.server_signatures_s),
        theirs.upload_bytes / ours.upload_bytes,
    )


def beside_flower_bars(theirs: Row, ours: list[Row]) -> list[Bar]:
    bars = []
    for row in ours[:2]:
        label = f"{row.asked.bits} bit, {row.asked.prg}"
        client, client_unsigned, server, server_unsigned, _ = times_less(theirs.found, row.found)
        bars += [
            Bar(f"times less client CPU than Flower ({label})", client, CLIENT_TIMES),
            Bar(f"the same without our signatures ({label})", client_unsigned, CLIENT_TIMES),
            Bar(f"times less server CPU than Flower ({label})", server, SERVER_TIMES),
            Bar(f"the same without our signatures ({label})", server_unsigned, SERVER_TIMES),
        ]
    most = max(row.found.upload_bytes for row in ours) / theirs.found.upload_bytes
    return [*bars, Bar("upload over Flower's, the widest of ours", most, UPLOAD_MOST, at_most=True)]


# Table 2.


def print_large(repeats: int, bars: list[Bar]) -> list[Row]:
    print("\n2. 100 clients, 1,000,000 whole numbers of 16 bits")
    print(f"   {'':48}{HEAD}")
    rows = []
    for asked in LARGE:
        graph = f"{asked.neighbours} neighbours" if asked.neighbours else "complete"
        label = f"{graph}, threshold {asked.threshold}, {asked.drops} drop, {asked.prg}"
        rows.append(measured("ours", asked, repeats, label))
    print(f"   The first by what came in, ms. {told(rows[0].found, 'client')}.\n   {told(rows[0].found, 'server')}.")
    label = "complete graph, threshold 51, 10 drop"
    bars.append(Bar(f"client CPU-s ({label}, {AES})", rows[0].found.client_s, CLIENT_MOST_S, at_most=True))
    bars.append(Bar(f"server CPU-s ({label}, {AES})", rows[0].found.server_s, SERVER_MOST_S, at_most=True))
    return rows


def told(found: Figures, role: str) -> str:
    return f"A {role}: " + ", ".join(f"{step} {1e3 * seconds:.1f}" for step, seconds in found.steps[role].items())


# Table 3.


def print_cohorts(repeats: int) -> list[Row]:
    print("\n3. Cohorts of rising size, 100,000 whole numbers of 16 bits, 10 % drop, chacha20")
    print(f"   {'':48}{HEAD}")
    rows = []
    for clients in COHORTS:
        k, t = choose_neighbours(clients, 0.1, 0.1)
        asked = Round(clients, 100_000, 0 if k == clients - 1 else k, t, clients // 10, bits=16)
        # of a thousand clients one round has enough for a median
        rows.append(measured("ours", asked, repeats if clients < 1000 else 1, f"{clients} clients: k = {k}, t = {t}"))
    roster, ids = 136 * COHORTS[-1] / 1e3, 8 * COHORTS[-1] / 1e3
    print(f"   Of the last one's download: roster {roster:.0f} kB, lists of sharers and of survivors {ids:.0f} kB each")
    return rows


if __name__ == "__main__":
    main()
