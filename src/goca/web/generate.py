"""The tab Generate: an image of a prompt, with guidance and without, and what its words attended to."""

from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import gradio as gr
from PIL import Image

from goca import generation
from goca.diffusion.model_facts import pipeline_folder, read_facts
from goca.errors import GocaError
from goca.guidance import ENERGY, UNGUIDED
from goca.segmenter import Segmenter
from goca.text.nouns import unknown_words
from goca.web.controls import Runs, number, whole
from goca.web.legend import LEAST_SIDE
from goca.web.messages import alert, note, progress

MAX_STEPS, MAX_SCALE, MAX_PROMPT = 100, 50, 1000
GUIDANCE = {"goca": "goca: by regions of the prompt's words", ENERGY: "energy: pixel by pixel", UNGUIDED: "none"}
SHOWN = {"interactive": False, "format": "png", "visible": False, "buttons": ["fullscreen", "download"]}
"""Of images that are there later; gradio's own list has a button that uploads them."""
CONTROLS = {
    "prompt": "Prompt",
    "guide": "Guidance",
    "scale": "Guidance scale",
    "steps": "Steps",
    "seed": "Seed",
}
"""{hint of a GocaError: label of the control here}."""


def build(segmenter: Segmenter) -> None:
    """Add the tab's components and events to the page that is being built."""
    nouns = segmenter.backbone.settings.nouns
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            prompt = gr.Textbox(
                label="Prompt",
                placeholder="cat, grass, sky",
                lines=2,
                max_length=MAX_PROMPT,
                info="This model knows " + ", ".join(nouns) + "." if nouns else None,
                elem_id="generate-prompt",
            )
            seed = gr.Textbox("0", label="Seed", info="Another number makes another image.")
            guidance = gr.Radio(
                [(label, name) for name, label in GUIDANCE.items()],
                value="goca",
                label="Guidance",
                info="With guidance, the image is also made without it.",
            )
            with gr.Accordion("More", open=False):
                steps = gr.Textbox(label="Steps", placeholder="the model's", info=f"1 to {MAX_STEPS}.")
                scale = gr.Textbox(
                    label="Guidance scale", placeholder="the model's", info=f"1, for none, to {MAX_SCALE}."
                )
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="generate-run")
                stop = gr.Button("Stop", elem_id="generate-stop")
        with gr.Column(scale=3, min_width=320):
            message = gr.HTML(note("Say what to paint, and press Generate."), elem_id="generate-message")
            with gr.Row():
                plain = gr.Image(label="Without guidance", min_width=260, **SHOWN)
                guided = gr.Image(label="With guidance", min_width=260, **SHOWN)
            masks = gr.Image(label="Masks of its words", **SHOWN)
            maps = gr.Gallery(
                label="Heat maps of its words", columns=3, height="auto", elem_classes="goca-maps", **SHOWN
            )

    runs = Runs(message, CONTROLS)
    runs.add(start, stop, partial(run, segmenter), [prompt, seed, guidance, steps, scale], [plain, guided, masks, maps])


def run(
    segmenter: Segmenter, prompt: Any, seed: Any, guidance: Any, steps: Any, scale: Any
) -> Generator[Sequence[Any], None, None]:
    """Generate; yields how far it is after each step, and in the end what all components show.

    Raises:
        GocaError: for a prompt, guidance or number that is not valid, or that the model refuses.
    """
    prompt, guidance = str(prompt or ""), str(guidance)
    if len(prompt) > MAX_PROMPT:
        raise GocaError(f"the prompt has {len(prompt)} letters: shorten it to {MAX_PROMPT}", "prompt")
    options = generation.GenerationOptions(
        prompt=prompt,
        steps=whole(steps, "number of steps", "steps", 1, MAX_STEPS),
        scale=number(scale, "guidance scale", "scale", 1, MAX_SCALE),
    )
    chosen = whole(seed, "seed", "seed", 0, 2**32 - 1) or 0
    is_guided = guidance != UNGUIDED
    events = generation.generate(
        segmenter.backbone.pipeline, options, [chosen], explain=True, guidance=guidance, compare=is_guided
    )
    done = 0
    with closing(events):
        for event in events:
            if isinstance(event, generation.Generated):
                yield _shown(event, _unknown(segmenter, prompt))
            else:
                done += 1
                yield [progress(done, event.steps * (2 if is_guided else 1), "step")]


def _shown(generated: generation.Generated, remark: str) -> tuple[Any, ...]:
    guided = generated.guided
    plain = generated.image if guided is None else guided.plain
    if guided is not None:
        remark += f" Guided as strongly as plain guidance at scale {guided.effective_scale:.1f}."
    images = (
        gr.Image(_enlarged(plain), visible=True),
        gr.Image(None if guided is None else _enlarged(generated.image), visible=guided is not None),
    )
    try:
        explained = generation.explain(generated)
    except GocaError as error:
        return alert(error, CONTROLS), *images, gr.Image(visible=False), gr.Gallery(visible=False)
    if explained.left_out:
        remark += f" Without a map: {', '.join(explained.left_out)}."
    heatmaps = [(_enlarged(image), name) for name, image in explained.heatmaps.items()]
    return (
        note(remark),
        *images,
        gr.Image(explained.masks.overlay(), visible=True),
        gr.Gallery(heatmaps, visible=True),
    )


def _unknown(segmenter: Segmenter, prompt: str) -> str:
    facts = read_facts(pipeline_folder(segmenter.backbone.pipeline))
    words = unknown_words(prompt, facts.nouns + facts.words) if facts.nouns else ()
    return f"This model does not know {', '.join(words)}, and paints something else there." if words else ""


def _enlarged(image: Image.Image | None) -> Image.Image | None:
    """A small image in a size that suits a page."""
    if image is None or (factor := LEAST_SIDE // max(image.size)) <= 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
