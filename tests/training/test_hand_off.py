"""From pass to pass of a split format: by id, by free generation, and over an interruption."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lora_cot.data.shapes import make_sample
from lora_cot.errors import DataError, RunError
from lora_cot.formats import FORMATS
from lora_cot.recipe import load_saved
from lora_cot.training import hand_off, run, samples
from lora_cot.training.hand_off import NOTHING, handed_on, write_texts
from lora_cot.types import Exchange, Sample

RATIONALE, ANSWER = FORMATS["two_stage"].passes
SEARCH = {"stages": {"RATIONALE": {"max_new_tokens": 6}, "ANSWER": {"max_new_tokens": 4}}}
OPTIONS = ("format.name=two_stage", "training.max_steps=2")


@pytest.fixture
def two_stage(make_recipe, make_base, tmp_path):
    """A recipe of two passes on a tiny T5."""
    return lambda *more: make_recipe(tmp_path, f"model.base={make_base('t5_vision')}", *OPTIONS, *more, search=SEARCH)


class StoppedError(Exception):
    """What ends a run in the middle."""


def stop_at(monkeypatch, module, name, when=lambda *_: True):
    """Let a function of a module end the run."""
    real = getattr(module, name)

    def call(*given, **more):
        if when(*given):
            raise StoppedError
        return real(*given, **more)

    monkeypatch.setattr(module, name, call)


def rows_of(path):
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(folder):
    """What a run left: the weights of both adapters, and what was written between them."""
    texts = {path.name: path.read_text() for path in (folder / "written" / "rationale").glob("*")}
    return texts, [load_file(folder / "adapter" / name / "adapter_model.safetensors") for name in ("rationale", "answer")]


STEPS = {"before the texts": "gold", "among the texts": "predicted", "in the answer pass": "gold"}


@pytest.mark.slow
@pytest.mark.parametrize(("step", "kind"), STEPS.items())
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(two_stage, tmp_path, monkeypatch, step, kind):
    """The same adapters, texts and log, and no pass trained twice."""
    recipe = two_stage(f"training.hand_on={kind}", "evaluation.batch_size=1", "data.train.0.limit=6", "data.eval.0.limit=3")
    whole = run.train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        if step == "before the texts":
            stop_at(patch, run, "_hand_on")
        elif step == "among the texts":
            seen = []
            stop_at(patch, hand_off, "answer_freely", lambda *_: seen.append(0) or len(seen) > 2)
        else:
            stop_at(patch, run, "_train_pass", lambda _r, _b, one, *_: one.name == "answer")
        with pytest.raises(StoppedError):
            run.train(recipe, tmp_path / "cut")
    if step == "among the texts":
        part = tmp_path / "cut/tiny/written/rationale/eval.rank0.jsonl"
        assert len(part.read_text().splitlines()) == 2
        with part.open("a") as file:
            file.write('{"id": "validation-0-2", "outp')  # cut off in the middle of a line
    trained, real = [], run._train_pass
    monkeypatch.setattr(run, "_train_pass", lambda *given: trained.append(given[2].name) or real(*given))
    again = run.train(recipe, tmp_path / "cut")
    assert trained == ["answer"]
    (texts, adapters), (own_texts, own) = weights(whole), weights(again)
    assert texts == own_texts and texts.keys() == ({"eval.jsonl"} | ({"train.jsonl"} if kind == "predicted" else set()))
    for name in (name for one in adapters for name in one):
        for mine, other in zip(own, adapters, strict=True):
            torch.testing.assert_close(mine[name], other[name], atol=0, rtol=0)
    logs = [[(entry["pass"], entry["step"]) for entry in rows_of(folder / "log.jsonl")] for folder in (whole, again)]
    assert logs[0] == logs[1]
    reports = [json.loads((f / "report.json").read_text())["passes"] for f in (whole, again)]
    assert [one["last"]["loss"] for one in reports[0]] == [one["last"]["loss"] for one in reports[1]]


def test_only_an_unfinished_run_of_the_same_recipe_is_gone_on_with(two_stage, tmp_path, monkeypatch):
    """Another recipe, or a run that is done, is refused."""
    with monkeypatch.context() as patch:
        stop_at(patch, run, "_hand_on")
        with pytest.raises(StoppedError):
            run.train(two_stage(), tmp_path)
    with pytest.raises(RunError, match="an unfinished run of another recipe"):
        run.train(two_stage("training.learning_rate=1e-3"), tmp_path)
    run.train(two_stage(), tmp_path)
    with pytest.raises(RunError, match="there is a finished run in this folder already"):
        run.train(two_stage(), tmp_path)


def test_a_run_goes_on_from_its_own_recipe_and_with_what_may_be_corrected(two_stage, tmp_path, monkeypatch, capsys):
    """Its written recipe names versions; what is asked afterwards is no part of the training; a cut line is no obstacle."""
    with monkeypatch.context() as patch:
        stop_at(patch, run, "_train_pass", lambda _r, _b, one, *_: one.name == "answer")
        with pytest.raises(StoppedError):
            run.train(two_stage(), tmp_path)
    with (tmp_path / "tiny" / "log.jsonl").open("a") as log:
        log.write('{"pass": "answer", "st')
    (tmp_path / "tiny" / "checkpoints" / "answer").mkdir(parents=True)
    own = load_saved(tmp_path / "tiny" / "recipe.yaml")
    assert own.versions
    changed = own.model_copy(update={"evaluation": own.evaluation.model_copy(update={"limit": 3})})
    folder = run.train(changed, tmp_path)
    assert "answer: begins again" in capsys.readouterr().err
    assert {entry["pass"] for entry in rows_of(folder / "log.jsonl")} == {"rationale", "answer"}


@pytest.mark.slow
def test_what_is_left_of_a_removed_run_is_not_trusted(two_stage, tmp_path):
    """A finished pass counts only beside its adapter, and what it wrote only beside it."""
    folder = run.train(two_stage(), tmp_path)
    written = folder / "written" / "rationale" / "eval.jsonl"
    texts = written.read_text()
    for name in ("adapter", "checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "report.json").unlink()
    written.write_text(texts.replace('"output": "', '"output": "STALE '))
    run.train(two_stage(), tmp_path)
    assert written.read_text() == texts


def test_what_a_later_pass_would_stop_at_is_told_before_the_first(two_stage, tmp_path, monkeypatch):
    """Here a prompt that is too long only with its rationale."""
    monkeypatch.setattr(run, "_train_pass", lambda *_: pytest.fail("trained"))
    with pytest.raises(DataError, match=r"are more than training\.max_length=75"):
        run.train(two_stage("training.max_length=75"), tmp_path)


def test_ids_that_two_sources_share_matter_only_where_they_are_handed_on(two_stage, tmp_path, monkeypatch):
    """Of training rows only with predicted rationales; and it is told before the first pass."""
    monkeypatch.setattr(run, "_run_pass", lambda *_: (_ for _ in ()).throw(StoppedError))
    real = samples.load_counted

    def twins(*given):
        found = real(*given)
        return replace(found, train=[*found.train, replace(found.train[1], id=found.train[0].id)])

    monkeypatch.setattr(samples, "load_counted", twins)
    with pytest.raises(StoppedError):
        run.train(two_stage(), tmp_path / "gold")
    with pytest.raises(DataError, match=r"data\.train · .*two samples have this id"):
        run.train(two_stage("training.hand_on=predicted"), tmp_path / "predicted")


def test_predicted_rationales_are_what_the_answer_pass_is_trained_on(two_stage, tmp_path, monkeypatch):
    """Each training prompt of the answer pass holds what was written for that sample's id; gold ones do otherwise."""
    for kind in ("gold", "predicted"):
        seen, real = {}, run._train_pass
        monkeypatch.setattr(
            run, "_train_pass", lambda *given, s=seen, r=real: s.update({given[2].name: given[3]}) or r(*given)
        )
        folder = run.train(two_stage(f"training.hand_on={kind}"), tmp_path / kind)
        monkeypatch.undo()
        asked = {row["id"]: row["output"] for row in rows_of(folder / "written/rationale/eval.jsonl")}
        for sample in seen["answer"].questions:
            assert ANSWER.question(sample.last).endswith(f"Solution: {asked[sample.id]}\nAnswer:")
        gold = {sample.id: RATIONALE.gold(sample.last)["RATIONALE"] for sample in seen["rationale"].train}
        if kind == "predicted":
            gold = {row["id"]: row["output"] for row in rows_of(folder / "written/rationale/train.jsonl")}
        assert len(seen["answer"].train) == 16
        for sample in seen["answer"].train:
            assert ANSWER.question(sample.last).endswith(f"Solution: {gold[sample.id]}\nAnswer:")


def test_texts_are_generated_freely_whatever_gold_there_is(two_stage, load_tiny, tmp_path):
    """A sample's gold rationale changes nothing of what is written for it."""
    samples = [make_sample(i, "test", 0) for i in range(3)]
    others = [replace(s, exchanges=(replace(s.last, stages={"RATIONALE": "another"}),)) for s in samples]
    recipe, backbone = two_stage(), load_tiny("t5_vision")
    first = write_texts(backbone, RATIONALE, samples, recipe, tmp_path / "a.jsonl")
    assert first == write_texts(backbone, RATIONALE, others, recipe, tmp_path / "b.jsonl")
    done = hand_off.answer_freely(backbone, RATIONALE, samples, recipe)
    assert first == {completion.sample_id: completion.text.strip() for completion in done}


def test_texts_go_by_id(two_stage, load_tiny, tmp_path):
    """In any order, and with samples that are there twice; two samples of one id are refused."""
    samples = [make_sample(i, "test", 0) for i in range(3)]
    texts = {sample.id: f"of {sample.id}" for sample in samples}
    for sample in handed_on([samples[2], samples[0], samples[2], samples[1]], RATIONALE, texts):
        assert sample.last.stages["RATIONALE"] == f"of {sample.id}"
    twins = [samples[0], Sample(samples[0].id, (Exchange("Another?"),))]
    with pytest.raises(DataError, match="two samples have this id"):
        write_texts(load_tiny("t5_vision"), RATIONALE, twins, two_stage(), tmp_path / "c.jsonl")


def test_a_pass_that_wrote_nothing_hands_on_nothing(two_stage, load_tiny, tmp_path, monkeypatch):
    """Not the gold text."""
    real = hand_off.answer_freely
    monkeypatch.setattr(hand_off, "answer_freely", lambda *given: [replace(done, text=" ") for done in real(*given)])
    sample = make_sample(0, "test", 0)
    assert write_texts(load_tiny("t5_vision"), RATIONALE, [sample], two_stage(), tmp_path / "d.jsonl") == {sample.id: NOTHING}
