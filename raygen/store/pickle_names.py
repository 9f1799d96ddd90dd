"""Names that a pickled checkpoint may mention, and what may stand in their place."""

from typing import Final

__all__ = ["INERT", "LITERALS"]


#: What else lies in checkpoints of training programs: classes that name a callback, settings. They become stand-ins.
INERT: Final = (
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "omegaconf",
    "ldm",
    "taming",
    "main",
    "__main__",
    "cldm",
    "guided_diffusion",
    "typing",
    "argparse",
    "pathlib",
    "torch.optim",
    "torch.torch_version",
    "numpy.random",
)
#: Opcodes whose argument is the value.
LITERALS: Final = frozenset(
    {
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    }
)
