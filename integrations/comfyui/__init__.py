"""goca's nodes for ComfyUI: see README.md. What they do is in `goca.integrations.comfyui`."""

from comfy_api.latest import ComfyExtension, io
from typing_extensions import override

from goca.integrations import comfyui as host
from goca.recipe import RECIPES

CATEGORY = "goca"
Attention = io.Custom("GOCA_ATTENTION")
LAST_STEP = 10_000
DURING_SAMPLING = [name for name, recipe in RECIPES.items() if recipe.maps is None and recipe.evidence is None]
GUIDING = [name for name in DURING_SAMPLING if RECIPES[name].refit is None]
"""The recipes that read attention while a sampler runs."""


def text_input(name: str, tooltip: str):
    return io.String.Input(name, multiline=True, dynamic_prompts=name == "text", tooltip=tooltip)


def background_input():
    return io.String.Input("background", default="auto", tooltip='"auto", "none", or a score from 0 to 1')


def step_inputs() -> list:
    return [
        io.Int.Input("start_at_step", default=0, min=0, max=LAST_STEP),
        io.Int.Input("end_at_step", default=LAST_STEP, min=1, max=LAST_STEP),
    ]


def drawn_outputs() -> list:
    return [
        io.Mask.Output("masks", display_name="masks", tooltip="A mask for each name, image by image"),
        io.Image.Output("scores", display_name="heat maps", tooltip="As many images, of each name's scores"),
        io.Image.Output("labels", display_name="labels", tooltip="Each image's classes in flat colours"),
        io.Image.Output("overlay", display_name="overlay", tooltip="Each image under its coloured masks"),
        io.String.Output(
            "mask_names", display_name="names", tooltip="The names, one a line, in the order of the masks"
        ),
    ]


class SegmentByWords(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GocaSegmentByWords",
            display_name="Segment by words",
            category=CATEGORY,
            description="Labels the pixels of images with the names of what they may show, by a text-to-image model.",
            inputs=[
                io.Image.Input("image"),
                text_input("names", "One a line, synonyms behind a colon: cat: kitten"),
                io.String.Input("model", default="bundled", tooltip='A diffusers folder, a Hub id, or "bundled"'),
                io.Combo.Input("recipe", options=list(RECIPES), default="goca-open"),
                io.Int.Input("timestep", default=-1, min=-1, max=999, tooltip="-1 for the recipe's own"),
                background_input(),
                io.Combo.Input("device", options=["auto", "cpu"], default="auto"),
            ],
            outputs=drawn_outputs(),
        )

    @classmethod
    def execute(cls, image, names, model, recipe, timestep, background, device) -> io.NodeOutput:
        return io.NodeOutput(*host.segment(image, names, model, recipe, timestep, background, device))


class ListenToTheSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GocaListenToTheSampler",
            display_name="Listen to the sampler",
            category=CATEGORY,
            description="Encodes a prompt, and traces what its words attend to while a sampler uses this model.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                text_input("text", "The positive prompt"),
                io.Combo.Input("recipe", options=DURING_SAMPLING, default="goca"),
                *step_inputs(),
            ],
            outputs=[
                io.Model.Output("traced_model", display_name="model"),
                io.Conditioning.Output("positive", display_name="positive"),
                Attention.Output("attention", display_name="attention"),
            ],
        )

    @classmethod
    def execute(cls, model, clip, text, recipe, start_at_step, end_at_step) -> io.NodeOutput:
        return io.NodeOutput(*host.trace_sampler(model, clip, text, recipe, range(start_at_step, end_at_step)))


class MasksOfWords(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GocaMasksOfWords",
            display_name="Masks of the prompt's words",
            category=CATEGORY,
            description="Masks and heat maps of words, as the sampler that made the images attended to them.",
            inputs=[
                Attention.Input("attention"),
                io.Image.Input("image", tooltip="What the sampler made"),
                text_input("names", "Words of the prompt, one a line; all of its words if empty"),
                background_input(),
            ],
            outputs=drawn_outputs(),
        )

    @classmethod
    def execute(cls, attention, image, names, background) -> io.NodeOutput:
        return io.NodeOutput(*host.read(attention, image, names, background))


class Guide(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GocaGuide",
            display_name="Guide by regions",
            category=CATEGORY,
            description="Encodes a prompt, and guides each region of the image as strongly as its foreground.",
            inputs=[
                io.Model.Input("model"),
                io.Clip.Input("clip"),
                text_input("text", "The positive prompt"),
                io.Combo.Input(
                    "recipe", options=[*GUIDING, "energy"], default="goca", tooltip="What makes the regions"
                ),
                *step_inputs(),
                io.Int.Input("every", default=1, min=1, max=100, tooltip="Attention is read in every so many steps"),
            ],
            outputs=[
                io.Model.Output("guided_model", display_name="model"),
                io.Conditioning.Output("positive", display_name="positive"),
            ],
        )

    @classmethod
    def execute(cls, model, clip, text, recipe, start_at_step, end_at_step, every) -> io.NodeOutput:
        return io.NodeOutput(*host.guide(model, clip, text, recipe, range(start_at_step, end_at_step), every))


class GocaExtension(ComfyExtension):
    @override
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [SegmentByWords, ListenToTheSampler, MasksOfWords, Guide]


async def comfy_entrypoint() -> GocaExtension:
    """What ComfyUI calls."""
    return GocaExtension()
