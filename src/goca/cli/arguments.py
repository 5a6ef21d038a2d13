"""The options that several commands have, said once."""

from typing import Annotated

import typer

from goca.cli import parsing

Model = Annotated[
    str, typer.Option(metavar="MODEL", help='"bundled", a diffusers folder, or a Hub id, which is fetched.')
]
Recipe = Annotated[str, typer.Option(metavar="NAME", help=parsing.RECIPES_HELP)]
Timestep = Annotated[
    str | None,
    typer.Option(
        metavar="T[,T...]",
        help="Training timesteps of the forward passes.  [default: the model's]",
        show_default=False,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Pixels a side the model sees.  [default: the model's]", show_default=False),
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Seed of the first noise.")]
Seeds = Annotated[int, typer.Option(metavar="N", min=1, help="Average over so many noises.")]
Flip = Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.", show_default=False)]
Window = Annotated[
    bool, typer.Option("--window", help="See large images at full scale, through windows.", show_default=False)
]
RefineEdges = Annotated[
    bool, typer.Option("--refine-edges", help="Let scores follow the image's own edges.", show_default=False)
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1 or mps.  [default: the best there is]", show_default=False),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="float32, float16 or bfloat16.  [default: float32 on cpu, else float16]",
        show_default=False,
    ),
]
Batch = Annotated[int, typer.Option(metavar="N", min=1, help="Images a forward pass.")]
Limit = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Only the first so many images.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.", show_default=False)]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print a table for a document.", show_default=False)]
Verbose = Annotated[
    bool,
    typer.Option("-v", "--verbose", help="Show the libraries' warnings, and tracebacks.", show_default=False),
]
