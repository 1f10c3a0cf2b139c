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
_JSON = "CASE WHEN json_valid(data) THEN data ELSE '{}' END"

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
    "is:eligible": "json_extract(told, '$.eligible') = 1",
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
    """SQL and its values."""

    sql: str
    values: dict[str, Any]


def page_query(page: int, sort: str, descending: bool, words: str, online_s: float) -> Query:
    """Rows (node, seen_s, data) of that page, from 0. Those without the value sorted by come last."""
    where, values = _filter(words)
    key = SORTS[sort]
    way = "DESC" if descending else "ASC"
    # By the table's own key 100 rows are read, and not all of them parsed.
    order = f"node {way}" if key == "node" else f"{key} IS NULL, {key} {way}, node"
    sql = f"SELECT node, seen_s, told FROM ({_told()}) {where} ORDER BY {order} LIMIT :most OFFSET :start"  # noqa: S608 - from the tables above alone
    return Query(sql, values | {"online_s": online_s, "most": PAGE, "start": page * PAGE})


def count_query(words: str, online_s: float) -> Query:
    """How many devices pass the filter, in one row."""
    where, values = _filter(words)
    if not where:
        return Query("SELECT count(*) FROM devices", {})
    return Query(f"SELECT count(*) FROM ({_told()}) {where}", values | {"online_s": online_s})  # noqa: S608 - as above


def totals_query(online_s: float) -> Query:
    """One row (online, eligible) over all devices."""
    eligible = "coalesce(json_extract(told, '$.eligible') = 1, 0)"
    online = "seen_s >= :online_s"
    sql = f"SELECT total({online}), total({online} AND {eligible}) FROM ({_told()})"  # noqa: S608 - as above
    return Query(sql, {"online_s": online_s})


def versions_query() -> Query:
    """Rows (version that runs, number of devices), the commonest first."""
    running = "json_extract(told, '$.running')"
    sql = f"SELECT {running}, count(*) AS n FROM ({_told()}) WHERE {running} IS NOT NULL GROUP BY 1 ORDER BY n DESC LIMIT :most"  # noqa: E501, S608 - as above
    return Query(sql, {"most": _MOST_VERSIONS})


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


def versions(rows: Sequence[tuple[Any, int]]) -> dict[str, int]:
    """By version, "0" being none."""
    return {str(version)[:64]: count for version, count in rows}


def _told() -> str:
    return f"SELECT node, seen_s, {_JSON} AS told FROM devices"  # noqa: S608 - constants


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
