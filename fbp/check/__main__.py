"""The comparison suite from the shell: `python -m fbp.check [--json FILE] [--chapter NAME ...]`.

Every case of every chapter in float64, float32, bfloat16 and complex128 where they apply, against `jax.grad`: one
table, and exit status 1 on any disagreement.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

import jax

from fbp.check.case import Case
from fbp.check.suite import DTYPES, Outcome, applies, chapters, primitives_of, run_case
from fbp.rules import RULES


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/check", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write every outcome to FILE")
    parser.add_argument("--chapter", action="extend", nargs="+", metavar="NAME", help="only these chapters")
    options = parser.parse_args(args)
    selected = chapters()
    if unknown := set(options.chapter or ()) - set(selected):
        parser.error(f"there is no chapter {', '.join(sorted(unknown))}; the chapters are {', '.join(selected)}")
    selected = {name: cases for name, cases in selected.items() if name in (options.chapter or selected)}

    start, outcomes = time.time(), {name: [] for name in selected}
    total = sum(len(cases) for cases in selected.values())
    done = 0
    header = (
        f"{'chapter':<14}{'cases':>6}{'checks':>8}{'float64':>11}{'complex128':>12}{'float32':>11}{'bfloat16':>11}   "
    )
    print(f"{header}\n{'':<28}{'relative':>11}{'relative':>12}{'ULPs':>11}{'ULPs':>11}")
    for name, cases in selected.items():
        for case in cases:
            _progress(f"{done}/{total} {name}: {case.name}")
            outcomes[name] += [_run(case, dtype) for dtype in DTYPES if applies(case, dtype)]
            done += 1
        _progress("")
        print(_row(name, len(cases), outcomes[name]), flush=True)
        for outcome in outcomes[name]:
            if outcome.failures:
                print(f"  {outcome.case} in {outcome.dtype}: {'; '.join(outcome.failures)}")

    proved = set.union(*(primitives_of(case) for cases in selected.values() for case in cases)) & set(RULES)
    everything = [outcome for chapter in outcomes.values() for outcome in chapter]
    failures = [outcome for outcome in everything if outcome.failures]
    worst = {dtype: [o for o in everything if o.dtype == dtype] for dtype in DTYPES}
    relative = max((o.relative for o in worst["float64"]), default=0.0)
    ulps = max((o.ulps for o in worst["float32"]), default=0.0)
    verdict = f"{len(failures)} of {len(everything)} comparisons disagree" if failures else "all agree with jax.grad"
    print(
        f"{len(proved)} of {len(RULES)} rules in {total} cases, {sum(o.checks for o in everything)} checks: {verdict} (float64 "
        f"within {relative:.0e} relative, float32 within {ulps:.0f} ULPs of the largest element); jax {jax.__version__}, "
        f"{jax.devices()[0].platform}, {time.time() - start:.0f} s"
    )
    if options.json:
        rows = [{"chapter": name, **o._asdict()} for name, chapter in outcomes.items() for o in chapter]
        options.json.write_text(json.dumps({"jax": jax.__version__, "outcomes": rows}, indent=1) + "\n")
    return 1 if failures else 0


def _run(case: Case, dtype: str) -> Outcome:
    """An error is a failure of this case, and the others are run all the same."""
    try:
        return run_case(case, dtype)
    except Exception as error:
        what = str(error).split("\n")[0]
        return Outcome(case.name, dtype, float("inf"), float("inf"), 1, (f"{type(error).__name__}: {what}",))


def _row(name: str, cases: int, outcomes: list[Outcome]) -> str:
    cells = []
    for dtype, width in ("float64", 11), ("complex128", 12), ("float32", 11), ("bfloat16", 11):
        of_dtype = [o for o in outcomes if o.dtype == dtype]
        if not of_dtype:
            cells.append(f"{'-':>{width}}")
        elif dtype in ("float64", "complex128"):
            cells.append(f"{max(o.relative for o in of_dtype):>{width}.0e}")
        else:
            cells.append(f"{max(o.ulps for o in of_dtype):>{width}.1f}")
    wrong = sum(bool(o.failures) for o in outcomes)
    mark = f"   {wrong} disagree" if wrong else "   ok"
    return f"{name:<14}{cases:>6}{sum(o.checks for o in outcomes):>8}" + "".join(cells) + mark


def _progress(text: str) -> None:
    """One line on the terminal that the next replaces; nothing where there is no terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:79]}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)  # for shard_map
    sys.exit(main())
