#!/usr/bin/env python3
"""Reads the histogram files of a results folder with another program's reader.

Usage: hdr_read_back.py RESULTS

Checks latency.hlog and the .hgrm files against report.json: counts, percentiles and maxima.
Needs `pip install hdrhistogram`, and checks report.json against report.schema.json when
`jsonschema` is there too. Exits 1 when something does not agree.
"""

import json
import pathlib
import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

LOWEST_NS, HIGHEST_NS, DIGITS = 1, 3600 * 10**9, 3
PERCENTILES = {"p50_ns": 50.0, "p90_ns": 90.0, "p99_ns": 99.0, "p999_ns": 99.9}
# Both readers quantize to three significant digits, and may name either end of a bucket.
TOLERANCE = 2e-3

disagreements = []


def expect(what, found, expected, tolerance=0.0):
    if abs(found - expected) > tolerance * max(abs(expected), 1):
        disagreements.append(f"{what}: file has {found}, report.json has {expected}")


def read_log(path):
    """Sums of all intervals by tag, and how many there were."""
    sums, intervals = {}, {}
    reader = HistogramLogReader(str(path), HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS))
    while True:
        interval = reader.get_next_interval_histogram()
        if interval is None:
            return sums, intervals
        tag = interval.get_tag()
        if tag not in sums:
            sums[tag] = HdrHistogram(LOWEST_NS, HIGHEST_NS, DIGITS)
        sums[tag].add(interval)
        intervals[tag] = intervals.get(tag, 0) + 1


def check_series(what, histogram, latency, count=None):
    if count is not None:
        expect(f"{what} count", histogram.get_total_count(), count)
    for field, percentile in PERCENTILES.items():
        if field in latency:
            # With few values the reader and the writer may round the rank to neighbours.
            step = 100.0 / max(histogram.get_total_count(), 1)
            low, high = (
                histogram.get_value_at_percentile(min(max(percentile + d, 0.0), 100.0))
                for d in (-step, step)
            )
            value = min(max(latency[field], low), high)
            expect(f"{what} {field}", value, latency[field], TOLERANCE)
    expect(f"{what} max_ns", histogram.get_max_value(), latency["max_ns"], TOLERANCE)


def responses(run):
    """Latencies recorded: at saturation not every record need have one."""
    return sum(interval["records"] for interval in run["intervals"]) or run["records"]


def check_log(folder, report):
    sums, intervals = read_log(folder / "latency.hlog")
    for run in report["runs"]:
        name = run["name"]
        tag = None if name == report["primary_run"] else f"{name}.response"
        if tag not in sums:
            disagreements.append(f"latency.hlog has no series for {name} (tag {tag})")
            continue
        check_series(f"hlog {name}", sums[tag], run["response"], responses(run))
        if run["intervals"]:
            expect(f"hlog {name} intervals", intervals[tag], len(run["intervals"]))
        for stage in run["stages"]:
            tag = f"{name}.stage.{stage['name'].replace(' ', '-')}"
            if tag in sums:
                check_series(f"hlog {tag}", sums[tag], stage, stage["count"])
            else:
                disagreements.append(f"latency.hlog has no series {tag}")
        if f"{name}.service" in sums:
            check_series(f"hlog {name}.service", sums[f"{name}.service"], run["service"])
    if "probe" in sums:
        check_series("hlog probe", sums["probe"], report["probe"], report["probe"]["operations"])


def check_distribution(path, run):
    """A .hgrm file: microseconds, percentile, running count."""
    rows = []
    for line in path.read_text().splitlines()[1:]:
        if line.strip() and not line.startswith("#"):
            rows.append([float(field) for field in line.split()])
    expect(f"{path.name} count", int(rows[-1][2]), responses(run))
    expect(f"{path.name} max_ns", rows[-1][0] * 1000, run["response"]["max_ns"], TOLERANCE)
    if any(later[2] < row[2] or later[0] < row[0] for row, later in zip(rows, rows[1:])):
        disagreements.append(f"{path.name}: values or counts go backwards")


def check_schema(report):
    try:
        import jsonschema
    except ImportError:
        print("jsonschema is not installed: the schema is not checked", file=sys.stderr)
        return
    path = pathlib.Path(__file__).resolve().parent.parent / "report.schema.json"
    validator = jsonschema.Draft202012Validator(json.loads(path.read_text()))
    for error in validator.iter_errors(report):
        disagreements.append(f"report.json {error.json_path}: {error.message[:200]}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    report = json.loads((folder / "report.json").read_text())
    check_schema(report)
    check_log(folder, report)
    for run in report["runs"]:
        primary = run["name"] == report["primary_run"]
        name = "latency.hgrm" if primary else f"latency-{run['name']}.hgrm"
        check_distribution(folder / name, run)
    for disagreement in disagreements:
        print(disagreement, file=sys.stderr)
    print(f"{len(report['runs'])} runs, {len(disagreements)} disagreements")
    sys.exit(1 if disagreements else 0)


if __name__ == "__main__":
    main()
