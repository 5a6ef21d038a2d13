"""The questions of a probe.

Each is answered by comparing passes in which one input was negated: a latent cell changes the query of
its pixel, a token's embedding changes the key of its column.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isclose, lcm, prod
from typing import Any

from PIL import Image
from torch import nn

from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.attention_modules import attention_modules
from goca.diffusion.backbone import Backbone
from goca.diffusion.conditioning import tokenizers
from goca.diffusion.exclusive import restoring
from goca.diffusion.families import bare, encoder_of, unet
from goca.diffusion.families.blocks import FLUX_DEPTH, PIXART_DEPTH, UP_PATH
from goca.diffusion.families.grids import Patches, level_of, levels
from goca.diffusion.families.spec import Family, JointLayout, TextInput, anything, default_size, first_grid, sample_size
from goca.diffusion.latents import encode
from goca.diffusion.timesteps import NUM_TRAIN_TIMESTEPS, is_flow
from goca.errors import GocaError
from goca.probing.passes import TIMESTEP, ProbePass, denoiser_call, moved, run_pass

CAPTIONS = (
    "cat, traffic light, grass",
    "cat, traffic light, grass, dog",
    "sky, grass, wall, dog, cat, person, tree, road, house, boat, bird, car, bus, cup, fish, horse, sheep, table, "
    "plant, chair, sofa, train, bottle, bicycle, river, sand, snow, rock, cloud, door, window, bridge, flower, bread",
)
"""Captions of three lengths: with padding in front tokens move with the length; padding to a multiple differs."""
PLAIN = {
    "num_frames": 1,
    "true_cfg_scale": 1.0,
    "use_resolution_binning": False,
    "clean_caption": False,
    "complex_human_instruction": None,
    "enable_prompt_rewrite": False,
    "use_pe": False,
    "skip_text_cleaning": True,
}
"""Arguments that a pipeline gets if it has them: one image, with its given size and caption."""


@dataclass(frozen=True)
class TurnedToken:
    """A token of a caption: its tokenizer and index there; a pass without and one with its embedding turned."""

    tokenizer: str
    index: int
    plain: ProbePass
    turned: ProbePass

    def columns(self, attention: int) -> tuple[int, ...]:
        """The keys of an attention that moved."""
        return moved(self.plain.attentions[attention].k, self.turned.attentions[attention].k)


def guess(pipeline: Any) -> Family:
    """A first guess from a pipeline's parts, enough to run it."""
    component = _component(pipeline)
    denoiser = bare(getattr(pipeline, component))
    names = tokenizers(pipeline)
    if not any(encoder_of(pipeline, name) is not None for name in names):
        raise GocaError("it has no tokenizer with a text encoder")
    defaults = {name: entry.default for name, entry in inspect.signature(pipeline.__call__).parameters.items()}
    options = {name: value for name, value in PLAIN.items() if name in defaults}
    if defaults.get("guidance_scale", 1.0) is None:
        options["guidance_scale"] = None  # without guidance by default
    limited = defaults.get("max_sequence_length") is not None
    return Family(
        name=type(denoiser).__name__,
        component=component,
        denoisers=(type(denoiser).__name__,),
        check=unet.check if _is_unet(denoiser) else anything,
        image_size=sample_size if getattr(denoiser.config, "sample_size", None) else default_size,
        grids=levels if _is_unet(denoiser) else Patches(1),
        grid_of=level_of if _is_unet(denoiser) else first_grid,
        block_rule=UP_PATH if _is_unet(denoiser) else PIXART_DEPTH,
        texts=tuple(TextInput(name, respects_max_sequence_length=limited) for name in names),
        flow=is_flow(pipeline.scheduler),
        timestep=150 if is_flow(pipeline.scheduler) else 100,
        options=options,
        optional_image_input=defaults.get("image", "") is None,
    )


def _component(pipeline: Any) -> str:
    """The attribute that holds the denoiser: a part that attends, and neither reads the caption nor encodes images."""
    others = ("vae", "text_encoder", "image_encoder", "safety_checker")
    parts = {name: part for name, part in pipeline.components.items() if not name.startswith(others)}
    attending = [name for name, part in parts.items() if isinstance(part, nn.Module) and attention_modules(part)]
    for name in ("transformer", "unet", *attending):
        if name in attending and hasattr(parts[name], "config"):
            return name
    raise GocaError("none of its parts is a denoiser whose attention modules have processors")


def _is_unet(denoiser: Any) -> bool:
    """Whether a denoiser has levels, each half as fine as the one before."""
    return hasattr(denoiser, "up_blocks") and hasattr(denoiser.config, "block_out_channels")


class Probe:
    """Establishes one fact of a loaded pipeline after another; each is needed to ask for the next."""

    def __init__(self, pipeline: Any) -> None:
        self.backbone = Backbone(pipeline, family=guess(pipeline))
        self.tokenizers = set(tokenizers(pipeline))

    def family(self) -> Family:
        """All facts. Raises GocaError, saying what is missing, for one that cannot be found."""
        self._learn(packed_vae_scale_factor=self._counts_packed_cells())
        self.step, self.plain = self._size_step()
        self.size = (3 * self.step, 5 * self.step)
        self.attentions = self.plain.attentions
        self._learn(edm_sigmas=self._has_edm_sigmas(), linear_self_attention=self.plain.linear)
        self.far = self._run(cell=(self.size[0] - 1, self.size[1] - 1)).attentions
        self.reading = self._first_reading()
        first, cells = self._pixel_order()
        if cells:
            self._learn(grids=Patches(cells))
        joint, text_columns = None, slice(None)
        if moved(self.attentions[self.reading].k, self.far[self.reading].k):
            joint = self._joint_layout(first)
            pixels = joint.padded(self.backbone.denoiser, self._grid(self.size))
            text_columns = slice(None, -pixels) if joint.text_first else slice(pixels, None)
            timestep = 407 if self.backbone.family.flow else 100
            self._learn(joint=joint, block_rule=FLUX_DEPTH, timestep=timestep, feature="output")
        elif cells and not self.backbone.family.flow:
            self._learn(order=5)
        self._learn(texts=self._text_inputs(text_columns))
        self._confirm()
        return self.backbone.family

    def _learn(self, **facts: Any) -> None:
        self.backbone = Backbone(self.backbone.pipeline, family=replace(self.backbone.family, **facts))

    def _run(self, **changes: Any) -> ProbePass:
        return run_pass(self.backbone, **{"size": self.size, "caption": CAPTIONS[0], **changes})

    def _grid(self, latent: tuple[int, int]) -> tuple[int, int]:
        return self.backbone.family.grids(self.backbone.denoiser, latent)[0]

    def _counts_packed_cells(self) -> bool:
        """Whether the pipeline's `vae_scale_factor` counts 2 x 2 latent cells as one."""
        # Not with the backbone, which checks the cells against the scale factor in question.
        with restoring(self.backbone.pipeline) as pipeline:
            height, width = encode(pipeline, [Image.new("RGB", (192, 128))], (128, 192)).shape[-2:]
        factor = self.backbone.vae_scale_factor
        for packed in (1, 2):
            if (height * factor, width * factor) == (128 * packed, 192 * packed):
                return packed == 2
        raise GocaError(f"its VAE makes {height} x {width} cells of 128 x 192 pixels, but its scale factor is {factor}")

    def _size_step(self) -> tuple[int, ProbePass]:
        """The fewest latent cells by which sides may differ, and a first pass.

        A pipeline that makes two passes for guidance even at scale 1 gets 0.
        """
        options, errors = self.backbone.family.options, []
        for guidance in ({}, {"guidance_scale": 0.0}):
            for multiple in (8, 16, 32, 64):
                self._learn(options={**options, **guidance}, size_multiple=multiple)
                step = lcm(multiple, 2 * self.backbone.vae_scale_factor) // self.backbone.vae_scale_factor
                try:
                    return step, run_pass(self.backbone, (3 * step, 5 * step), CAPTIONS[0])
                except Exception as error:  # the pipeline's own code may raise anything
                    errors.append(error)
        raise errors[3]  # at the usual guidance, and a size that hardly any refuses

    def _has_edm_sigmas(self) -> bool:
        """Whether a flow model gets s / (1 + s), or thousandths of it, while others get s."""
        sigma = TIMESTEP / NUM_TRAIN_TIMESTEPS
        edm = sigma / (1 + sigma), NUM_TRAIN_TIMESTEPS * sigma / (1 + sigma)
        # Half precision rounds by less than a hundredth.
        return self.backbone.family.flow and any(isclose(self.plain.timestep or 0, s, rel_tol=1e-2) for s in edm)

    def _first_reading(self) -> int:
        """The first attention whose queries depend on a pixel and whose keys depend on a word, and whose words."""
        tokens = list(self._turn_tokens(self.plain, CAPTIONS[0], 1))
        for index, call in enumerate(self.attentions):
            names = {token.tokenizer for token in tokens if token.columns(index)}
            if names and moved(call.q, self.far[index].q):
                self.tokenizers = names
                return index
        raise GocaError("negating a token's embedding changed no key that a pixel attends to")

    def _turn_tokens(self, plain: ProbePass, caption: str, third: int) -> Iterator[TurnedToken]:
        """Each tokenizer's token after `third` thirds of a caption; never the last token, which may be pooled."""
        for name, tokens in plain.prompt.texts.items():
            if name in self.tokenizers and encoder_of(self.backbone.pipeline, name) is not None:
                words = [index for index, special in enumerate(tokens.special) if not special]
                index = words[third * len(words) // 3]
                yield TurnedToken(name, index, plain, self._run(caption=caption, token=(name, tokens, index)))

    def _pixel_order(self) -> tuple[int, int]:
        """The first pixel's position, and the latent cells a side of a patch; 0 for a UNet, whose levels differ."""
        height, width = self.size
        call = self.attentions[self.reading]
        corners = [self._run(cell=cell).attentions for cell in ((0, 0), (0, width - 1))]
        positions = [moved(call.q, attentions[self.reading].q) for attentions in (*corners, self.far)]
        if not all(positions):
            raise GocaError("a corner of the latent changed no query")
        first, right, last = (position[0] for position in positions)
        if _is_unet(self.backbone.denoiser):
            # Convolutions spread the change, so only the quarter counts.
            sizes = {prod(grid): grid for grid in levels(self.backbone.denoiser, self.size)}
            rows, row = sizes.get(len(call.q), (1, 1))
            quarters = [(2 * (at // row) >= rows, 2 * (at % row) >= row) for at in (first, right, last)]
            if quarters == [(False, False), (False, True), (True, True)]:
                return 0, 0
        else:
            row, count = right - first + 1, last - first + 1
            cells = width // row if row > 0 else 0
            if cells and (row * cells, count * cells) == (width, height * row):
                return first, cells
        raise GocaError(
            f"the corners of {height} x {width} cells are at positions {first}, {right} and {last} of {len(call.q)}: "
            "not the rows of a grid of square patches"
        )

    def _joint_layout(self, first: int) -> JointLayout:
        """The layout of the sequence of text and pixels, whose first pixel is at this position."""
        call = self.attentions[self.reading]
        length = len(call.k)
        if len(call.q) != length:
            raise GocaError(f"{len(call.q)} positions attend to {length}: pixels and text are not one sequence")
        # With fewer pixels than a padding adds, the difference of the lengths tells the padding.
        small = (2 * self.step, self.step)
        difference = length - len(self._run(size=small).attentions[self.reading].k)
        for layout in (JointLayout(first > 0, multiple=2**power) for power in range(9)):
            padded, fewer = (layout.padded(self.backbone.denoiser, self._grid(size)) for size in (self.size, small))
            if padded - fewer == difference and first in (0, length - padded):
                return replace(layout, unimodal_blocks=self._unimodal_blocks(length))
        raise GocaError(f"its pixels, from position {first} of {length}, are padded in no known way")

    def _unimodal_blocks(self, length: int) -> tuple[str, ...]:
        """Prefixes of the blocks in which text or pixels attend only to themselves."""
        joint = {call.block for call in self.attentions if len(call.q) == length}
        apart = (call.block for call in self.attentions if call.block not in joint)
        prefixes = tuple(dict.fromkeys(block.partition(".")[0] for block in apart))
        if prefixes and any(block.startswith(prefixes) for block in joint):
            raise GocaError(f"blocks of {', '.join(prefixes)} attend to text and pixels, but not all of them")
        return prefixes

    def _text_inputs(self, text_columns: slice) -> tuple[TextInput, ...]:
        """Where each tokenizer's tokens are among the text's columns; one whose tokens change no key is left out."""
        passes = [self.plain, *(self._run(caption=caption) for caption in CAPTIONS[1:])]
        turns = zip((passes[0], *passes), (CAPTIONS[0], *CAPTIONS), (2, 1, 1, 1), strict=True)
        tokens = [token for turn in turns for token in self._turn_tokens(*turn)]
        ranges = [range(len(each.attentions[self.reading].k))[text_columns] for each in passes]
        constant = len({len(columns) for columns in ranges}) == 1
        limited = self.backbone.family.texts[0].respects_max_sequence_length
        texts: list[TextInput] = []
        for name in dict.fromkeys(token.tokenizer for token in tokens):
            turned = [token for token in tokens if token.tokenizer == name]
            starts = [
                {column - ranges[0].start - token.index for column in token.columns(self.reading)} for token in turned
            ]
            ends = [token.plain.prompt.length - len(token.plain.prompt.texts[name].ids) for token in turned]
            # Words may have attended to each other before: only the token's own column is the same for all of them.
            common = set.intersection(*starts)
            if len(common) == 1:
                (start,) = common
                kept = len(ranges[0]) - start if constant and not limited else None
                texts.append(TextInput(name, start=start, respects_max_sequence_length=limited, max_tokens=kept))
            elif all(end in columns for end, columns in zip(ends, starts, strict=True)):
                texts.append(TextInput(name, right_aligned=True, respects_max_sequence_length=limited))
            elif any(starts):
                raise GocaError(
                    f"the text columns cannot be found: in captions of several lengths the first token of {name} "
                    f"would be in column {' or '.join(str(sorted(columns)) for columns in starts)}"
                )
        return tuple(texts)

    def _confirm(self) -> None:
        """Check the facts on a pass of another size."""
        backbone = self.backbone
        size, calls = (4 * self.step, 3 * self.step), list[AttentionCall]()
        hook = backbone.attention_hook(size, lambda _, call: calls.append(call))
        with denoiser_call(backbone, size, CAPTIONS[0]) as (args, kwargs, prompt), hook:
            backbone.denoiser(*args, **kwargs)
        if any(call.kind == "self" and call.q.shape[-2] != call.k.shape[-2] for call in calls):
            raise GocaError("it attends to something other than its pixels and the text")
        columns = {call.block: len(range(call.k.shape[1])[call.text]) for call in calls if call.text is not None}
        for block in backbone.blocks:
            if block not in columns:
                raise GocaError(f"{block} does not attend to the text")
        words = [
            tokens.start + index
            for tokens in backbone.texts(prompt)
            for index, special in enumerate(tokens.special)
            if not special
        ]
        if max(words) >= min(columns.values()):
            raise GocaError(f"a token is in column {max(words)} of {min(columns.values())}")
