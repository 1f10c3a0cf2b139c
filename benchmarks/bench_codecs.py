"""What the update codecs cost and keep, on recorded real updates (`recordings.py`, its `reporting` split).

A rate is always that of real bytes: 8 x the length of the whole payload, header included, over the parameters. NMSE is
sum((x - decoded)^2) / sum(x^2). Every coder runs in a fresh process, one thread; speed is CPU time over the float32
input, medians of repeats, and that of `context` includes its search for the step size that gives the asked rate.

1. `context` against nncodec (ISO/IEC 15938-17, NNC) at equal bytes: ours as it comes, nncodec's by interpolation in log
   NMSE over log rate on the lower envelope of its curves, without dependent quantisation at lambda_scale 0, 1 and 2 and
   with it also at 4 and 6, one step size for all tensors, zero rows skipped: a quarter to a half below its defaults.
2. Speed of both side by side, nncodec in the setting that is best at that rate.
3. Every other codec, averaged over the recordings of a model. "uniform + entropy code" is no codec of ours: one
   dead-zone quantiser for all, and the code length that an ideal coder with one adaptive table would need.

With --accuracy instead: how far a federation gets on the bytes it sends (`codec_accuracy.py`).
nncodec is skipped where it is not built; `make rivals-nncodec` builds it, in some minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codec_jobs import Coded, Coder
from nncodec_sweep import Best, Curve, curves, lower_envelope, start_nncodec, why_missing
from plain_quantizer import plain_quantizer
from processes import machine, save

PARTS = ("nmse", "speed", "others")
RATES = (0.1, 0.25, 0.5, 1.0)
FLAGSHIP = "context"
NMSE_MOST, ENCODE_LEAST, DECODE_LEAST_MB_S = 1.0, 10.0, 100.0
PICTURED = ("cnn-r08-c0", "big-cnn-r03-c0", "mlp-r08-c0", "gru-r08-c0")
PICTURE_RATES = (0.05, 0.1, 0.175, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
OUR_REPEATS, THEIR_REPEATS = 9, 3
PLAIN = "uniform + entropy code (ideal length)"


@dataclass(frozen=True, slots=True)
class Job:
    """A codec of ours with its options, as a row of table 3."""

    label: str
    codec: str
    options: dict[str, Any]


OTHERS = (
    *(Job(f"EDEN {bits} bit, biased", "hadamard", {"bits": bits}) for bits in (1, 2, 3, 4)),
    *(Job(f"EDEN {bits} bit, unbiased", "hadamard", {"bits": bits, "unbiased": True}) for bits in (1, 2, 3, 4)),
    Job("top 1 %, fp16", "topk,float16", {"fraction": 0.01}),
    Job("top 5 %, fp16", "topk,float16", {"fraction": 0.05}),
    Job("STC 1 %", "stc", {"fraction": 0.01}),
    Job("uniform 4 bit", "uniform", {"bits": 4}),
    Job("uniform 8 bit", "uniform", {"bits": 8}),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One codec on one recording."""

    recording: str
    label: str
    coded: Coded
    rival: Best | None = None  # nncodec at the bytes that ours took

    @property
    def family(self) -> str:
        return self.recording.rsplit("-r", 1)[0]

    @property
    def over_rival(self) -> float:
        # Infinite where ours took so many bytes that nncodec's curves do not reach there.
        return self.coded.nmse / self.rival.nmse if self.rival and self.rival.nmse < math.inf else math.nan

    def as_json(self) -> dict[str, Any]:
        kept = {"recording": self.recording, "codec": self.label, **asdict(self.coded)}
        if self.rival:
            kept |= {"nncodec_nmse": self.rival.nmse, "nncodec_setting": str(self.rival.setting)}
        return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in kept.items()}


def main() -> None:
    options = parse(sys.argv[1:])
    print(f"Machine: {machine()}; one thread, CPU time")
    if options.accuracy:
        from codec_accuracy import print_accuracy

        print_accuracy(options.seeds, options.picture, options.json)
        return
    updates = recorded(options)
    missing = why_missing()
    if missing:
        print(f"   {missing}")
    swept = {} if missing else sweep(updates, options.sweeps)
    rows: list[Row] = []
    bars: list[str] = []
    if "nmse" in options.only:
        rows += print_nmse(updates, swept, bars)
    if "speed" in options.only:
        rows += print_speed(updates, swept, bars)
    if "others" in options.only:
        rows += print_others(updates, swept)
    if options.picture:
        draw(updates, swept, Path(options.picture))
    if bars:
        print("\nBars\n   " + "\n   ".join(bars))
    if options.json:
        save(Path(options.json), {"command": "hedgerow bench codecs"}, [row.as_json() for row in rows], bars)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", action="store_true", help="accuracy against uplink bytes, and nothing else")
    parser.add_argument("--seeds", type=int, default=3, help="of --accuracy")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="tables to print")
    parser.add_argument(
        "--recordings", nargs="+", default=[], metavar="TEXT", help="those whose name contains one of these: mlp, r08"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of the recordings (~/.cache/hedgerow/recordings)")
    parser.add_argument(
        "--sweeps", type=Path, metavar="FILE", help="nncodec's curves: read from there, or made and written there"
    )
    parser.add_argument("--picture", metavar="FILE", help="draw NMSE, or with --accuracy accuracy, against bytes")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args(arguments)


def recorded(options: argparse.Namespace) -> list[Path]:
    """The files of the recordings asked for."""
    from recordings import CACHE, FEDERATIONS, recordings

    folder = (options.cache or CACHE).expanduser()
    wanted = [
        one for one in FEDERATIONS if not options.recordings or any(could_be(text, one) for text in options.recordings)
    ]
    names = [one.name for one in recordings("reporting", folder, wanted)]
    chosen = [name for name in names if not options.recordings or any(text in name for text in options.recordings)]
    if not chosen:
        raise SystemExit(f"no recording's name contains any of {', '.join(options.recordings)}")
    return [folder / "reporting" / f"{name}.npz" for name in chosen]


def could_be(text: str, federation: Any) -> bool:
    """Whether a recording of this federation has the text in its name."""
    return any(text in name for name in federation.names())


def sweep(updates: Sequence[Path], kept: Path | None) -> dict[str, list[Curve]]:
    """Curves of nncodec by recording, shared out over the cores: sizes and errors do not depend on the load."""
    stored = json.loads(kept.read_text()) if kept and kept.is_file() else {}
    new = [path for path in updates if path.stem not in stored]
    if new:
        print(f"   nncodec codes {len(new)} recordings in all its settings; this takes minutes", flush=True)
    processes = min(len(os.sched_getaffinity(0)), len(new)) or 1

    def share(first: int) -> dict[str, Any]:
        with start_nncodec() as nncodec:
            return {path.stem: [one.as_json() for one in curves(nncodec, path)] for path in new[first::processes]}

    with ThreadPoolExecutor(processes) as pool:
        for part in pool.map(share, range(processes) if new else ()):
            stored |= part
    if kept and new:
        kept.write_text(json.dumps(stored))
    return {path.stem: [Curve.from_json(curve) for curve in stored[path.stem]] for path in updates}


def start_ours() -> Coder:
    return Coder(sys.executable, "codec_child.py")


def geomean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


# Table 1.


def print_nmse(updates: Sequence[Path], swept: dict[str, list[Curve]], bars: list[str]) -> list[Row]:
    print(f"\n1. NMSE of {FLAGSHIP} at real bits per parameter, and over nncodec's best at the same bytes")
    print(f"   {'recording':15}" + "".join(f"{f'at {rate:g}: bits':>15} {'NMSE':>7} {'ratio':>6}" for rate in RATES))
    rows: list[list[Row]] = []
    with start_ours() as ours:
        for path in updates:
            rows.append([flagship(ours, path, rate, swept) for rate in RATES])
            cells = (f"{row.coded.bits:15.4f} {row.coded.nmse:7.4f} {row.over_rival:6.3f}" for row in rows[-1])
            print(f"   {path.stem:15}" + "".join(cells), flush=True)
    every = [row for line in rows for row in line]
    if not swept:
        return every
    by_rate = [geomean(row.over_rival for row in column) for column in zip(*rows, strict=True)]
    print(f"   {'geomean':15}" + "".join(f"{mean:30.3f}" for mean in by_rate))
    for family in dict.fromkeys(row.family for row in every):
        print(f"   geomean {family:10} {geomean(row.over_rival for row in every if row.family == family):.3f}")
    bars.append(at_most("NMSE over nncodec's at equal bytes, geomean", geomean(by_rate), NMSE_MOST))
    return every


def flagship(ours: Coder, path: Path, rate: float, swept: dict[str, list[Curve]], repeats: int = 1) -> Row:
    coded = ours.run(path, repeats, codec=FLAGSHIP, options={"bits": rate})
    rival = lower_envelope(swept[path.stem], coded.bits) if swept else None
    return Row(path.stem, f"{FLAGSHIP} {rate:g}", coded, rival)


# Table 2.


def print_speed(updates: Sequence[Path], swept: dict[str, list[Curve]], bars: list[str]) -> list[Row]:
    print("\n2. MB/s of float32 input, one client of each round: ours, nncodec's best setting, times faster")
    print(
        f"   {'recording':15} {'at':>5} {'encode':>8} {'nncodec':>8} {'times':>6}  {'decode':>8} {'nncodec':>8} "
        f"{'times':>6}  setting"
    )
    first = [path for path in updates if path.stem.endswith("-c0")] or updates
    pairs: list[tuple[Row, Coded | None]] = []
    for path in first:
        with start_ours() as ours, start_nncodec() if swept else nullcontext() as nncodec:
            for rate in (None, *RATES):
                row = flagship(ours, path, rate or RATES[0], swept, OUR_REPEATS)
                rival = best_speed(nncodec, path, row.rival) if nncodec and row.rival else None
                if rate is None:
                    continue  # the first call of a process is slower
                pairs.append((row, rival))
                print(f"   {path.stem:15} {rate:5g} {speed_cells(row, rival)}", flush=True)
    rivals = [(row.coded, rival) for row, rival in pairs if rival]
    if rivals:
        over = [mine.encode_mb_s / rival.encode_mb_s for mine, rival in rivals]
        text = f"encode speed over nncodec's, geomean (least {min(over):.1f})"
        bars.append(at_least(text, geomean(over), ENCODE_LEAST))
    decode = [row.coded.decode_mb_s for row, _ in pairs]
    bars.append(at_least(f"decode MB/s, geomean (least {min(decode):.0f})", geomean(decode), DECODE_LEAST_MB_S))
    return [Row(row.recording, f"{row.label} (speed)", row.coded, row.rival) for row, _ in pairs] + [
        Row(row.recording, f"nncodec {row.label.split()[1]} (speed)", rival) for row, rival in pairs if rival
    ]


def best_speed(nncodec: Coder, path: Path, best: Best) -> Coded:
    return nncodec.run(path, THEIR_REPEATS, qp=best.qp, **asdict(best.setting))


def speed_cells(row: Row, rival: Coded | None) -> str:
    mine = row.coded
    if rival is None or row.rival is None:
        return f"{mine.encode_mb_s:8.1f} {'-':>8} {'-':>6}  {mine.decode_mb_s:8.1f}"
    encode, decode = mine.encode_mb_s / rival.encode_mb_s, mine.decode_mb_s / rival.decode_mb_s
    return (
        f"{mine.encode_mb_s:8.1f} {rival.encode_mb_s:8.1f} {encode:6.1f}  "
        f"{mine.decode_mb_s:8.1f} {rival.decode_mb_s:8.1f} {decode:6.1f}  {row.rival.setting}"
    )


def at_most(text: str, figure: float, limit: float) -> str:
    return f"{text} <= {limit:g}: {figure:.3f}, {'holds' if figure <= limit else 'MISSED'}"


def at_least(text: str, figure: float, limit: float) -> str:
    return f"{text} >= {limit:g}: {figure:.1f}, {'holds' if figure >= limit else 'MISSED'}"


# Table 3.


def print_others(updates: Sequence[Path], swept: dict[str, list[Curve]]) -> list[Row]:
    print("\n3. Every codec, geometric means over the recordings of a model: bits NMSE; median MB/s over all")
    rows = [row for path in updates for row in others(path)]
    families = list(dict.fromkeys(row.family for row in rows))
    print(f"   {'codec':38}" + "".join(f"{family:>17}" for family in families) + f"{'encode':>10}{'decode':>9}")
    for label in dict.fromkeys(row.label for row in rows):
        own = [row for row in rows if row.label == label]
        cells = (mean_cell([(row.coded.bits, row.coded.nmse) for row in own if row.family == one]) for one in families)
        encode, decode = (
            speed_cell(statistics.median(speeds))
            for speeds in ([row.coded.encode_mb_s for row in own], [row.coded.decode_mb_s for row in own])
        )
        print(f"   {label:38}" + "".join(f"{cell:>17}" for cell in cells) + f"{encode:>10}{decode:>9}", flush=True)
    for rate in RATES if swept else ():
        points = {path.stem: lower_envelope(swept[path.stem], rate) for path in updates}
        cells = (
            mean_cell([(rate, best.nmse) for name, best in points.items() if name.rsplit("-r", 1)[0] == one])
            for one in families
        )
        print(f"   {f'nncodec, best at {rate:g}':38}" + "".join(f"{cell:>17}" for cell in cells))
    return rows


def speed_cell(mb_s: float) -> str:
    return "-" if math.isnan(mb_s) else f"{mb_s:.1f}"


def mean_cell(points: Sequence[tuple[float, float]]) -> str:
    return f"{geomean(bits for bits, _ in points):.3f} {geomean(nmse for _, nmse in points):.4f}"


def others(path: Path) -> list[Row]:
    with start_ours() as ours:
        rows = [flagship(ours, path, rate, {}, repeats=3) for rate in RATES]
        rows += [Row(path.stem, job.label, ours.run(path, 3, codec=job.codec, options=job.options)) for job in OTHERS]
    return rows + [Row(path.stem, f"{PLAIN} {rate:g}", plain(path, rate)) for rate in RATES]


def plain(path: Path, rate: float) -> Coded:
    from recordings import flat_update

    bits, nmse = plain_quantizer(flat_update(path), rate)
    return Coded(bits, nmse, math.nan, math.nan)


def draw(updates: Sequence[Path], swept: dict[str, list[Curve]], out: Path) -> None:
    """The picture of NMSE against bits."""
    from codec_pictures import Line, draw_nmse

    panels: dict[str, list[Line]] = {}
    for path in [path for path in updates if path.stem in PICTURED] or updates[:4]:
        with start_ours() as ours:
            own = [flagship(ours, path, rate, {}).coded for rate in PICTURE_RATES]
            rows = [Row(path.stem, job.label, ours.run(path, codec=job.codec, options=job.options)) for job in OTHERS]
        lines = [Line(FLAGSHIP, [(one.bits, one.nmse) for one in own])]
        if swept:
            best = [lower_envelope(swept[path.stem], rate) for rate in PICTURE_RATES]
            lines.append(Line("nncodec, best settings", [(one.bits, one.nmse) for one in best if one.nmse < math.inf]))
        ideal = [plain(path, rate) for rate in PICTURE_RATES]
        lines.append(Line("uniform + entropy code", [(one.bits, one.nmse) for one in ideal]))
        for label, prefix in (("EDEN, biased", "EDEN"), ("top-k, fp16", "top"), ("STC", "STC"), ("uniform", "uniform")):
            points = [
                (row.coded.bits, row.coded.nmse)
                for row in rows
                if row.label.startswith(prefix) and not row.label.endswith("unbiased")
            ]
            lines.append(Line(label, points))
        panels[path.stem] = lines
    draw_nmse(panels, out)
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
