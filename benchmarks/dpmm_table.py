"""What `dpmm_ablation.py` measured as figures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from measuring import bounds, difference, p_value, points, spread  # beside this file

LEARNED, CAPTIONS = "learned latents", "describing: "


def report_of(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of each arm over its seeds, and how far the learned one is ahead on the same questions and seeds."""
    cells = {(one["arm"], title, one["seed"]): {**one, **kept} for one in found for title, kept in one["sets"].items()}
    arms: dict[str, dict[str, Any]] = {}
    for arm, title, _ in cells:
        runs = {seed: cell for (a, t, seed), cell in cells.items() if (a, t) == (arm, title)}
        first = CAPTIONS + LEARNED if arm.startswith(CAPTIONS) else LEARNED
        other = {
            seed: cell for (a, t, seed), cell in cells.items() if (a, t) == (first, "questions" if "steps" in title else title)
        }
        arms.setdefault(arm, {})[title] = _figures(runs) | {"learned_ahead": _ahead(other, runs)}
    return {"arms": arms, "runs": [dict(one) for one in found]}


def _figures(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    cells = list(runs.values())
    means = {key: spread([one[key] for one in cells]) for key in ("rouge_l", "captions", "seconds", "cpu_seconds")}
    return {"right": spread([np.mean([*one["right"].values()]).item() for one in cells]), **means, **cells[0]["parameters"]}


def _ahead(first: Mapping[int, Mapping[str, Any]], second: Mapping[int, Mapping[str, Any]]) -> dict[str, Any] | None:
    """By how much the first is ahead: Student's interval over the seeds of both, the bootstrap's over questions."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds or all(first[seed] is second[seed] for seed in seeds):
        return None
    rights = [
        np.array([[runs[seed]["right"][q] for q in first[seeds[0]]["right"]] for seed in seeds]) for runs in (first, second)
    ]
    apart = (rights[0].mean(1) - rights[1].mean(1)).tolist()
    return spread(apart) | {"p": p_value(apart), "over_questions": difference(rights[0].mean(0), rights[1].mean(0))}


def tables(report: Mapping[str, Any]) -> list[str]:
    """Markdown: a row for each arm, and one for each number of steps at inference."""
    head = [
        f"{report['questions']} test questions, {report['steps']} steps",
        "seeds",
        "right",
        "caption exact",
        "ROUGE-L of answers",
    ]
    head += ["learned ahead, over seeds", "p of that", "over questions", "parameters of vision, trained", "seconds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for arm, made in report["arms"].items():
        lines += [_row(arm if title in ("questions", "pictures") else f"{arm}, {title}", one) for title, one in made.items()]
    return [*lines, "", report["device"]]


def _row(name: str, one: Mapping[str, Any]) -> str:
    ahead = one["learned_ahead"]
    over = ahead and ahead["over_questions"]
    p = "·" if not ahead or ahead["p"] is None else f"{ahead['p']:.2g}"
    said = (points(ahead), p, bounds(over["interval"])) if ahead else ("·", p, "·")
    sizes = f"{one['vision']:,}, {one['trained']:,}"
    cells = (len(one["right"]["values"]), points(one["right"]), points(one["captions"]), points(one["rouge_l"]), *said, sizes)
    return f"| {name} | {' | '.join(map(str, cells))} | {one['seconds']['mean']:.0f} |"
