"""The typer application that commands are registered with."""

import typer

# Plain help: it is copied, piped and grepped, and it starts faster.
app = typer.Typer(
    name="goca",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
