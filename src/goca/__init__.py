"""goca: any text-to-image diffusion model as an open-vocabulary segmenter, without training it.

Generative scaling of cross-attention (Meng et al., CVPR 2026). Names are imported when they are first used, so that
`goca --help` need not wait for torch; `__init__.pyi` lists them.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("goca")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
