"""The mathematics of generative scaling of cross-attention: tensors in, tensors out (Meng et al., CVPR 2026).

One vocabulary of axes for the whole package: pixel, token, head, dim (of one head), model (all heads side by side),
class, height, width. Everything accumulates in float32, whatever the model's own dtype.
"""

Grid = tuple[int, int]
"""(height, width) in cells."""
