"""Multi30K: sentences beside their translation and photograph, and what translations are worth."""

import builtins
import json

import pytest

from lora_cot.data import multi30k
from lora_cot.data.images import open_image
from lora_cot.data.rows import collect
from lora_cot.data.sources import rows_of
from lora_cot.errors import DataError, RunError
from lora_cot.evaluation.predictions import score
from lora_cot.evaluation.run import evaluate
from lora_cot.evaluation.translation import corpus_figures, meteor_stem, sentence_chrf
from lora_cot.formats import FORMATS
from lora_cot.recipe.sources import Multi30kSource
from tests import published

TRANSLATE = FORMATS["translate"]


def source_of(path, **keys):
    return Multi30kSource(source="multi30k", path=str(path), **({"split": "test_2016_flickr"} | keys))


def load(source, cot_format=TRANSLATE):
    return collect(rows_of(source, cot_format), source)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("language", "name", "last"), [("de", "German", "Ein roter Bus."), ("fr", "French", "Un bus rouge.")])
def test_a_line_becomes_a_sample(tmp_path, packed, language, name, last):
    """The instruction is T5's own; a photograph of MSCOCO is named before the `#`."""
    samples = load(source_of(published.multi30k(tmp_path, packed=packed), language=language))
    assert [sample.id for sample in samples] == [f"test_2016_flickr-{language}-{number}" for number in (1, 2, 3)]
    assert samples[2].last.question == f"translate English to {name}: A red bus."
    assert TRANSLATE.gold(samples[2].last) == {"TRANSLATION": last} and samples[2].last.answer == last
    images = [tmp_path / "images" / photograph for photograph in ("1.jpg", "COCO_val2014_2.jpg", "COCO_val2014_2.jpg")]
    assert [sample.images for sample in samples] == [(image,) for image in images]
    assert TRANSLATE.question(samples[0].last) == f"translate English to {name}: A dog runs."


@pytest.mark.parametrize(("split", "file"), [("val", "validation"), ("test_2016_flickr", "test"), ("train", "train")])
def test_a_table(tmp_path, split, file):
    """With the photograph in it."""
    row = {"en": "A dog.", "de": "Ein Hund.", "fr": "Un chien.", "image": {"bytes": published.png("blue"), "path": None}}
    published.parquet(tmp_path / "data" / f"{file}-00000-of-00001.parquet", [row])
    (sample,) = load(source_of(tmp_path, split=split, language="fr"))
    assert open_image(sample.images[0]).getpixel((0, 0)) == (0, 0, 255)
    assert (sample.id, sample.last.answer) == (f"{split}-fr-1", "Un chien.")


def test_files_of_different_lengths_are_refused(tmp_path):
    """All lines after a lost one would have another's translation."""
    published.multi30k(tmp_path, de=["Ein Hund läuft.", "Zwei Männer reden."])
    with pytest.raises(DataError, match="the files of test_2016_flickr differ in length: en 3, de 2, image_splits 3"):
        load(source_of(tmp_path))
    with pytest.raises(DataError, match=r"raw/val\.en · no such data file, packed or not · name the folder data/task1"):
        load(source_of(tmp_path, split="val"))
    (tmp_path / "raw" / "test_2016_flickr.en.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"test_2016_flickr\.en · cannot be read: .* · download it again"):
        load(source_of(tmp_path))


def test_bad_lines_are_named(tmp_path):
    """An empty sentence, and a photograph that is not there, are one row's fault; scoring needs no photograph."""
    published.multi30k(tmp_path, de=["Ein Hund läuft.", " ", "Ein roter Bus."])
    (tmp_path / "images" / "1.jpg").unlink()
    found = multi30k.questions(source_of(tmp_path), "evaluation")
    assert [sample.id for sample in found.samples] == ["test_2016_flickr-de-3"]
    assert [str(problem).split(" · ")[0] for problem in found.problems] == [f"test_2016_flickr line {n}" for n in (1, 2)]
    assert "1.jpg · no such image file" in str(found.problems[0]) and "de · empty" in str(found.problems[1])
    assert len(multi30k.questions(source_of(tmp_path), "scoring").samples) == 2


def test_figures_are_sacrebleus(tmp_path):
    """A perfect translation has 100 of each; the figures are of the corpus, and no mean of sentences."""
    import sacrebleu

    samples = load(source_of(published.multi30k(tmp_path)))
    golds = [sample.last.answer for sample in samples]
    perfect = corpus_figures([*zip(golds, samples, strict=True)])
    assert perfect["bleu"] == pytest.approx(100) and perfect["chrf"] == pytest.approx(100)
    assert 97 < perfect["meteor_stem"] <= 100  # even one unbroken match has METEOR's penalty for its one chunk
    texts = ["Ein Hund läuft.", "", "Ein roter Wagen."]
    found = corpus_figures([*zip(texts, samples, strict=True)])
    assert found["bleu"] == sacrebleu.corpus_bleu(texts, [golds]).score
    of_sentences = 100 * sum(map(sentence_chrf, golds, texts)) / 3
    assert found["chrf"] == sacrebleu.corpus_chrf(texts, [golds]).score != pytest.approx(of_sentences)


def test_meteor_knows_stems_and_no_synonyms():
    """Of the language itself."""
    assert meteor_stem("Die Hunde", "Der Hund", "de") == meteor_stem("Die Hund", "Der Hund", "de") == 0.25
    assert meteor_stem("chiens courent", "chat dort", "fr") == 0
    assert meteor_stem("Ein Auto", "", "de") == 0


def test_without_sacrebleu_it_is_named(monkeypatch):
    """In one sentence."""
    real = builtins.__import__

    def without(name, *args, **keys):
        if name == "sacrebleu":
            raise ImportError(name)
        return real(name, *args, **keys)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RunError, match=r"sacrebleu · it is not installed · pip install 'lora_cot\[translation\]'"):
        sentence_chrf("a", "a")


@pytest.mark.parametrize("base", ["t5_vision", "qwen2_vl"])
def test_a_model_is_measured(make_base, tmp_path, base):
    """By `eval`, whose figures `score` finds again in the file of answers."""
    data, output = published.multi30k(tmp_path / "task1"), tmp_path / "out.jsonl"
    search = {"stages": {"TRANSLATION": {"max_new_tokens": 6}}}
    report = evaluate(str(make_base(base)), "multi30k", search=search, output=output, data=str(data), format_name="translate")
    told = report.to_json()
    assert told["metric"] == "sentence chrF" and set(told["figures"]) == {"bleu", "chrf", "meteor_stem"}
    assert report.accuracy.total == report.groups["de"].total == 3
    scored = score("multi30k", output, str(data))
    assert scored.summary == report.summary
    assert any(name == "bleu" for name, _ in report.lines())
    perfect = [{"id": f"test_2016_flickr-de-{n}", "output": gold} for n, gold in enumerate(published.MULTI30K["de"], 1)]
    found = score("multi30k", published.json_lines(tmp_path / "p.jsonl", perfect), str(data)).to_json()
    assert found["figures"]["bleu"] == pytest.approx(100) and found["accuracy"]["correct"] == 3
    json.dumps(told)
