"""The tab Generate: an image from a prompt, with and without guidance, and the maps of its words."""

import tempfile
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from goca import generation
from goca.diffusion.model_facts import pipeline_folder, read_facts
from goca.errors import GocaError
from goca.generation import Generated
from goca.guidance import ENERGY, UNGUIDED
from goca.segmenter import Segmenter
from goca.text.nouns import unknown_words
from goca.web.controls import Runs, number, whole
from goca.web.downloads import offer
from goca.web.images import SHOWN, scaled
from goca.web.messages import alert, note, progress
from goca.web.results import MAX_BYTES, Results

MAX_STEPS, MAX_SCALE, MAX_PROMPT = 100, 50, 1000
GUIDANCE = {"goca": "goca: by the regions of the prompt's words", ENERGY: "energy: pixel by pixel", UNGUIDED: "none"}
CONTROLS = {
    "prompt": "Prompt",
    "guide": "Guidance",
    "scale": "Guidance scale",
    "steps": "Steps",
    "seed": "Seed",
    "step": "Step",
}
"""{hint of a GocaError: label of the control here}."""


@dataclass
class GenerateTab:
    """The tab and its actions. folder: where downloads are written."""

    segmenter: Segmenter
    folder: Path
    results: Results[Generated] = field(default_factory=lambda: Results("generate again", _size, MAX_BYTES))

    def build(self) -> None:
        """Add the tab's components and events to the page that is being built."""
        nouns = self.segmenter.backbone.settings.nouns
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
                seed = gr.Textbox("0", label="Seed", info="Each number gives another image.")
                guidance = gr.Radio(
                    [(label, name) for name, label in GUIDANCE.items()],
                    value="goca",
                    label="Guidance",
                    info="With guidance, an image without it is generated too.",
                )
                with gr.Accordion("More", open=False):
                    steps = gr.Textbox(label="Steps", placeholder="the model's", info=f"1 to {MAX_STEPS}.")
                    scale = gr.Textbox(
                        label="Guidance scale", placeholder="the model's", info=f"1 (none) to {MAX_SCALE}."
                    )
                with gr.Row():
                    start = gr.Button("Generate", variant="primary", elem_id="generate-run")
                    stop = gr.Button("Stop", elem_id="generate-stop")
            with gr.Column(scale=3, min_width=320):
                message = gr.HTML(note("Describe an image and press Generate."), elem_id="generate-message")
                with gr.Row():
                    plain = gr.Image(label="Without guidance", visible=False, **SHOWN)
                    guided = gr.Image(label="With guidance", visible=False, **SHOWN)
                with gr.Row(visible=False) as of_steps:
                    step = gr.Slider(
                        0,
                        MAX_STEPS,
                        0,
                        step=1,
                        label="Step",
                        info="0: all steps together.",
                        buttons=[],
                        min_width=260,
                        elem_id="generate-step",
                    )
                    save = gr.Button("Save steps as GIF", elem_id="generate-download", min_width=160, scale=0)
                with gr.Row():
                    masks = gr.Image(label="Masks of the prompt's words", visible=False, **SHOWN)
                    maps = gr.Gallery(
                        label="Heat maps of the prompt's words",
                        height="auto",
                        visible=False,
                        **{**SHOWN, "elem_classes": "goca-maps"},
                    )
        token, runs = gr.State(), Runs(message, CONTROLS)
        outputs = [plain, guided, masks, maps, of_steps, step, token]
        runs.add(start, stop, self.run, [prompt, seed, guidance, steps, scale], outputs)
        runs.paint(step.input, self._stepped, [token, step], [masks, maps])
        offer(runs, save, self._animated, [token])

    def run(
        self, prompt: Any, seed: Any, guidance: Any, steps: Any, scale: Any
    ) -> Generator[Sequence[Any], None, None]:
        """Generate; yields the progress after each step, and finally the values of all components.

        Raises:
            GocaError: The prompt, the guidance or a number is not valid, or the model does not support it.
        """
        prompt, guidance = str(prompt or ""), str(guidance)
        if len(prompt) > MAX_PROMPT:
            raise GocaError(f"the prompt has {len(prompt)} characters: shorten it to {MAX_PROMPT}", "prompt")
        options = generation.GenerationOptions(
            prompt=prompt,
            steps=whole(steps, "number of steps", "steps", 1, MAX_STEPS),
            scale=number(scale, "guidance scale", "scale", 1, MAX_SCALE),
        )
        chosen = whole(seed, "seed", "seed", 0, 2**32 - 1) or 0
        pipeline, is_guided = self.segmenter.backbone.pipeline, guidance != UNGUIDED
        events = generation.generate(
            pipeline, options, [chosen], explain=True, guidance=guidance, compare=is_guided, keep="steps"
        )
        done = 0
        with closing(events):
            for event in events:
                if isinstance(event, Generated):
                    yield self._shown(event, _unknown(self.segmenter, prompt))
                else:
                    done += 1
                    yield [progress(done, event.steps * (2 if is_guided else 1), "step")]

    def _shown(self, generated: Generated, remark: str) -> tuple[Any, ...]:
        guided = generated.guided
        plain = generated.image if guided is None else guided.plain
        if guided is not None:
            remark += f" Guidance is as strong as plain guidance at scale {guided.effective_scale:.1f}."
        images = (
            gr.Image(None if plain is None else scaled(plain), visible=True),
            gr.Image(None if guided is None else scaled(generated.image), visible=guided is not None),
        )
        try:
            explained = generation.explain(generated)
        except GocaError as error:
            hidden = (gr.Image(visible=False), gr.Gallery(visible=False), gr.Row(visible=False))
            return alert(error, CONTROLS), *images, *hidden, 0, None
        if explained.left_out:
            remark += f" Words without a map: {', '.join(explained.left_out)}."
        count = len(_steps(generated))
        return (
            note(remark),
            *images,
            *_explained(explained),
            gr.Row(visible=True),
            gr.Slider(value=0, maximum=count, label=f"Step (of {count})"),
            self.results.put(generated),
        )

    def _stepped(self, _: Any, token: str | None, step: Any) -> tuple[Any, ...]:
        generated = self.results.get(token)
        steps = _steps(generated)
        chosen = whole(step, "step", "step", 0, len(steps)) or 0
        explained = generation.explain(generated, steps[chosen - 1] if chosen else None)
        return note(f"Step {chosen} of {len(steps)}." if chosen else "All steps together."), *_explained(explained)

    def _animated(self, token: str | None) -> Path:
        traced = self.results.get(token).traced
        assert traced is not None
        return traced.animation().save(Path(tempfile.mkdtemp(dir=self.folder), "steps.gif"))


def _size(generated: Generated) -> int:
    assert generated.traced is not None
    # The image, its copy in the trace, and the one without guidance.
    return generated.traced.attention.nbytes + 3 * 3 * generated.image.width * generated.image.height


def _steps(generated: Generated) -> list[int]:
    """The sampling steps that were traced."""
    assert generated.traced is not None
    return list(dict.fromkeys(call.step for call in generated.traced.steps))


def _explained(explained: generation.Explained) -> tuple[gr.Image, gr.Gallery]:
    heatmaps = [(scaled(image), name) for name, image in explained.heatmaps.items()]
    return gr.Image(explained.masks.overlay(), visible=True), gr.Gallery(heatmaps, visible=True)


def _unknown(segmenter: Segmenter, prompt: str) -> str:
    facts = read_facts(pipeline_folder(segmenter.backbone.pipeline))
    words = unknown_words(prompt, facts.nouns + facts.words) if facts.nouns else ()
    return f"This model does not know {', '.join(words)} and generates something else instead." if words else ""
