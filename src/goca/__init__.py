"""goca: any text-to-image diffusion model as an open-vocabulary segmenter, without training it.

Generative scaling of cross-attention (Meng et al., CVPR 2026). Names are imported on first use, so that
`goca --help` does not wait for torch; `__init__.pyi` lists them.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("goca")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
