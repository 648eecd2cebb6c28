"""Pages: plots and images are inside, and readable without seeing."""

from PIL import Image

from lora_cot.pages import Dots, Line, dot_plot, image_uri, line_plot


def test_a_plot_is_a_vector_graphic_with_a_description():
    """SVG with the lines' last values as its label; lines without points are left out."""
    svg = line_plot("Loss", "step", "nats", [Line("all", [(1, 2.0), (2, 0.25)], "C0"), Line("EMPTY", [], "C1")])
    assert svg.startswith("<svg") and 'role="img"' in svg
    assert 'aria-label="Loss. all ends at 0.25."' in svg and "EMPTY" not in svg
    assert line_plot("Loss", "step", "nats", [Line("EMPTY", [], "C1")]) == ""


def test_a_plot_of_shares_says_what_it_shows():
    """Each row's value and interval are in its description; a row that a series lacks is left out, and no row is no plot."""
    series = [Dots("a", [(50.0, 40.0, 60.0), None], "C0"), Dots("b", [(0.0, 0.0, 3.0), (100.0, 97.0, 99.9999)], "C1")]
    svg = dot_plot("By group", "right, %", ["one", "two"], series)
    told = "By group, right, %. a, one: 50.0 (40.0 to 60.0); b, one: 0.0 (0.0 to 3.0); b, two: 100.0 (97.0 to 100.0)."
    assert svg.startswith("<svg") and f'aria-label="{told}"' in svg and ">two<" in svg
    assert dot_plot("By group", "right, %", [], series) == dot_plot("By group", "right, %", ["one"], []) == ""


def test_large_images_are_scaled_down():
    """A photograph becomes a thumbnail; its shape stays."""
    import base64
    import io

    uri = image_uri(Image.new("RGB", (2000, 1000)))
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (512, 256)
