"""Pages: plots and images are inside, and readable without seeing."""

from PIL import Image

from lora_cot.pages import Line, image_uri, line_plot


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
