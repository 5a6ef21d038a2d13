"""`goca prototypes`: learns from a model's own images what nouns look like to it, and writes that to a file."""

from pathlib import Path
from typing import Annotated

import typer

from goca import bundled
from goca.cli import arguments
from goca.cli.console import progress, say, session, show, show_json
from goca.errors import GocaError


def prototypes(
    classes: Annotated[str | None, arguments.option(metavar="NAMES", help='Nouns to learn: "cat, grass".')] = None,
    classes_file: Annotated[
        Path | None, arguments.option(metavar="FILE", help="File of nouns, one per line; see goca segment.")
    ] = None,
    background_classes: Annotated[
        str | None,
        arguments.option(
            metavar="NAMES",
            help="Nouns to generate around them and to learn too.  [default: the model's list, minus the classes]",
        ),
    ] = None,
    background_classes_file: arguments.BackgroundClassesFileOption = None,
    model: arguments.ModelOption = bundled.DEFAULT,
    images: Annotated[int, typer.Option(metavar="N", min=1, help="Number of images to generate for each noun.")] = 15,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Number of sampling steps per image.")] = 20,
    scale: arguments.ScaleOption = None,
    timestep: Annotated[
        int | None,
        arguments.option(
            metavar="T",
            min=0,
            max=arguments.MAX_TIMESTEP,
            help="Noise level of the forward passes.  [default: the model's]",
        ),
    ] = None,
    seed: arguments.SeedOption = 0,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="File to write; as prototypes.safetensors in the model's folder, it is used automatically.",
        ),
    ] = Path("prototypes.safetensors"),
    as_json: arguments.JsonOption = False,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    batch: arguments.BatchOption = 8,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Learn from a model's own images what nouns look like to it.

    The model generates images of each noun and segments them; nothing is trained, and no other images are needed. The
    number of images is printed before it begins.
    """
    with session(verbose):
        listed, unlabelled = arguments.classes(classes, classes_file)
        background_names = arguments.background_classes(background_classes, background_classes_file)
        if background_names is not None:
            background_names += tuple(name for name in unlabelled if name not in background_names)
        arguments.check_model(model, None, device, dtype)
        from goca.diffusion.model_facts import facts_of
        from goca.image_jobs import check_writable
        from goca.text.nouns import check_prompt, check_words

        if out.is_dir():
            raise GocaError(f"{out} is a folder: name a file", "out")
        check_writable(out.parent)
        check_prompt("any", scale)
        check_words(listed, background_names, vocabulary=facts_of(model).nouns, model=model)
        from goca.prototype_learning import Learned, LearningOptions, learn, palette
        from goca.segmenter import Segmenter

        options = LearningOptions(images=images, steps=steps, scale=scale, seed=seed, timestep=timestep)
        with progress(hidden=as_json) as bar:
            task = bar.add_task(f"loading {model}", total=None)
            segmenter = Segmenter.from_pretrained(model, device=device, dtype=dtype, batch=batch)
            count = images * len(palette(segmenter, list(listed), background_names).nouns)
            say(f"{model} generates {count} images in {steps} steps each, and makes five passes over each")
            bar.reset(task, description="painting", total=count)
            for event in learn(segmenter, list(listed), background_names, options):
                if isinstance(event, Learned):
                    bar.update(task, completed=event.done)
                else:
                    learned = event
        learned.save(out)
        if left_out := [noun for noun, cells in learned.facts["cells"].items() if not cells]:
            say(f"left out, as no generated image shows them: {', '.join(left_out)}")
        if as_json:
            show_json({"file": str(out), "nouns": learned.nouns, **learned.facts})
        else:
            show(str(out))
