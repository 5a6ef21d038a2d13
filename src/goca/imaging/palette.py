"""Colours: one for each class, and a scale for scores."""

import numpy as np
from jaxtyping import Float, UInt8

MAX_COLOURS = 255  # colours of an indexed PNG besides the background

# The first ten were chosen by eye. Each later one is the vivid colour farthest from all before it in OKLab (Glasbey et
# al. 2007), computed once.
_COLOURS = (
    "ff5a5f2ec4b6ffb4004d7cfe8ac926b15ef0ff8a3d1fa2e0f15bb512a150873c1effc3ff0000ff1e5a87870f960069005affc3a5781e"
    "7800ffc31e6900ff00966996b4a5e1ff00ff96e1ff2d8787c3f04bb4a569ff87ffd23c00c300b4ff96b4c3d2964b3cc369692d874bc3"
    "873c69c378788787d25ac3ff0078c3005af0ff00780f695a00e196b400f0b4001effc3a587a500a55a4bc387ffe169005aa587f000c3"
    "695a9600c369c378b4008700ff00001ee1e1c3b40fe15af000e13ca53c9669873c785affe1a587c3c3ff7800c387c3874b00f01eff87"
    "c35a8778a5fff0e1696969d2e13c5a96e178e1a5ff5a87b4a5f0d2b45ab4693c96f0789600b4002d5ab4c3874bd296b4c3d20000875a"
    "e11e96a50069d22de100a5b48778ffb49600965a0078e1b4961ed2f087d287f02d5ab4d287965ae19600962dff9669d2a53c4be18778"
    "d2003c0f3ce15a3cffa500a54b781effb4c3ff69e1d2b4693c96ffa54b78d24bc3783ce1ffa5e1007896d25a4bb4f096ff1ea5a53c00"
    "f0c37869b469874b96699600ff692db43cd21e87e14b4b96ff3ce1c33c9669f0f0ffa55a00b4ff4b5ad2c369d2e10069f04b0fff9687"
    "2d9678b45a0f96c3f078d2e1e14b875a5a00e178f0874b4bff4b874b6996e1c30f694bb4b4c369c33cffd296e1a578c34bc31e4bd2a5"
    "a596f0b40f8700b4875ad269784b00b4004b877800e16978ff78693c692d872db46900e1c34b5aff2d5a96b44bff5aff00d2f0e100ff"
    "004bc3e1a5d21ef0d25af0968778b40069a5965ab4d29669964be10087b43c69f02d3cff5a69b4a578f06996d2e178b4d25aa5a5b4ff"
    "d2d2695ab43cffd200965a692d9600b4789669e15aff78b4965affb4785a9687000069d26987f0875a871e7869006978e1873c7869a5"
    "96a55ad27896692db44b784b4be1ff87ff6900783ce10000b46969b487d23c96962d96c3c369006978c3e1e12de169d2961e87ffd296"
    "69b496e1b4f09696d25aa55ae1e1964ba50fa53cb478a5d2f0b48796d287a5e13c4b3ce169d2c396693c87b4e1962d4b785ab44bc387"
    "00f069f0003cc300d2"
)
# Magma at nine equal steps: perceptually uniform, and readable in grey and by the colour-blind.
_MAGMA = "0000041d114751127c822681b73779e75263fc8961fec488fcfdbf"


def palette(classes: int) -> UInt8[np.ndarray, "colour 3"]:
    """RGB colours for a label map: row 0 is black, for background, row i is the colour of class i.

    A shorter palette is the beginning of a longer one. After 255 classes the colours repeat.
    """
    indices = [0, *(1 + index % MAX_COLOURS for index in range(classes))]
    return _from_hex("000000" + _COLOURS)[indices]


def magma(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """RGB colours of values in [0, 1]: black is 0, pale yellow 1."""
    stops = _from_hex(_MAGMA)
    at = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), at, channel) for channel in stops.T], axis=1)
    index = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
    return np.rint(table).astype(np.uint8)[index]


def _from_hex(digits: str) -> UInt8[np.ndarray, "colour 3"]:
    return np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 3)
