"""README.md of an adapter or a merged model: what it is, what it is made of, what it is worth, how to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_cot.cards.facts import Facts, is_hub_id, left_out, shown, shown_recipe
from lora_cot.cards.licences import Licence, copy_licence, licence_of, linked, name_problem
from lora_cot.cards.markdown import fence, front_matter, table, text
from lora_cot.cards.snippets import command, python, serving
from lora_cot.cards.support import SUPPORT
from lora_cot.checkpoints.layout import RECIPE_FILE
from lora_cot.formats import CotFormat
from lora_cot.pages import Line, line_picture
from lora_cot.recipe import Recipe, load_saved

CARD = "README.md"
EXAMPLES = {
    "SUMMARY": "I will find the circles in the picture and count them.",
    "CAPTION": "A red circle is at the top, a blue square and a green circle at the bottom.",
    "REASONING": "The red one and the green one are circles. That makes 2.",
    "CONCLUSION": "2",
    "RATIONALE": "The red one and the green one are circles. That makes 2.",
    "ANSWER": "2",
}
"""Made up, by stage."""
UNPROVEN = "**Not verified:** this merge was not held against the adapter's model (`--no-verify`)."


def write_adapter_card(folder: Path, facts: Facts) -> None:
    """Leave an adapter's card, with what it is made from, in its folder; of a split format, in that of its adapters."""
    recipe = load_saved(folder / RECIPE_FILE)
    facts.write(folder)
    _write(folder, recipe, facts, facts.family, None)


def add_evaluation(folder: Path, evaluation: Mapping[str, Any]) -> None:
    """Write an adapter's card anew with the figures of a benchmark; nothing if it has none of ours."""
    facts = Facts.read(folder)
    if facts is not None:
        write_adapter_card(folder, facts.measured(evaluation))


def write_merged_card(folder: Path, recipe: Recipe, facts: Facts | None, reports: Sequence[Mapping[str, Any]]) -> None:
    """Leave a merged model's card in its folder.

    Args:
        folder: of the model; of a split format, that of its models.
        recipe: of the run.
        facts: those of the adapter; None if they were not kept.
        reports: what merge_report.json holds, of each pass.
    """
    _write(folder, recipe, facts, reports[0]["family"], reports)


def _write(
    folder: Path, recipe: Recipe, facts: Facts | None, family: str, reports: Sequence[Mapping[str, Any]] | None
) -> None:
    plots = _plots(folder, facts)
    base, revision = recipe.model.base, recipe.model.revision
    copy_licence(base, revision, folder)
    licence = linked(licence_of(base, revision), base, revision, folder)
    parts = [
        front_matter(_metadata(recipe, facts, family, licence, reports is not None)),
        f"# {text(recipe.name)}",
        UNPROVEN if any(not report["verified"] for report in reports or ()) else "",
        _what(recipe, reports is not None),
        _run(recipe, family, reports is not None),
        _base(recipe, licence),
        _data(recipe, facts),
        _training(recipe, facts, plots),
        _evaluation(facts, reports is not None),
        _merge(reports) if reports is not None else "",
    ]
    (folder / CARD).write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def _metadata(recipe: Recipe, facts: Facts | None, family: str, licence: Licence, merged: bool) -> dict[str, Any]:
    base = recipe.model.base
    library = "transformers" if SUPPORT[family].server else "lora_cot"
    return {
        "base_model": base if is_hub_id(base) else None,
        "base_model_relation": ("finetune" if merged else "adapter") if is_hub_id(base) else None,
        "library_name": library if merged else "peft",
        "pipeline_tag": "image-text-to-text",
        "license": licence.key,
        "license_name": licence.name if licence.key == "other" else None,
        "license_link": licence.link if licence.key == "other" else None,
        "datasets": facts.data.get("hub") if facts else None,
        "tags": ["lora_cot", "lora", "chain-of-thought", "visual-question-answering"],
    }


def _what(recipe: Recipe, merged: bool) -> str:
    cot_format = recipe.format.build()
    base = _linked(recipe.model.base)
    many = len(cot_format.passes) if cot_format.split else 1
    made = "A LoRA adapter" if many == 1 else f"{many} LoRA adapters, a folder each,"
    of = ("merged into" if many == 1 else "each merged into") if merged else "for"
    names = ", ".join(text(stage.name) for stage in cot_format.stages)
    stages = f"{len(cot_format.stages)} stages: {names}" if len(cot_format.stages) > 1 else f"one stage: {names}"
    how = " Each stage is written in a pass of its own, which is asked with what the passes before wrote." if many > 1 else ""
    intro = f"{made} {of} {base}. It answers questions about images in {stages}.{how} Made with lora\\_cot."
    return f"{intro}\n\nAn answer looks like this (made up):\n\n{fence('text', _example(cot_format))}"


def _example(cot_format: CotFormat) -> str:
    texts = {stage.name: EXAMPLES.get(stage.name, "…") for stage in cot_format.stages}
    if cot_format.split:
        return "\n".join(f"{stage.cue} {texts[stage.name]}" for stage in cot_format.stages)
    return "".join(piece for _, piece in cot_format.write(texts))


def _linked(base: str) -> str:
    return f"[{text(base)}](https://huggingface.co/{base})" if is_hub_id(base) else text(shown(base))


def _run(recipe: Recipe, family: str, merged: bool) -> str:
    support = SUPPORT[family]
    quantization = recipe.quantization
    note = ""
    if not merged and quantization is not None:
        bits = quantization.bnb_4bit_quant_type if quantization.load_in_4bit else "8-bit"
        note = f"\n\nIt was trained on the base in {text(bits)}. `lora-cot` loads it so; above, the base is as published."
    title = {True: "With transformers", False: "With transformers and PEFT"}[merged] if support.server else "In Python"
    blocks = [
        "## How to run it",
        f"### {title}",
        fence("python", python(recipe, family, merged)) + note,
        "### With lora-cot, stage by stage",
        fence("sh", command()),
        "### Behind a server" if support.server else "### One question after another",
        fence(*serving(recipe, family, merged)),
        f"What serves this family: {text(support.line())}",
    ]
    return "\n\n".join(blocks)


def _base(recipe: Recipe, licence: Licence) -> str:
    base = recipe.model.base
    at = f", revision {text(recipe.model.revision)}" if recipe.model.revision else ""
    if licence.key is None:
        return f"## Base and licence\n\nThe base is {_linked(base)}{at}. Its licence is unknown here: see the base's page."
    link = f" ({text(licence.link)})" if licence.link else ""
    lines = [f"The base is {_linked(base)}{at}. Its licence is {text(licence.words)}{link}, and holds for what is made of it."]
    if licence.is_llama3:
        lines.append(
            "**Built with Llama.** Whoever passes this model on shows these words, and hands on a copy of the licence."
        )
        lines.append(f"{text(_notice(licence))}")
        if problem := name_problem(licence, recipe.name):
            lines.append(f"**Before it is published:** {text(problem)}.")
    return "## Base and licence\n\n" + "\n\n".join(lines)


def _notice(licence: Licence) -> str:
    version = (licence.key or "").removeprefix("llama")
    return f"Llama {version} is licensed under the {licence.words}, Copyright © Meta Platforms, Inc. All Rights Reserved."


def _data(recipe: Recipe, facts: Facts | None) -> str:
    used = facts.data["used"] if facts else {}
    rows = []
    of = {"train": recipe.data.train, "eval": recipe.data.eval, "held_out": recipe.data.train}
    for part in ("train", "held_out", "eval") if used else ("train", "eval"):
        for number, source in enumerate(of[part] if part != "held_out" or part in used else []):
            counts = used.get(part, [])
            count = counts[number] if number < len(counts) else "not recorded"
            place = str(getattr(source, "path", "built in"))
            rows.append((part.replace("_", " "), source.source, shown(place), getattr(source, "split", ""), count))
    if not rows:
        return ""
    lines = ["## Data", table(("part", "source", "from", "split", "rows used"), rows)]
    if facts:
        lines.append(f"All of it, texts and images in order, has the SHA-256 `{facts.data['sha256']}`.")
        if dropped := sum(left_out(one) for one in facts.passes):
            lines.append(f"{dropped} samples were left out, because they were too long.")
    return "\n\n".join(lines)


def _training(recipe: Recipe, facts: Facts | None, plots: Sequence[str]) -> str:
    lines = ["## Training"]
    if facts:
        rows = [
            (one["name"], one["steps"], f"{one['seconds']:.0f}", f"{sum(part['trained'] for part in one['parts']):,}")
            for one in facts.passes
        ]
        lines.append(table(("pass", "steps", "seconds", "trained parameters"), rows))
        lines.append(f"On {text(facts.device)}; peak memory {facts.peak_memory_gb:.2f} GB.")
    lines += [f"![loss over steps]({plot})" for plot in plots]
    details = f"<details><summary>The recipe</summary>\n\n{fence('yaml', shown_recipe(recipe))}\n\n</details>"
    return "\n\n".join([*lines, details])


def _plots(folder: Path, facts: Facts | None) -> list[str]:
    """Write a picture of each pass's losses beside the card; their names."""
    names = []
    for one in facts.passes if facts else ():
        lines = [
            Line(label, [(entry["step"], entry[key]) for entry in one["history"] if key in entry], colour)
            for label, key, colour in (("trained on", "loss", "C0"), ("held out", "eval_loss", "C1"))
        ]
        name = "loss.png" if len(facts.passes if facts else ()) == 1 else f"loss-{one['name']}.png"
        if picture := line_picture(f"Loss: {one['name']}", "step", "nats a token", lines):
            (folder / name).write_bytes(picture)
            names.append(name)
    return names


def _evaluation(facts: Facts | None, merged: bool) -> str:
    if facts is None:
        return ""
    of = " Measured on the adapter, before it was merged." if merged else ""
    if facts.evaluation:
        found = facts.evaluation
        metric = found.get("metric") or "accuracy"
        rows: list[Sequence[Any]] = [(metric, _share(found["accuracy"]))]
        rows += [(name, _share(s)) for name, s in (found["groups"] or {}).items()]
        rows += [("valid format", _share(found["format_validity"])), ("unanswered", found["unanswered"])]
        if metric == "accuracy" and found.get("rouge_l") is not None:
            rows.append(("ROUGE-L of rationales", f"{100 * found['rouge_l']:.2f}"))
        told = f"{text(found['benchmark'])}, split {text(found['split'])}, strategy {text(found['strategy'])}.{of}"
        return f"## Evaluation\n\n{told}\n\n{table(('measure', 'value'), rows)}"
    rows = []
    for one in facts.passes:
        last: Mapping[str, Any] = one["evaluations"][-1] if one["evaluations"] else {}
        shares = ("eval_loss", "eval_accuracy", "eval_format_validity")
        rows += [
            (one["name"], key.removeprefix("eval_").replace("_", " "), f"{last[key]:.4g}") for key in shares if key in last
        ]
    if not rows:
        return "## Evaluation\n\nNot measured."
    told = "On held-out samples, at the end of training; accuracy and format validity of answers written freely." + of
    return f"## Evaluation\n\n{told}\n\n{table(('pass', 'measure', 'value'), rows)}"


def _share(share: Mapping[str, Any]) -> str:
    low, high = share["interval"]
    return f"{share['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {share['total']}"


def _merge(reports: Sequence[Mapping[str, Any]]) -> str:
    onto = {"full": "the base's own weights", "dequantized": "what the base's 4-bit weights stood for"}
    lines = ["## Merge"]
    rows: list[Sequence[Any]] = []
    for report in reports:
        name = Path(report["folder"]).name if len(reports) > 1 else "model"
        changed = f"{report['changed_values']:,} values in {report['changed_tensors']} tensors changed"
        lines.append(f"{text(name)}: merged into {onto[report['onto']]}, in {text(report['dtype'])}; {changed}.")
        measured = {
            "adapter and merged": report["adapter_vs_merged"],
            "base and merged": report["base_vs_merged"],
            "adapter as trained, on the quantised base, and merged": report["trained_vs_merged"],
        }
        rows += [(name, what, *_figures(found)) for what, found in measured.items() if found]
    if not rows:
        return "\n\n".join([*lines, "Nothing was measured."])
    first = reports[0]
    shown_on = probes_words(first["probes"], first["probes_from"], first["with_images"])
    lines.append(f"Held against each other on {shown_on}; KL in nats a token.")
    head = ("model", "compared", "KL", "same likeliest token", "same greedy answer", "largest difference of logits")
    return "\n\n".join([*lines, table(head, rows)])


def probes_words(probes: int, probes_from: str, with_images: int) -> str:
    """What a merge was measured on."""
    kind = "held-out samples" if probes_from == "held_out" else "samples that were trained on (none are held out)"
    return f"{probes} {kind}, {with_images} of them with images"


def _figures(found: Mapping[str, Any]) -> tuple[str, ...]:
    answers = "not asked" if found["questions"] is None else f"{found['answers_equal']} of {found['questions']}"
    return (f"{found['kl']:.2g}", f"{found['top1_agreement']:.2%}", answers, f"{found['max_logit_difference']:.2g}")
