"""Pages: everything escaped, everything inside, readable without seeing."""

from PIL import Image

from lora_cot.formats import FORMATS
from lora_cot.pages import Line, image_uri, line_plot, render
from lora_cot.search.trace import Comparison, Completion, TracedCandidate, TracedStage


def trace_page(text, margin=0.7):
    """A page of one stage with two candidates and a verdict."""
    candidates = (TracedCandidate(text, 3, 1.0, -0.5, True, True), TracedCandidate("b", 1, None, -1.0, False, False))
    stage = TracedStage("SUMMARY", candidates, (Comparison(0, 1, margin, True, 0),))
    completion = Completion("q", text, FORMATS["four_stage"].parse(text), trace=[stage], kept_tokens=3, generated_tokens=4)
    image = image_uri(Image.new("RGB", (8, 8)))
    return render("trace.html", title="T", question="<b>?", images=[image], completion=completion, strategy="stage_beam")


def test_texts_are_escaped():
    """What a model or a user wrote is shown, not run."""
    page = trace_page("<script>alert(1)</script> <SUMMARY> s </SUMMARY>")
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;?" in page


def test_a_trace_shows_winner_losers_and_verdicts():
    """Chosen and not closed candidates, the judge's odds and whether the order changed its mind."""
    page = trace_page("a")
    for shown in ("chosen", "not closed", "not in the contest", "+0.70", "the likelier text won"):
        assert shown in page


def test_a_verdict_without_odds_is_shown():
    """One that was generated, or could not be read."""
    assert '<td class="number">none</td>' in trace_page("a", None)


def test_pages_need_nothing_from_outside():
    """No link, script or style is loaded; images are inside."""
    page = trace_page("a")
    assert 'src="data:image/png' in page
    assert not [word for word in ("<link", "<script", 'src="http', "@import", "url(") if word in page]


def test_a_plot_is_a_vector_graphic_with_a_description():
    """SVG with the lines' last values as its label; lines without points are left out."""
    svg = line_plot("Loss", "step", "nats", [Line("all", [(1, 2.0), (2, 0.25)], "C0"), Line("EMPTY", [], "C1")])
    assert svg.startswith("<svg") and 'role="img"' in svg
    assert 'aria-label="Loss. all ends at 0.25."' in svg and "EMPTY" not in svg
    assert line_plot("Loss", "step", "nats", [Line("EMPTY", [], "C1")]) == ""


def test_large_images_are_scaled_down():
    """A photograph becomes a thumbnail; its shape stays."""
    import base64
    import io

    uri = image_uri(Image.new("RGB", (2000, 1000)))
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (512, 256)
