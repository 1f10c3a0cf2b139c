"""The device table of a run directory, a page at a time: sorted, filtered and counted in SQL, for there may be 100,000.

What a device says of itself is bounded where it is received and again here, where an older or a damaged table is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.run_view import Data, mapping, number, text, whole

PAGE = 100
ONLINE_S = 90.0  # three of Flower's heartbeats
_MOST_VERSIONS = 20
_COUNTED = ("running", "eligible")  # run_store.py has an index of these
_FROM = "(SELECT node, seen_s, data AS told FROM devices)"

# By what a table can be sorted: values of `data` by their path, in SQLite's words.
SORTS: Mapping[str, str] = {
    "node": "node",
    "seen_s": "seen_s",
    **{name: f"json_extract(told, '$.{name}')" for name in ("eligible", "rounds", "dropped", "late", "declined")},
    **{name: f"json_extract(told, '$.{name}')" for name in ("running", "seconds")},
    **{
        name: f"json_extract(told, '$.report.{name}')"
        for name in ("name", "version", "memory_budget", "memory_available", "rss", "rss_peak", "temperature_c")
    },
}
# Words of a filter that mean more than the text they are.
_WORDS: Mapping[str, str] = {
    "is:online": "seen_s >= :online_s",
    "is:offline": "seen_s < :online_s",
    "is:eligible": "json_extract(told, '$.eligible') IS NOT 0",
    "is:ineligible": "json_extract(told, '$.eligible') = 0",
    "is:throttled": "json_extract(told, '$.report.throttled') = 1",
}
_SEARCHED = ("node", *(f"json_extract(told, '$.{path}')" for path in ("report.name", "report.version", "why_not")))
_REPORT: Mapping[str, type] = {
    **dict.fromkeys(("name", "version", "arch", "isa", "power", "why_not"), str),
    **dict.fromkeys(("memory_budget", "memory_available", "rss", "rss_peak"), int),
    **dict.fromkeys(("temperature_c", "retry_s"), float),
    **dict.fromkeys(("throttled", "under_voltage", "metered", "eligible"), bool),
}


@dataclass(frozen=True, slots=True)
class Query:
    """SQL and its values. It fails where a row's data is no JSON."""

    sql: str
    values: dict[str, Any]

    def guarded(self) -> Query:
        """The same over a damaged table, which takes several times as long: what is no JSON reads as empty."""
        whole_json = "CASE WHEN json_valid(data) THEN data ELSE '{}' END AS told"
        return Query(self.sql.replace("data AS told", whole_json), self.values)


def page_query(page: int, sort: str, words: str, online_s: float, *, descending: bool) -> Query:
    """Rows (node, seen_s, data) of that page, from 0. Those without the value sorted by come last."""
    where, values = _filter(words)
    direction = "DESC" if descending else "ASC"
    # Only values out of JSON can be missing; the table's own key is sorted already.
    order = f"{SORTS[sort]} {direction}" if sort in ("node", "seen_s") else f"{SORTS[sort]} {direction} NULLS LAST"
    sql = f"SELECT node, seen_s, told FROM {_FROM} {where} ORDER BY {order}, node LIMIT :most OFFSET :start"  # noqa: S608 - from the tables above alone
    return Query(sql, values | {"online_s": online_s, "most": PAGE, "start": page * PAGE})


def count_query(words: str, online_s: float) -> Query:
    """How many devices pass the filter, in one row."""
    where, values = _filter(words)
    return Query(f"SELECT count(*) FROM {_FROM} {where}", values | {"online_s": online_s})  # noqa: S608 - as above


def totals_query(online_s: float) -> Query:
    """For each version that devices run (NULL: not said) a row (version, devices, online, online and eligible)."""
    running, eligible = (f"CASE WHEN json_valid(told) THEN json_extract(told, '$.{name}') END" for name in _COUNTED)
    counts = f"count(*), total(seen_s >= :online_s), total(seen_s >= :online_s AND {eligible} IS NOT 0)"
    return Query(f"SELECT {running}, {counts} FROM {_FROM} GROUP BY 1", {"online_s": online_s})  # noqa: S608 - as above


def totals(rows: Sequence[tuple[Any, int, float, float]]) -> dict[str, Any]:
    """Counts of all devices. Of the versions the commonest; "0" is none."""
    running = sorted(((count, str(version)[:64]) for version, count, _, _ in rows if version is not None), reverse=True)
    return {
        "online": int(sum(row[2] for row in rows)),
        "eligible": int(sum(row[3] for row in rows)),
        "running_versions": {version: count for count, version in running[:_MOST_VERSIONS]},
    }


def device_row(node: Any, seen_s: Any, data: Data, *, protected: bool) -> dict[str, Any]:
    """What is shown of a device. Where clients are promised that nothing is told of one of them, no figure of its."""
    dropped_in = {text(phase, 64): count for phase, n in mapping(data.get("dropped_in")).items() if (count := whole(n))}
    return {
        "node": text(node, 64) if isinstance(node, str) else str(node)[:64],
        "seen_s": number(seen_s) or 0.0,
        "report": _report(mapping(data.get("report"))),
        "eligible": data.get("eligible") is not False,
        "why_not": text(data.get("why_not"), 200),
        "retry_s": number(data.get("retry_s")),
        **{name: whole(data.get(name)) or 0 for name in ("rounds", "dropped", "late", "declined")},
        "last_reason": text(data.get("last_reason"), 300),
        "dropped_in": dropped_in,
        "running": whole(data.get("running")),
        "seconds": None if protected else number(data.get("seconds")),
    }


def _filter(words: str) -> tuple[str, dict[str, Any]]:
    """A device passes if every word does: one of `_WORDS`, or a part of its name, version, id or reason."""
    parts: list[str] = []
    values: dict[str, Any] = {}
    for at, word in enumerate(words.split()[:8]):
        if known := _WORDS.get(word):
            parts.append(known)
            continue
        values[f"word{at}"] = word
        parts.append("(" + " OR ".join(f"instr(lower({where}), lower(:word{at})) > 0" for where in _SEARCHED) + ")")
    return ("WHERE " + " AND ".join(parts) if parts else ""), values


def _report(report: Data) -> dict[str, Any]:
    """The device's own report, field by field; what is missing or of the wrong type is unknown: None, or ""."""
    row: dict[str, Any] = {}
    for name, kind in _REPORT.items():
        value = report.get(name)
        if kind is str:
            row[name] = text(value, 200)
        elif kind is bool:
            row[name] = value if isinstance(value, bool) else None
        else:
            row[name] = whole(value) if kind is int else number(value)
    return row
