"""A Space: segment an image by words, on a CPU, with the model that ships with goca."""

import os
from functools import cache
from pathlib import Path
from typing import Any

from goca import GocaError, Segmenter, bundled

MODEL = os.environ.get("GOCA_MODEL", bundled.DEFAULT)


@cache
def segmenter() -> Segmenter:
    """Loaded at the first call, and kept."""
    return Segmenter.from_pretrained(MODEL)


def segment(content: bytes, names: list[str]) -> tuple[Any, list[tuple[Any, str]]]:
    """(the image, [(how opaque its colour is, what is there)]) of the content of an image file."""
    result = segmenter()(content, names)
    shown = [(name, presence.share) for name, presence in result.present.items() if presence.share]
    return result.image, [(0.6 * result.mask(name), f"{name} {share:.0%}") for name, share in shown]


def page() -> Any:
    """The page; needs gradio."""
    import gradio as gr

    def answer(image: str | None, names: list[str] | None) -> tuple[Any, list[tuple[Any, str]]]:
        if not image or not names:
            raise gr.Error("Choose an image and name what it may show", print_exception=False)
        try:
            return segment(Path(image).read_bytes(), names)
        except GocaError as error:
            raise gr.Error(str(error), print_exception=False) from None

    nouns = list(bundled.vocabulary()) if MODEL in bundled.names() else []
    example = Path(bundled.__file__).parent / "scenes" / "022.png"
    with gr.Blocks(title="goca") as blocks:
        gr.Markdown("# Segment by words\nA text-to-image model labels the pixels of an image; it was not trained to.")
        with gr.Row():
            with gr.Column(min_width=300):
                # As it was uploaded: goca decodes it, within its limits.
                image = gr.Image(type="filepath", image_mode=None, label="Image", sources=["upload", "clipboard"])
                names = gr.Dropdown(nouns, label="What it may show", multiselect=True, allow_custom_value=True)
                button = gr.Button("Segment", variant="primary")
                gr.Examples([[str(example), ["pizza", "sand", "grass", "dog"]]], [image, names])
            labelled = gr.AnnotatedImage(label="What it shows", min_width=300)
        button.click(answer, [image, names], labelled, api_name="segment", concurrency_limit=1)
    return blocks


if __name__ == "__main__":
    page().launch()
