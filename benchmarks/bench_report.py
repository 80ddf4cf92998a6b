"""The figures of a benchmark as Markdown tables and a plot."""

import io
from typing import Any

from cfgdiff.export.markdown import table

from .calls import call_table, share
from .peers import PEER
from .scaling import USUAL, bound


def markdown(report: dict[str, Any]) -> str:
    """What a user gets beside diffusers' fastest loop; then every figure, with the command, the machine, and what was
    left out."""
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if value)
    operators = ", ".join(f"{row['operator']} {row['share']:.0%}" for row in report["operators"][:8])
    parts = [
        "\n".join(f"* {_lead(row)}" for row in report["lead"]),
        f"`{report['command']}`",
        "\n".join([f"{machine}; {report['threads']} threads.", "",
                   "Medians of rounds in which the cases take turns; in brackets the least and the largest.",
                   *(f"Left out: {reason}." for reason in report["skipped"]),
                   *(f"Matrix product, {kind}: {peak / 1e9:.0f} GFLOP/s." for kind, peak in report["peaks"].items())]),
        f"## The same pictures, {report['steps']} evaluations of ddim", _peers(report["peers"]),
        "## Against the paper's way", _paper(report["paper"]),
        "## From the shell",
        table(["call", "s", "ms, least .. largest", "peak MB"],
              [[row["call"], f"{row['s']:.2f}", row["spread"], f"{row['MB']:.0f}"] for row in report["shell"]]),
        "## One call of the network", call_table(report["engines"]),
        f"Where it goes, guided, B = 64: {operators}.",
        "## Besides the network",
        table(["pictures at a time", "share of the time", "least", "largest"],
              [[row["B"], *(f"{row[k]:.1%}" for k in ("outside", "least", "largest"))] for row in report["outside"]]),
        *_scaling(report["scaling"]),
    ]  # fmt: skip
    return "\n\n".join([f"# {report['model']}: latency", *parts]) + "\n"


def _peers(rows: list[dict[str, Any]]) -> str:
    return table(["pictures at a time", "loop", "pictures/s", "ms", "times diffusers' fastest"], [
        [row["B"], row["loop"], f"{row['pictures/s']:.2f}", f"{row['ms']:.0f} ({row['spread']})",
         _ratio(row["times diffusers' fastest"], row["ratios"])] for row in rows
    ])  # fmt: skip


def _scaling(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    best = max(row["of peak"] or 0.0 for row in rows if row["varied"] != "size")
    cells = [[row["varied"], row["value"], f"{row['ms']:.2f}", share(row),
              bound(row, best if row["varied"] != "size" else 0)] for row in rows]  # fmt: skip
    usual = ", ".join(f"{name} {value}" for name, value in USUAL.items())
    explained = f"Milliseconds a picture and evaluation, guided; {usual}, of which one is changed."
    return ["## Scaling", explained, table(["changed", "to", "ms", "of the matrix product", "bound by"], cells)]


def _paper(paper: dict[str, Any]) -> str:
    way, measured = paper["paper's way, s"], paper["measured steps"]
    return (
        f"{paper['n']} pictures take {paper['defaults, s']:.2f} s at the defaults, and {way:.0f} s in 1000 steps of "
        f"Algorithm 2 with two "
        f"rows a step on the same engine (extrapolated from {measured} steps): {paper['times']:.0f} times as long."
    )


def _lead(row: dict[str, Any]) -> str:
    """One line: which is faster, what a user gets or diffusers' fastest loop, and both figures."""
    count = f"{row['B']} picture{'s' if row['B'] > 1 else ''} at a time"
    ours = f"--engine auto takes {row['loop'].removeprefix('cfgdiff, ')} and draws {row['pictures/s']:.2f} pictures/s"
    if row["diffusers"] is None:
        return f"{count}: {ours}; no loop of diffusers was timed."
    ratio, ratios, faster, slower = row["times diffusers' fastest"], row["ratios"], "cfgdiff", "diffusers"
    if ratio < 1:
        ratio, ratios, faster, slower = 1 / ratio, [1 / each for each in ratios], slower, faster
    theirs = (
        f"diffusers' fastest loop here ({row['diffusers'].removeprefix(PEER)}) draws {row['diffusers, pictures/s']:.2f}"
    )
    untimed = "" if row["compiled loops timed"] else " Compiled loops of diffusers were not timed and may be faster."
    return f"{count}: {faster} is {_ratio(ratio, ratios)} times as fast as {slower}; {ours}, {theirs}.{untimed}"


def _ratio(ratio: float | None, ratios: list[float] | None) -> str:
    return "-" if ratio is None or ratios is None else f"{ratio:.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"


def plot(report: dict[str, Any]) -> bytes:
    """Time a picture by batch, for every engine, and the loops' pictures a second: a PNG. Raises ImportError without
    matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=130)
    left, right = figure.subplots(1, 2)
    for engine in dict.fromkeys(row["engine"] for row in report["engines"]):
        line = [row for row in report["engines"] if row["engine"] == engine and row["G"] == row["B"]]
        left.plot([row["B"] for row in line], [row["ms"] / row["B"] for row in line], marker="o", label=engine)
    left.set(xscale="log", xlabel="pictures at a time, guided", ylabel="ms a picture and call")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    if report["peers"]:
        largest = max(row["B"] for row in report["peers"])
        rows = [row for row in report["peers"] if row["B"] == largest][::-1]
        right.barh([row["loop"] for row in rows], [row["pictures/s"] for row in rows], color="#2563a8")
        right.set_xlabel(f"pictures/s, {largest} at a time, {report['steps']} evaluations")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
