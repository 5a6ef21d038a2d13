"""A family's facts as Python source."""

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from goca.diffusion.families import blocks, grids, spec, unet
from goca.diffusion.families.spec import Family


def source(family: Family) -> str:
    """The text of a file for `goca/diffusion/families/`, defaults left out; `make format` wraps its lines."""
    used: dict[str, set[str]] = {}
    facts = _call(family, used)
    imports = "\n".join(f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(used.items()))
    return f"{imports}\n\nFAMILY = {facts}\n"


def _call(value: Any, used: dict[str, set[str]]) -> str:
    """The constructor's call that gives a dataclass; what it needs imported goes into `used`."""
    facts = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    stated = {entry.name: facts[entry.name] for entry in fields(value) if facts[entry.name] != _default(entry)}
    used.setdefault(type(value).__module__, set()).add(type(value).__name__)
    if type(value) is not Family:
        return f"{type(value).__name__}({', '.join(f'{name}={_expression(v, used)}' for name, v in stated.items())})"
    return "Family(\n" + "".join(f"    {name}={_expression(v, used)},\n" for name, v in stated.items()) + ")"


def _default(entry: "Field[Any]") -> Any:
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _expression(value: Any, used: dict[str, set[str]]) -> str:
    for module in (blocks, grids, spec, unet):
        for name, member in vars(module).items():
            if member is value and not name.startswith("_") and (callable(value) or is_dataclass(value)):
                used.setdefault(module.__name__, set()).add(name)
                return name
    if is_dataclass(value):
        return _call(value, used)
    if isinstance(value, tuple):
        return f"({', '.join(_expression(part, used) for part in value)}{',' if len(value) == 1 else ''})"
    return repr(value)
